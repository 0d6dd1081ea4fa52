"""The catalogue agrees with the Go modules and with the Python dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from kvedge.tools import layout
from kvedge.tools.catalogue import FAMILIES, GO_MINIMUM
from kvedge.tools.recipes import GoFile, GoFolder, GoMain

SOURCES = layout.sources_dir()
VERSIONS = {family.name: family.version for family in FAMILIES}


def test_names_are_unique():
    """A name belongs to one tool."""
    names = [tool.name for family in FAMILIES for tool in family.tools]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_has_hashed_sources(family):
    """Each Go module has a go.mod that the minimal Go can read, and a go.sum."""
    for module in family.modules:
        text = (SOURCES / module / "go.mod").read_text()
        line = re.search(r"^go (\d+)\.(\d+)", text, re.MULTILINE)
        assert line
        assert (int(line[1]), int(line[2])) <= GO_MINIMUM
        assert (SOURCES / module / "go.sum").stat().st_size > 1000
    for tool in family.tools:
        if isinstance(tool.recipe, GoMain) and tool.recipe.package.startswith("."):
            assert list((SOURCES / tool.recipe.module / tool.recipe.package).glob("*.go"))
        if isinstance(tool.recipe, GoFile | GoFolder):
            assert tool.recipe.inside in (SOURCES / tool.recipe.module / "go.mod").read_text()


@pytest.mark.parametrize(
    ("module", "required", "family"),
    [
        ("etcd", "go.etcd.io/etcd/server/v3", "etcd"),
        ("kube", "k8s.io/kubernetes", "kube"),
        ("kubevirt", "kubevirt.io/kubevirt", "kubevirt"),
        ("pulumi", "github.com/pulumi/pulumi/pkg/v3", "pulumi"),
        ("flux", "github.com/fluxcd/kustomize-controller", "flux"),
        ("flux", "github.com/fluxcd/source-controller", "flux"),
        ("flux", "filippo.io/age", "age"),
        ("flux", "github.com/getsops/sops/v3", "sops"),
    ],
)
def test_versions_are_those_of_the_modules(module, required, family):
    """The version that the catalogue tells is the one that go.mod requires."""
    text = (SOURCES / module / "go.mod").read_text()
    assert f"{required} v{VERSIONS[family]}" in text


def test_versions_fit_their_own_range():
    """What a build gives would be accepted on PATH."""
    for family in FAMILIES:
        version = tuple(int(part) for part in family.version.split("."))
        assert family.at_least <= version < family.below


def test_pulumi_packages_follow_the_programs():
    """The Python packages of the program are of the same versions as the CLI and the provider."""
    file = Path(__file__).parents[3] / "pyproject.toml"
    extras = tomllib.loads(file.read_text())["project"]["optional-dependencies"]["infra"]
    assert f"pulumi=={VERSIONS['pulumi']}" in extras
    assert f"pulumi-kubernetes=={VERSIONS['k8sprovider']}" in extras
