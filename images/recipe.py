"""What an image is made of: a TOML recipe, checked as a whole and frozen.

The text of a recipe is the only source of an image's content beside the overlays that it names;
nothing of the building machine goes in. Shipped recipes are in `images/recipes`.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.resources
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from images import locking
from kvedge import errors

__all__ = ["Apt", "Boot", "Content", "Layer", "Recipe", "User", "load", "names", "parse"]

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+~:-]+)?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_UNIT = re.compile(r"[A-Za-z0-9@:_.\\-]+\.(automount|mount|path|service|socket|target|timer)")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_ARCHES = ("amd64", "arm64")
_KINDS = ("disk", "container")
_OSES = ("debian", "ubuntu")
_LOCAL_PACKAGES = ("edgesim",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Apt:
    """Where packages come from."""

    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyring: str
    """Path of the archive's keyring on the building machine and in the image."""
    mirror: str
    """Used when the building machine has no source of its own for these suites."""
    security_mirror: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Packages that are installed together and cached as one step."""

    name: str
    packages: tuple[str, ...] = ()
    """Names as apt takes them, also `name=version`."""
    local_packages: tuple[str, ...] = ()
    """Packages that kvedge makes itself."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account that is baked in; it has no password."""

    name: str
    uid: int
    groups: tuple[str, ...] = ()
    """Joined where they exist."""
    sudo: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is laid over the packages."""

    overlays: tuple[str, ...] = ()
    """Folders of `images/overlays`."""
    hostname: str = "localhost"
    enable: tuple[str, ...] = ()
    """Units that start at boot."""
    mask: tuple[str, ...] = ()
    """Units that never start."""
    drop: tuple[str, ...] = ()
    """Beginnings of paths, without leading slash, that packages bring and nobody needs."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """How the machine starts."""

    cmdline: str = ""
    """Kernel arguments beside root=."""
    initrd_modules: tuple[str, ...] = ()
    """Kernel modules that reach the root disk."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One image."""

    name: str
    kind: str
    """`disk`, or `container` for a base layer without kernel and init."""
    os: str
    release: str
    arch: str
    epoch: int
    """Seconds since 1970; no file in the image is newer (SOURCE_DATE_EPOCH)."""
    revision: int
    disk_mib: int
    """Size of the disk before the machine grows it."""
    apt: Apt
    layers: tuple[Layer, ...]
    users: tuple[User, ...] = ()
    content: Content = Content()
    boot: Boot = Boot()
    lock: locking.Lock | None = None
    """Versions of the lock file beside the recipe, if there is one."""


def names() -> tuple[str, ...]:
    """Return the names of the shipped recipes of disks."""
    folder = importlib.resources.files("images") / "recipes"
    found = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))
    return tuple(name for name in found if not name.endswith("-container"))


def load(name: str, *, folder: Path | None = None) -> Recipe:
    """Read a recipe, and the lock beside it: by name, from a folder or else from the shipped ones.

    A name that ends in `.toml` is a path of a recipe of one's own.
    """
    if name.endswith(".toml"):
        folder, name = Path(name).parent, Path(name).stem
    source = folder or importlib.resources.files("images") / "recipes"
    if not _NAME.fullmatch(name) or not (file := source / f"{name}.toml").is_file():
        raise errors.SpecError(
            f"recipe {name!r}",
            [
                errors.Problem(
                    path="name", message=f"no such recipe; there are {', '.join(names())}"
                )
            ],
        )
    recipe = parse(file.read_text(encoding="utf-8"), subject=f"recipe {name!r}")
    return dataclasses.replace(recipe, lock=locking.read(Path(str(source / f"{name}.lock"))))


def parse(text: str, *, subject: str = "recipe") -> Recipe:
    """Parse a recipe's text.

    Raises:
        SpecError: with every mistake that was found.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise errors.SpecError(
            subject, [errors.Problem(path="toml", message=str(cause))]
        ) from cause
    reader = _Reader()
    top = reader.table(raw, "", {
        "kind", "name", "os", "release", "arch", "epoch", "revision", "disk_mib",
        "apt", "layers", "users", "content", "boot",
    })  # fmt: skip
    recipe = Recipe(
        name=reader.text(top, "name", pattern=_NAME),
        kind=reader.text(top, "kind", allowed=_KINDS, default="disk"),
        os=reader.text(top, "os", allowed=_OSES),
        release=reader.text(top, "release", pattern=_NAME),
        arch=reader.text(top, "arch", allowed=_ARCHES),
        epoch=reader.time(top, "epoch"),
        revision=reader.number(top, "revision", 1, 1_000_000, default=1),
        disk_mib=reader.number(top, "disk_mib", 512, 1 << 20, default=2048),
        apt=_apt(reader, top),
        layers=_layers(reader, top),
        users=_users(reader, top),
        content=_content(reader, top),
        boot=_boot(reader, top),
    )
    if reader.problems:
        raise errors.SpecError(subject, sorted(reader.problems))
    return recipe


def _apt(reader: _Reader, top: _Table) -> Apt:
    table = reader.sub(top, "apt", {"suites", "components", "keyring", "mirror", "security_mirror"})
    return Apt(
        suites=reader.words(table, "suites", pattern=_NAME, required=True),
        components=reader.words(table, "components", pattern=_NAME, required=True),
        keyring=reader.text(table, "keyring", pattern=re.compile(r"/[\w./-]+")),
        mirror=reader.text(table, "mirror", pattern=re.compile(r"https?://\S+")),
        security_mirror=reader.text(table, "security_mirror", pattern=re.compile(r"https?://\S+")),
    )


def _layers(reader: _Reader, top: _Table) -> tuple[Layer, ...]:
    found = []
    for table in reader.tables(top, "layers", {"name", "packages", "local_packages"}):
        layer = Layer(
            name=reader.text(table, "name", pattern=_NAME),
            packages=reader.words(table, "packages", pattern=_PACKAGE),
            local_packages=reader.words(table, "local_packages", allowed=_LOCAL_PACKAGES),
        )
        if not layer.packages and not layer.local_packages:
            reader.add(table.path, "a layer needs packages")
        if layer.name in {other.name for other in found}:
            reader.add(f"{table.path}.name", f"{layer.name!r} is there twice")
        found.append(layer)
    if not found:
        reader.add("layers", "at least one layer is needed")
    return tuple(found)


def _users(reader: _Reader, top: _Table) -> tuple[User, ...]:
    found = []
    for table in reader.tables(top, "users", {"name", "uid", "groups", "sudo"}):
        user = User(
            name=reader.text(table, "name", pattern=_ACCOUNT),
            uid=reader.number(table, "uid", 1000, 59999),
            groups=reader.words(table, "groups", pattern=_ACCOUNT),
            sudo=reader.flag(table, "sudo"),
        )
        for other in found:
            if other.name == user.name or other.uid == user.uid:
                reader.add(table.path, f"name or uid of {user.name!r} is there twice")
        found.append(user)
    return tuple(found)


def _content(reader: _Reader, top: _Table) -> Content:
    table = reader.sub(
        top, "content", {"overlays", "hostname", "enable", "mask", "drop"}, optional=True
    )
    content = Content(
        overlays=reader.words(table, "overlays", pattern=_NAME),
        hostname=reader.text(table, "hostname", pattern=_NAME, default="localhost"),
        enable=reader.words(table, "enable", pattern=_UNIT),
        mask=reader.words(table, "mask", pattern=_UNIT),
        drop=reader.words(table, "drop", pattern=re.compile(r"[\w][\w./+-]*")),
    )
    for unit in sorted({*content.enable} & {*content.mask}):
        reader.add("content.mask", f"{unit!r} is enabled as well")
    return content


def _boot(reader: _Reader, top: _Table) -> Boot:
    table = reader.sub(top, "boot", {"cmdline", "initrd_modules"}, optional=True)
    boot = Boot(
        cmdline=reader.text(table, "cmdline", default=""),
        initrd_modules=reader.words(table, "initrd_modules", pattern=re.compile(r"[a-z0-9_]+")),
    )
    if "root=" in boot.cmdline:
        reader.add("boot.cmdline", "root= is set by the builder")
    return boot


@dataclasses.dataclass(frozen=True, slots=True)
class _Table:
    path: str
    values: Mapping[str, Any]

    def field(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


class _Reader:
    """Takes typed values out of tables and remembers each mistake instead of stopping at it."""

    def __init__(self) -> None:
        self.problems: list[errors.Problem] = []

    def add(self, path: str, message: str) -> None:
        self.problems.append(errors.Problem(path=path, message=message))

    def table(self, raw: object, path: str, known: set[str]) -> _Table:
        if not isinstance(raw, Mapping):
            self.add(path, "must be a table")
            return _Table(path, {})
        table = _Table(path, raw)
        for key in sorted(set(raw) - known):
            self.add(table.field(key), f"unknown key; known are {', '.join(sorted(known))}")
        return table

    def sub(self, top: _Table, key: str, known: set[str], *, optional: bool = False) -> _Table:
        if key not in top.values:
            if not optional:
                self.add(top.field(key), "missing")
            return _Table(top.field(key), {})
        return self.table(top.values[key], top.field(key), known)

    def tables(self, top: _Table, key: str, known: set[str]) -> list[_Table]:
        raw = top.values.get(key, [])
        if not isinstance(raw, list):
            self.add(top.field(key), "must be a list of tables")
            return []
        return [self.table(one, f"{top.field(key)}[{at}]", known) for at, one in enumerate(raw)]

    def text(
        self,
        table: _Table,
        key: str,
        *,
        pattern: re.Pattern[str] | None = None,
        allowed: tuple[str, ...] = (),
        default: str | None = None,
    ) -> str:
        value = table.values.get(key, default)
        if value is None:
            self.add(table.field(key), "missing")
        elif not isinstance(value, str):
            self.add(table.field(key), f"{value!r} is not a text")
        elif allowed and value not in allowed:
            self.add(table.field(key), f"{value!r} is not one of {', '.join(allowed)}")
        elif pattern and not pattern.fullmatch(value):
            self.add(table.field(key), f"{value!r} does not match {pattern.pattern}")
        else:
            return value
        return ""

    def number(
        self, table: _Table, key: str, low: int, high: int, *, default: int | None = None
    ) -> int:
        value = table.values.get(key, default)
        if value is None:
            self.add(table.field(key), "missing")
        elif not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.add(table.field(key), f"{value!r} is not a number from {low} to {high}")
        else:
            return value
        return low

    def flag(self, table: _Table, key: str) -> bool:
        value = table.values.get(key, False)
        if not isinstance(value, bool):
            self.add(table.field(key), f"{value!r} is not true or false")
            return False
        return value

    def words(
        self,
        table: _Table,
        key: str,
        *,
        pattern: re.Pattern[str] | None = None,
        allowed: tuple[str, ...] = (),
        required: bool = False,
    ) -> tuple[str, ...]:
        value = table.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.add(table.field(key), "must be a list of texts")
            return ()
        for at, one in enumerate(value):
            if pattern and not pattern.fullmatch(one):
                self.add(f"{table.field(key)}[{at}]", f"{one!r} does not match {pattern.pattern}")
            if allowed and one not in allowed:
                self.add(f"{table.field(key)}[{at}]", f"{one!r} is not one of {', '.join(allowed)}")
        if required and not value:
            self.add(table.field(key), "must not be empty")
        return tuple(value)

    def time(self, table: _Table, key: str) -> int:
        value = table.values.get(key)
        if not isinstance(value, datetime.datetime) or value.tzinfo is None:
            self.add(table.field(key), "must be a date and time with zone (2026-01-31T00:00:00Z)")
            return 0
        return int(value.timestamp())
