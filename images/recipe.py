"""What an image is made of: a TOML recipe, checked as a whole and frozen.

The text of a recipe is the only source of an image's content beside the overlays that it names;
nothing of the building machine goes in. Shipped recipes are in `images/recipes`.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
import tomllib
from pathlib import Path

from images import locking
from images.reading import Reader, Table
from kvedge import errors

__all__ = [
    "ARCHES",
    "Apt",
    "Boot",
    "Content",
    "Layer",
    "Recipe",
    "Source",
    "User",
    "load",
    "names",
    "parse",
]

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+~:-]+)?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_UNIT = re.compile(r"[A-Za-z0-9@:_.\\-]+\.(automount|mount|path|service|socket|target|timer)")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
ARCHES = {
    "amd64": {"multiarch": "x86_64-linux-gnu", "console": "ttyS0"},
    "arm64": {"multiarch": "aarch64-linux-gnu", "console": "ttyAMA0"},
}
"""Debian's name of each architecture, and what `{multiarch}` and `{console}` stand for on it."""
_SUITE = re.compile(r"[a-z0-9][a-z0-9./-]*")
_FINGERPRINT = re.compile(r"[0-9A-F]{40}")
_KEY_PLACE = re.compile(r"https://\S+|/[\w./+-]+|\./[\w./+-]+")
_DEB = re.compile(r"(/|\./)[\w./+~-]+\.deb")
_OVERLAY = re.compile(rf"{_NAME.pattern}|\./[\w./+-]+")
_KINDS = ("disk", "container")
_OSES = ("debian", "ubuntu")
_LOCAL_PACKAGES = ("edgesim",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Apt:
    """Where packages come from."""

    suites: tuple[str, ...]
    """Suites of the archive; those that end in `-security` come from the security mirror."""
    components: tuple[str, ...]
    """Components of the archive, such as `main`."""
    keyring: str
    """Path of the archive's keyring on the building machine and in the image."""
    mirror: str
    """Used when the building machine has no source of its own for these suites."""
    security_mirror: str
    """The same for suites that end in `-security`."""
    ports_mirror: str = ""
    """Used in place of both mirrors for architectures that the archive keeps elsewhere."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An apt source beside the distribution's own, such as a vendor's."""

    name: str
    """What layers call it; also the name of its file in the image."""
    uri: str
    """Address in front of `dists/`."""
    suite: str
    """One suite of it."""
    components: tuple[str, ...]
    """Components of it, such as `main`."""
    key: str
    """Where its signing key is: an https address, or a path that is absolute or begins with `./`
    (beside the recipe)."""
    fingerprint: str
    """Of that key, 40 hexadecimal digits; another key is refused."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Packages that are installed together and cached as one step; the first layer is the base."""

    name: str
    """What progress, logs and provenance call it."""
    packages: tuple[str, ...] = ()
    """Names as apt takes them, also `name=version`; `{arch}` stands for the architecture."""
    sources: tuple[str, ...] = ()
    """Names of further apt sources that this layer needs."""
    debs: tuple[str, ...] = ()
    """Package files, absolute or `./` beside the recipe; their content is part of the key."""
    local_packages: tuple[str, ...] = ()
    """Packages that kvedge makes itself: `edgesim`, the stand-in runtime."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account that is baked in; it has no password."""

    name: str
    """Of the account and of its group."""
    uid: int
    """From 1000 to 59999; the group has the same number."""
    groups: tuple[str, ...] = ()
    """Further groups, joined where they exist."""
    sudo: bool = False
    """Whether it may become root without a password."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is laid over the packages."""

    overlays: tuple[str, ...] = ()
    """Folders of files: names in `images/overlays`, or `./` beside the recipe; later ones win."""
    hostname: str = "localhost"
    """Name of a machine that is given none."""
    enable: tuple[str, ...] = ()
    """Units that start at boot."""
    mask: tuple[str, ...] = ()
    """Units that never start."""
    drop: tuple[str, ...] = ()
    """Beginnings of paths, without leading slash, that packages bring and nobody needs;
    `{multiarch}` stands for the architecture's folder of libraries."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """How the machine starts."""

    cmdline: str = ""
    """Kernel arguments beside root=; `{console}` stands for the serial console."""
    initrd_modules: tuple[str, ...] = ()
    """Kernel modules that reach the root disk; those that are built in are passed over."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One image."""

    name: str
    """Of the image; file names and labels use it."""
    kind: str
    """`disk`, or `container` for a base layer without kernel and init."""
    os: str
    """`debian` or `ubuntu`."""
    release: str
    """The distribution's name of the release."""
    arch: str
    """`amd64` or `arm64`; the name `RECIPE@arm64` asks for the other one."""
    epoch: int
    """Seconds since 1970; no file in the image is newer (SOURCE_DATE_EPOCH)."""
    revision: int
    """Part of the key; raised to get the archive's packages of today."""
    disk_mib: int
    """Size of the disk before the machine grows it."""
    apt: Apt
    layers: tuple[Layer, ...]
    sources: tuple[Source, ...] = ()
    users: tuple[User, ...] = ()
    content: Content = Content()
    boot: Boot = Boot()
    lock: locking.Lock | None = None
    """Versions of the lock file beside the recipe, if there is one."""
    folder: Path | None = None
    """Where paths that begin with `./` start; None for a shipped recipe."""

    def place(self, path: str) -> Path:
        """Return a path that the recipe names."""
        return (self.folder or Path()) / path


def names() -> tuple[str, ...]:
    """Return the names of the shipped recipes of disks."""
    folder = importlib.resources.files("images") / "recipes"
    found = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))
    return tuple(name for name in found if not name.endswith("-container"))


def load(name: str, *, folder: Path | None = None, arch: str = "") -> Recipe:
    """Read a recipe, and the lock beside it: by name, from a folder or else from the shipped ones.

    A name that ends in `.toml` is a path of a recipe of one's own. `name@arm64` or `arch` asks for
    another architecture than the recipe's; that has a lock of its own (`NAME@arm64.lock`).
    """
    stem, _, wanted = name.rpartition("@")
    if stem and wanted.isalnum():
        name, arch = stem, arch or wanted
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
    recipe = parse(file.read_text(encoding="utf-8"), subject=f"recipe {name!r}", arch=arch)
    lock = f"{name}@{arch}.lock" if arch else f"{name}.lock"
    return dataclasses.replace(recipe, lock=locking.read(Path(str(source / lock))), folder=folder)


def parse(text: str, *, subject: str = "recipe", arch: str = "") -> Recipe:
    """Parse a recipe's text, for another architecture than its own if `arch` is given.

    Raises:
        SpecError: with every mistake that was found.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise errors.SpecError(
            subject, [errors.Problem(path="toml", message=str(cause))]
        ) from cause
    reader = Reader()
    top = reader.table(raw, "", {
        "kind", "name", "os", "release", "arch", "epoch", "revision", "disk_mib",
        "apt", "sources", "layers", "users", "content", "boot",
    })  # fmt: skip
    arch = arch or str(top.values.get("arch", ""))
    reader.words_for = {"arch": arch, **ARCHES.get(arch, {})}
    chosen = Table("", {**top.values, "arch": arch} if arch else top.values)
    sources = _sources(reader, top)
    recipe = Recipe(
        name=reader.text(top, "name", pattern=_NAME),
        kind=reader.text(top, "kind", allowed=_KINDS, default="disk"),
        os=reader.text(top, "os", allowed=_OSES),
        release=reader.text(top, "release", pattern=_NAME),
        arch=reader.text(chosen, "arch", allowed=tuple(ARCHES)),
        epoch=reader.time(top, "epoch"),
        revision=reader.number(top, "revision", 1, 1_000_000, default=1),
        disk_mib=reader.number(top, "disk_mib", 512, 1 << 20, default=2048),
        apt=_apt(reader, top),
        layers=_layers(reader, top, {one.name for one in sources}),
        sources=sources,
        users=_users(reader, top),
        content=_content(reader, top),
        boot=_boot(reader, top),
    )
    if reader.problems:
        raise errors.SpecError(subject, sorted(reader.problems))
    return recipe


def _apt(reader: Reader, top: Table) -> Apt:
    table = reader.sub(top, "apt", {
        "suites", "components", "keyring", "mirror", "security_mirror", "ports_mirror",
    })  # fmt: skip
    address = re.compile(r"https?://\S+")
    return Apt(
        suites=reader.words(table, "suites", pattern=_NAME, required=True),
        components=reader.words(table, "components", pattern=_NAME, required=True),
        keyring=reader.text(table, "keyring", pattern=re.compile(r"/[\w./-]+")),
        mirror=reader.text(table, "mirror", pattern=address),
        security_mirror=reader.text(table, "security_mirror", pattern=address),
        ports_mirror=reader.text(
            table, "ports_mirror", pattern=re.compile(rf"({address.pattern})?"), default=""
        ),
    )


def _sources(reader: Reader, top: Table) -> tuple[Source, ...]:
    known = {"name", "uri", "suite", "components", "key", "fingerprint"}
    found: list[Source] = []
    for table in reader.tables(top, "sources", known):
        source = Source(
            name=reader.text(table, "name", pattern=_NAME),
            uri=reader.text(table, "uri", pattern=re.compile(r"(https?|file)://\S+")).rstrip("/"),
            suite=reader.text(table, "suite", pattern=_SUITE),
            components=reader.words(table, "components", pattern=_NAME, required=True),
            key=reader.text(table, "key", pattern=_KEY_PLACE),
            fingerprint=reader.text(table, "fingerprint", pattern=_FINGERPRINT),
        )
        if source.name in {other.name for other in found}:
            reader.add(f"{table.path}.name", f"{source.name!r} is there twice")
        found.append(source)
    return tuple(found)


def _layers(reader: Reader, top: Table, sources: set[str]) -> tuple[Layer, ...]:
    found = []
    known = {"name", "packages", "sources", "debs", "local_packages"}
    for table in reader.tables(top, "layers", known):
        layer = Layer(
            name=reader.text(table, "name", pattern=_NAME),
            packages=reader.words(table, "packages", pattern=_PACKAGE),
            sources=reader.words(table, "sources", pattern=_NAME),
            debs=reader.words(table, "debs", pattern=_DEB),
            local_packages=reader.words(table, "local_packages", allowed=_LOCAL_PACKAGES),
        )
        if not layer.packages and not layer.local_packages and not layer.debs:
            reader.add(table.path, "a layer needs packages")
        if not found and (layer.sources or layer.debs or layer.local_packages):
            reader.add(table.path, "the first layer is made of the distribution's packages alone")
        for at, name in enumerate(layer.sources):
            if name not in sources:
                reader.add(f"{table.path}.sources[{at}]", f"no [[sources]] is called {name!r}")
        if layer.name in {other.name for other in found}:
            reader.add(f"{table.path}.name", f"{layer.name!r} is there twice")
        found.append(layer)
    if not found:
        reader.add("layers", "at least one layer is needed")
    return tuple(found)


def _users(reader: Reader, top: Table) -> tuple[User, ...]:
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


def _content(reader: Reader, top: Table) -> Content:
    table = reader.sub(
        top, "content", {"overlays", "hostname", "enable", "mask", "drop"}, optional=True
    )
    content = Content(
        overlays=reader.words(table, "overlays", pattern=_OVERLAY),
        hostname=reader.text(table, "hostname", pattern=_NAME, default="localhost"),
        enable=reader.words(table, "enable", pattern=_UNIT),
        mask=reader.words(table, "mask", pattern=_UNIT),
        drop=reader.words(table, "drop", pattern=re.compile(r"[\w][\w./+-]*")),
    )
    for unit in sorted({*content.enable} & {*content.mask}):
        reader.add("content.mask", f"{unit!r} is enabled as well")
    return content


def _boot(reader: Reader, top: Table) -> Boot:
    table = reader.sub(top, "boot", {"cmdline", "initrd_modules"}, optional=True)
    boot = Boot(
        cmdline=reader.text(table, "cmdline", default=""),
        initrd_modules=reader.words(table, "initrd_modules", pattern=re.compile(r"[a-z0-9_]+")),
    )
    if "root=" in boot.cmdline:
        reader.add("boot.cmdline", "root= is set by the builder")
    return boot
