"""What can be obtained, as data: versions, where the sources are, how a program tells its version.

A family is built together and has one folder in the cache. Changing anything here, or any file of
a family's Go modules, gives the family a new folder.
"""

from __future__ import annotations

from typing import Final

from kvedge.tools.recipes import (
    Asked,
    Debian,
    Family,
    GoFile,
    GoFolder,
    GoMain,
    Manifests,
    Packaged,
    Tool,
    Version,
)

__all__ = ["FAMILIES", "GO_MINIMUM"]

GO_MINIMUM: Final[Version] = (1, 26)
"""The newest `go` line of the modules in tools/*/go.mod."""

_KUBERNETES = "1.36.1"
_KUBEVIRT = "1.8.2"
_PULUMI = "3.259.0"
_LANGUAGE_HOST = "3.187.0"
_PROVIDER = "4.25.0"
_VIRTUAL_KUBELET = "1.13.0"
_HELM = "4.3.1"
_FLUX = "1.7.3"
_SOPS = "3.11.0"
_AGE = "1.2.1"

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
    Family(
        # The two controllers of a Flux that fetches from git and applies, as their own releases
        # give them; `-config` is a controller's definitions and rights.
        name="flux",
        version=_FLUX,
        at_least=(1, 7, 3),
        below=(1, 7, 4),
        tools=tuple(
            tool
            for name in ("source-controller", "kustomize-controller")
            for tool in (
                Tool(name=name, recipe=GoMain(module="flux", package=f"github.com/fluxcd/{name}")),
                Tool(
                    name=f"{name}-config",
                    recipe=GoFolder(
                        module="flux", inside=f"github.com/fluxcd/{name}", path="config"
                    ),
                ),
            )
        ),
        extra=True,
        seconds=600,
        mebibytes=6000,
        kept_mebibytes=180,
    ),
    *(
        Family(
            name=name,
            version=version,
            at_least=at_least,
            below=below,
            tools=(
                Tool(
                    name=program,
                    recipe=GoMain(module="flux", package=package),
                    asked=Asked(arguments=asked),
                ),
            ),
            extra=True,
            seconds=seconds,
            mebibytes=3000,
            kept_mebibytes=kept,
        )
        for name, version, at_least, below, program, package, asked, seconds, kept in (
            (
                "age",
                _AGE,
                (1, 1),
                (2,),
                "age-keygen",
                "filippo.io/age/cmd/age-keygen",
                ("--version",),
                10,
                5,
            ),
            (
                "sops",
                _SOPS,
                (3, 9),
                (4,),
                "sops",
                "github.com/getsops/sops/v3/cmd/sops",
                ("--version", "--disable-version-check"),
                120,
                60,
            ),
        )
    ),
)
"""In the order in which they are built: the quick ones first."""
