"""What can be obtained, as data: versions, where the sources are, how a program tells its version.

A family is built together and has one folder in the cache. Changing anything here, or any file of
a family's Go modules, gives the family a new folder.
"""

from __future__ import annotations

import dataclasses
from typing import Final

__all__ = [
    "FAMILIES",
    "GO_MINIMUM",
    "Asked",
    "Debian",
    "Family",
    "GoFile",
    "GoMain",
    "Manifests",
    "Packaged",
    "Tool",
]

Version = tuple[int, ...]

GO_MINIMUM: Final[Version] = (1, 26)
"""The newest `go` line of the modules in tools/*/go.mod."""


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
    """One program or file."""

    name: str
    recipe: GoMain | GoFile | Manifests | Packaged
    asked: Asked | None = None
    """None: it is never taken from PATH."""
    plugin: str = ""
    """Folder below PULUMI_HOME/plugins that may hold it already."""

    @property
    def file(self) -> str:
        """Where it is, relative to its family's folder."""
        return f"{self.name}.json" if isinstance(self.recipe, Manifests) else f"bin/{self.name}"


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
            elif isinstance(tool.recipe, GoMain | GoFile):
                found.add(tool.recipe.module)
        return tuple(sorted(found))


_KUBERNETES = "1.36.1"
_KUBEVIRT = "1.8.2"
_PULUMI = "3.259.0"
_LANGUAGE_HOST = "3.187.0"
_PROVIDER = "4.25.0"
_VIRTUAL_KUBELET = "1.13.0"
_HELM = "4.3.1"

_KUBERNETES_STAMPS = tuple(
    f"k8s.io/component-base/version.{name}={value}"
    for name, value in (
        ("gitVersion", f"v{_KUBERNETES}"),
        ("gitMajor", "1"),
        ("gitMinor", "36"),
        ("gitTreeState", "clean"),
        ("buildDate", "1970-01-01T00:00:00Z"),
    )
)
_KUBEVIRT_STAMPS = (f"kubevirt.io/client-go/version.gitVersion=v{_KUBEVIRT}",)
_PULUMI_STAMP = "github.com/pulumi/pulumi/sdk/v3/go/common/version.Version"
_PROVIDER_STAMP = "github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/version.Version"


def _kubernetes(name: str, asked: Asked) -> Tool:
    package = f"k8s.io/kubernetes/cmd/{name}"
    recipe = GoMain(module="kube", package=package, stamps=_KUBERNETES_STAMPS)
    return Tool(name=name, recipe=recipe, asked=asked)


def _kubevirt(name: str) -> Tool:
    package = f"kubevirt.io/kubevirt/cmd/{name}"
    recipe = GoMain(module="kubevirt", package=package, stamps=_KUBEVIRT_STAMPS)
    # virt-api and virt-controller have no option that prints a version.
    asked = Asked(
        arguments=("version", "--client"), pattern=r'GitVersion:"v([\d.]+)"', program="virtctl"
    )
    return Tool(name=name, recipe=recipe, asked=asked)


def _pulumi(name: str, recipe: GoMain | GoFile) -> Tool:
    # The CLI, its language host and the two scripts only work side by side.
    return Tool(name=name, recipe=recipe, asked=Asked(arguments=("version",), program="pulumi"))


FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        name="docker-registry",
        version="2.8",
        at_least=(2, 8),
        below=(3,),
        tools=(
            Tool(
                name="docker-registry",
                recipe=Packaged(path="usr/bin/docker-registry"),
                asked=Asked(arguments=("--version",)),
            ),
        ),
        debian=Debian(suites=("bookworm",), packages=("docker-registry",)),
    ),
    Family(
        name="e2fsprogs",
        version="1.47.1",
        # mke2fs -d with a tar archive came with 1.47.1 (e2fsprogs release notes).
        at_least=(1, 47, 1),
        below=(2,),
        tools=tuple(
            Tool(
                name=name,
                recipe=Packaged(path=f"sbin/{name}", wrapped=True),
                asked=Asked(arguments=("-V",), pattern=rf"{name} (\d+\.\d+(?:\.\d+)?)"),
            )
            for name in ("debugfs", "e2fsck", "mke2fs")
        ),
        debian=Debian(
            suites=("bookworm", "bookworm-backports"),
            packages=(
                "e2fsprogs/bookworm-backports",
                "libcom-err2/bookworm-backports",
                "libext2fs2/bookworm-backports",
                "libss2/bookworm-backports",
                # mke2fs reads tar archives by libarchive, which it loads when it needs it; these
                # are the parts of it that a minimal system lacks.
                "libarchive13/bookworm",
                "libicu72/bookworm",
                "libnettle8/bookworm",
                "libxml2/bookworm",
            ),
        ),
    ),
    Family(
        name="etcd",
        version="3.6.14",
        at_least=(3, 6),
        below=(3, 7),
        tools=(
            Tool(
                name="etcd",
                recipe=GoMain(module="etcd", package="go.etcd.io/etcd/server/v3"),
                asked=Asked(arguments=("--version",), pattern=r"etcd Version: ([\d.]+)"),
            ),
        ),
        seconds=49,
        mebibytes=1200,
        kept_mebibytes=30,
    ),
    Family(
        name="kube",
        version=_KUBERNETES,
        at_least=(1, 36),
        below=(1, 37),
        tools=(
            *(
                _kubernetes(name, Asked(arguments=("--version",), pattern=r"Kubernetes v([\d.]+)"))
                for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
            ),
            _kubernetes("kubectl", Asked(arguments=("version", "--client"))),
        ),
        seconds=279,
        mebibytes=5000,
        kept_mebibytes=330,
    ),
    Family(
        name="kubevirt",
        version=_KUBEVIRT,
        at_least=(1, 8, 2),
        below=(1, 8, 3),
        tools=tuple(_kubevirt(name) for name in ("virt-api", "virt-controller", "virtctl")),
        seconds=130,
        mebibytes=3500,
        kept_mebibytes=200,
    ),
    Family(
        name="manifests",
        version=_KUBEVIRT,
        at_least=(1, 8, 2),
        below=(1, 8, 3),
        tools=(
            Tool(
                name="kubevirt-manifests",
                recipe=Manifests(
                    kubevirt=GoMain(
                        module="kubevirt", package="./manifests", stamps=_KUBEVIRT_STAMPS
                    ),
                    cdi=GoMain(module="cdi", package="./crds"),
                    version=f"v{_KUBEVIRT}",
                ),
            ),
        ),
        seconds=20,
        mebibytes=600,
        kept_mebibytes=4,
    ),
    Family(
        name="pulumi",
        version=_PULUMI,
        at_least=(3, 259),
        below=(3, 260),
        tools=(
            _pulumi(
                "pulumi",
                GoMain(
                    module="pulumi",
                    package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
                    stamps=(f"{_PULUMI_STAMP}=v{_PULUMI}",),
                ),
            ),
            _pulumi(
                "pulumi-language-python",
                GoMain(
                    module="langhost",
                    package="github.com/pulumi/pulumi/sdk/python/cmd/pulumi-language-python/v3",
                    stamps=(f"{_PULUMI_STAMP}=v{_LANGUAGE_HOST}",),
                ),
            ),
            _pulumi(
                "pulumi-language-python-exec",
                GoFile(
                    module="langhost",
                    inside="github.com/pulumi/pulumi/sdk/v3",
                    path="python/cmd/pulumi-language-python-exec",
                ),
            ),
            _pulumi(
                "pulumi-resource-pulumi-python",
                GoFile(
                    module="langhost",
                    inside="github.com/pulumi/pulumi/sdk/v3",
                    path="python/dist/pulumi-resource-pulumi-python",
                ),
            ),
        ),
        seconds=223,
        mebibytes=3500,
        kept_mebibytes=145,
    ),
    Family(
        name="k8sprovider",
        version=_PROVIDER,
        at_least=(4, 25),
        below=(4, 26),
        tools=(
            Tool(
                name="pulumi-resource-kubernetes",
                recipe=GoMain(
                    module="k8sprovider", package=".", stamps=(f"{_PROVIDER_STAMP}={_PROVIDER}",)
                ),
                plugin=f"resource-kubernetes-v{_PROVIDER}",
            ),
        ),
        seconds=392,
        mebibytes=4500,
        kept_mebibytes=160,
    ),
    *(
        Family(
            name=name,
            version=_VIRTUAL_KUBELET,
            at_least=(1, 13),
            below=(1, 14),
            tools=(
                Tool(
                    name=name,
                    recipe=GoMain(module=name, package="."),
                    asked=Asked(arguments=("--version",), pattern=rf"{name} ([\d.]+)"),
                ),
            ),
            extra=True,
            seconds=seconds,
            mebibytes=2500,
            kept_mebibytes=75,
        )
        for name, seconds in (("vke2e", 150), ("vktuned", 90))
    ),
    Family(
        # Debian 12 has no package of Ubuntu's archive keys; the next release's is signed by Debian.
        name="ubuntu-keyring",
        version="2023",
        at_least=(2023,),
        below=(2100,),
        tools=(
            Tool(
                name="ubuntu-archive-keyring",
                recipe=Packaged(path="usr/share/keyrings/ubuntu-archive-keyring.gpg"),
            ),
        ),
        debian=Debian(suites=("trixie",), packages=("ubuntu-keyring",)),
        extra=True,
    ),
    Family(
        name="helm",
        version=_HELM,
        at_least=(3, 14),
        below=(5,),
        tools=(
            Tool(
                name="helm",
                recipe=GoMain(
                    module="helm",
                    package="helm.sh/helm/v4/cmd/helm",
                    stamps=(f"helm.sh/helm/v4/internal/version.version=v{_HELM}",),
                ),
                asked=Asked(arguments=("version", "--short")),
            ),
        ),
        extra=True,
        seconds=120,
        mebibytes=2500,
        kept_mebibytes=60,
    ),
)
"""In the order in which they are built: the quick ones first."""
