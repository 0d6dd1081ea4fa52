"""Where this machine gets Debian's packages: its own configured sources, else the recipe's mirror.

Only the build reads them; the image's own sources always name the recipe's mirror.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, processes

if TYPE_CHECKING:
    from images.recipe import Recipe

__all__ = ["apt_options", "deb_lines"]

_FORMAT = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(CREATED_BY)"
_KEPT_OPTIONS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")


def deb_lines(recipe: Recipe) -> list[str]:
    """Return one-line apt sources for a recipe's suites.

    `KVEDGE_DEBIAN_MIRROR` (such as http://mirror.example/debian, with `debian-security` beside it)
    wins over the machine's sources.
    """
    if not Path(recipe.apt.keyring).exists():
        raise errors.ToolMissing(
            "archive keyring",
            f"keyring {recipe.apt.keyring!r} of recipe {recipe.name!r} not found",
            hint=f"apt-get install {recipe.os}-archive-keyring",
        )
    forced = os.environ.get("KVEDGE_DEBIAN_MIRROR", "").rstrip("/")
    configured = {} if forced else _configured()
    lines = []
    for suite in recipe.apt.suites:
        security = suite.endswith("-security")
        fallback = recipe.apt.security_mirror if security else recipe.apt.mirror
        if forced:
            fallback = f"{forced}-security" if security else forced
        uris = configured.get(suite, [fallback])
        lines += [
            f"deb [signed-by={recipe.apt.keyring} arch={recipe.arch}] {uri} {suite} "
            + " ".join(recipe.apt.components)
            for uri in uris
        ]
    return lines


def apt_options() -> list[str]:
    """Return this machine's apt settings for proxies, retries and date checks."""
    try:
        dump = processes.run(["apt-config", "dump"], what="read apt's settings", check=False).stdout
    except errors.ToolMissing:
        return []
    return [
        line
        for line in dump.splitlines()
        if line.startswith(_KEPT_OPTIONS) and not line.endswith('"";') and "User-Agent" not in line
    ]


def _configured() -> dict[str, list[str]]:
    try:
        done = processes.run(
            ["apt-get", "indextargets", "--format", _FORMAT], what="read apt's sources", check=False
        )
    except errors.ToolMissing:
        return {}
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) == 4 and words[3] == "Packages" and "backports" not in words[1]:
            uris = found.setdefault(words[1], [])
            if words[0] not in uris:
                uris.append(words[0].rstrip("/"))
    return found
