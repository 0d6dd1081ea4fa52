"""Package locks: the exact versions of a recipe's packages, in a file beside the recipe.

A lock is part of the image's key. apt prefers the locked versions; where the archive has them no
more, the newest is taken and the build tells which packages are stale, so that work goes on.
"""

from __future__ import annotations

import dataclasses
import tomllib
from typing import TYPE_CHECKING

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from images.recipe import Recipe
    from images.scanning import Package

__all__ = [
    "Change",
    "Lock",
    "compare",
    "lock_of",
    "own",
    "parse",
    "preferences",
    "read",
    "render",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """Versions by package, of one recipe."""

    recipe: str
    packages: tuple[tuple[str, str], ...]
    """Name and version, sorted by name."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Change:
    """One package that differs."""

    package: str
    before: str
    """Version, or empty if it was not there."""
    after: str


def render(lock: Lock) -> str:
    """Return the text of a lock file."""
    lines = [
        "# Made by `kvedge image lock`; part of the image's key.",
        f'recipe = "{lock.recipe}"',
        "",
        "[packages]",
        *(f'"{name}" = "{version}"' for name, version in lock.packages),
    ]
    return "\n".join(lines) + "\n"


def parse(text: str, *, subject: str) -> Lock:
    """Parse a lock file's text.

    Raises:
        SpecError: it is no lock.
    """
    try:
        raw = tomllib.loads(text)
        packages = {str(name): str(version) for name, version in raw["packages"].items()}
        return Lock(recipe=str(raw["recipe"]), packages=tuple(sorted(packages.items())))
    except (tomllib.TOMLDecodeError, KeyError, AttributeError) as cause:
        problem = errors.Problem(path="lock", message=f"{type(cause).__name__}: {cause}")
        raise errors.SpecError(
            subject, [problem], hint="make it again: kvedge image lock"
        ) from cause


def read(file: Path) -> Lock | None:
    """Return a lock file's content, or None if there is no such file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return parse(text, subject=f"lock {str(file)!r}")


def lock_of(recipe: str, packages: Iterable[Package]) -> Lock:
    """Return the lock that holds these packages."""
    return Lock(recipe=recipe, packages=tuple(sorted((one.name, one.version) for one in packages)))


def own(recipe: Recipe) -> frozenset[str]:
    """Return the packages that a recipe brings itself, which no archive has and no lock holds."""
    local = any(layer.local_packages or layer.debs for layer in recipe.layers)
    return frozenset({"aziot-edge", "aziot-identity-service"} if local else ())


def preferences(lock: Lock) -> str:
    """Return apt preferences (apt_preferences(5)) that hold the locked versions."""
    # Above 1000 a version is taken even if that is a downgrade.
    return "\n".join(
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n"
        for name, version in lock.packages
    )


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """Return the packages whose versions differ."""
    return sorted(
        Change(package=name, before=before.get(name, ""), after=after.get(name, ""))
        for name in {*before, *after}
        if before.get(name) != after.get(name)
    )
