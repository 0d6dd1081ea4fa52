"""Where a build gets its packages: this machine's own sources, else the recipe's mirror.

Only the build reads them; the image's own sources always name the recipe's mirror. A vendor's
source is trusted by the fingerprint of its key, which the recipe states.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from images import openpgp
from kvedge import errors, processes, tools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from images.recipe import Recipe, Source

__all__ = [
    "MIRRORS",
    "apt_options",
    "configured",
    "deb_lines",
    "keyring",
    "signing_key",
    "vendor_line",
]

MIRRORS = {"debian": "KVEDGE_DEBIAN_MIRROR", "ubuntu": "KVEDGE_UBUNTU_MIRROR"}
"""Environment variable that names the mirror to use, by distribution."""
_KEY_SECONDS = 30.0
_KEY_BYTES = 1 << 20

_FORMAT = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(CREATED_BY)"
_KEPT_OPTIONS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")


def keyring(recipe: Recipe) -> Path:
    """Return the archive's keyring on this machine; Debian's package of Ubuntu's may serve.

    Raises:
        ToolMissing: there is none.
    """
    own = Path(recipe.apt.keyring)
    if own.exists():
        return own
    if recipe.os == "ubuntu":
        return tools.ensure(["ubuntu-archive-keyring"])["ubuntu-archive-keyring"].resolve()
    raise errors.ToolMissing(
        "archive keyring",
        f"keyring {recipe.apt.keyring!r} of recipe {recipe.name!r} not found",
        hint=f"apt-get install {recipe.os}-archive-keyring",
    )


def deb_lines(
    recipe: Recipe,
    keyring: Path,
    *,
    machine: Mapping[str, list[str]] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """Return one-line apt sources for a recipe's suites. Pure but for the environment's default.

    Args:
        recipe: whose suites, components and architecture count.
        keyring: the archive's keys on this machine.
        machine: addresses by suite that this machine's apt has.
        environment: `KVEDGE_DEBIAN_MIRROR` or `KVEDGE_UBUNTU_MIRROR` (such as
            http://mirror.example/debian, with `debian-security` beside it) wins over both.
    """
    apt = recipe.apt
    forced = environment.get(MIRRORS[recipe.os], "").rstrip("/")
    ports = apt.ports_mirror if recipe.arch != "amd64" else ""
    lines = []
    for suite in apt.suites:
        security = suite.endswith("-security")
        fallback = ports or (apt.security_mirror if security else apt.mirror)
        if forced:
            # Ubuntu has its security suites in the same archive.
            beside = security and recipe.os == "debian"
            uris = [f"{forced}-security" if beside else forced]
        else:
            uris = (machine or {}).get(suite) or [fallback]
        lines += [
            f"deb [signed-by={keyring} arch={recipe.arch}] {_copied(uri)} {suite} "
            + " ".join(apt.components)
            for uri in uris
        ]
    return lines


def vendor_line(source: Source, arch: str, key: Path) -> str:
    """Return the one-line apt source of a vendor, for a build."""
    uri = _copied(source.uri)
    return f"deb [signed-by={key} arch={arch}] {uri} {source.suite} " + " ".join(source.components)


def _copied(uri: str) -> str:
    """Return an address whose packages are copied to where dpkg, in the tree, finds them."""
    return "copy:" + uri.removeprefix("file:") if uri.startswith("file:") else uri


def signing_key(source: Source, place: Path) -> bytes:
    """Return a further source's key, armored, after comparing its fingerprint.

    Args:
        source: of the recipe.
        place: the key's file, if the recipe names one and not an address.

    Raises:
        KvedgeError: it cannot be had, or is another key.
    """
    what = f"signing key of apt source {source.name!r}"
    try:
        if source.key.startswith("https://"):
            with urllib.request.urlopen(source.key, timeout=_KEY_SECONDS) as answer:  # noqa: S310 - https only
                data = answer.read(_KEY_BYTES)
        else:
            data = place.read_bytes()
    except (OSError, urllib.error.URLError) as cause:
        raise errors.KvedgeError(
            f"{what} not read from {source.key!r}: {cause}",
            hint="a recipe of your own may name a file as key",
        ) from cause
    found = openpgp.fingerprints(data)
    if source.fingerprint not in found:
        raise errors.KvedgeError(
            f"{what} from {source.key!r} is another one: {', '.join(found) or 'no key at all'}",
            hint=f"the recipe wants {source.fingerprint}",
        )
    return openpgp.armored(data, source.fingerprint)


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


def configured() -> dict[str, list[str]]:
    """Return the addresses of this machine's own apt sources by suite."""
    try:
        # As they are configured, fetched or not; reading fetched lists would take half a second.
        argv = ["apt-get", "indextargets", "--no-release-info", "--format", _FORMAT]
        argv += ["-o", "Dir::State::Lists=/nonexistent/"]
        done = processes.run(argv, what="read apt's sources", check=False)
    except errors.ToolMissing:
        return {}
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) == 4 and words[3] == "Packages" and "backports" not in words[1]:
            uri, uris = words[0].rstrip("/"), found.setdefault(words[1], [])
            if uri not in uris:
                uris.append(uri)
    return found
