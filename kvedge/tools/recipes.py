"""What a tool is and how it comes about: the types of the catalogue."""

from __future__ import annotations

import dataclasses

__all__ = [
    "Asked",
    "Debian",
    "Family",
    "GoFile",
    "GoFolder",
    "GoMain",
    "Manifests",
    "Packaged",
    "Tool",
    "Version",
]

Version = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GoMain:
    """A program that Go builds."""

    module: str
    """Folder below tools/ that holds its go.mod and go.sum."""
    package: str
    stamps: tuple[str, ...] = ()
    """Values of the linker's -X option, by which a program learns its version."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GoFile:
    """A script that lies in one of the modules that a build downloads."""

    module: str
    inside: str
    """The Go module that holds the file."""
    path: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GoFolder:
    """A folder of one of the modules that a build downloads, with all that is in it."""

    module: str
    inside: str
    """The Go module that holds the folder."""
    path: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """One JSON object that two programs print together: KubeVirt's and CDI's objects."""

    kubevirt: GoMain
    cdi: GoMain
    version: str
    namespace: str = "kubevirt"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A program of the Debian packages that its family unpacks."""

    path: str
    wrapped: bool = False
    """It needs the shared libraries that were unpacked with it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a program on PATH tells its version."""

    arguments: tuple[str, ...]
    pattern: str = r"v?(\d+\.\d+\.\d+)"
    """Finds the version in the output; group 1 is dotted numbers."""
    program: str = ""
    """The neighbour in the same folder that is asked, where the program itself cannot tell."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Debian:
    """Packages to unpack, and the suites of the host's Debian mirror that have them."""

    suites: tuple[str, ...]
    packages: tuple[str, ...]
    """Names as apt-get takes them, such as `e2fsprogs/bookworm-backports`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One program, file or folder."""

    name: str
    recipe: GoMain | GoFile | GoFolder | Manifests | Packaged
    asked: Asked | None = None
    """None: it is never taken from PATH."""
    plugin: str = ""
    """Folder below PULUMI_HOME/plugins that may hold it already."""

    @property
    def file(self) -> str:
        """Where it is, relative to its family's folder."""
        match self.recipe:
            case Manifests():
                return f"{self.name}.json"
            case GoFolder():
                return self.name
            case _:
                return f"bin/{self.name}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Tools that are obtained together."""

    name: str
    version: str
    at_least: Version
    """The lowest version on PATH that fits."""
    below: Version
    """The first version on PATH that no longer fits."""
    tools: tuple[Tool, ...]
    debian: Debian | None = None
    extra: bool = False
    """Only tests and benchmarks use it, so it is built when it is named and not with all others."""
    seconds: int = 5
    """How long a build takes on two cores with nothing cached, downloads included (measured)."""
    mebibytes: int = 50
    """Disk that a build needs while it runs, Go's caches included (measured)."""
    kept_mebibytes: int = 10
    """Disk that the results take."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Folders below tools/ that the family is built from."""
        found: set[str] = set()
        for tool in self.tools:
            if isinstance(tool.recipe, Manifests):
                found |= {tool.recipe.kubevirt.module, tool.recipe.cdi.module}
            elif isinstance(tool.recipe, GoMain | GoFile | GoFolder):
                found.add(tool.recipe.module)
        return tuple(sorted(found))
