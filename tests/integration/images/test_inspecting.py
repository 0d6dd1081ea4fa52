"""Looking into a really built image: its schema, its packages, its clean tree."""

import click.testing
import pytest

import cloudinit
import images
from images import inspecting
from kvedge import errors
from kvedge.cli.cloudinit import cloudinit as cloudinit_commands

from .conftest import FAMILIES

pytestmark = pytest.mark.timeout(1200)
NAME = "debian-12-edge"


@pytest.fixture(scope="module")
def built():
    """The default image."""
    return images.build(NAME)


@pytest.fixture(scope="module")
def schema(built):
    """The schema of the image's own cloud-init."""
    return inspecting.schema(NAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_first_boot_data_is_valid(schema, family):
    """Each documented family renders, passes the guest's own schema and has none of the traps."""
    text = cloudinit.render(cloudinit.UserData(hostname="edge-1", extra=FAMILIES[family]))
    assert cloudinit.lint(text) == []
    assert cloudinit.validate(text, schema) == []


def test_rendered_data_is_accepted(schema):
    """Everything that render() can print passes the guest's own schema."""
    data = cloudinit.UserData(
        hostname="edge-1",
        users=(cloudinit.User(name="ops", authorized_keys=("ssh-ed25519 A",), sudo=True),),
        files=(cloudinit.File(path="/a", content="b"),),
        packages=("jq",),
        commands=(("true",),),
        ntp_servers=("time.example",),
        timezone="UTC",
        https_proxy="http://proxy:3128",
    )
    assert cloudinit.validate(cloudinit.render(data), schema) == []


def test_mistakes_are_found(schema):
    """A key that the guest does not know, and a wrong type, are told with their path."""
    text = "#cloud-config\nruncmd: 7\nnonsense: true\n"
    paths = [problem.path for problem in cloudinit.validate(text, schema)]
    assert paths == ["nonsense", "runcmd"]


def test_the_tree_is_clean(built):
    """No host key, machine id, password or secret is in the image."""
    assert inspecting.scan(NAME) == []


def test_facts_are_complete(built):
    """Inspecting shows key, digest, layers, packages and attached documents."""
    facts = inspecting.inspect(NAME)
    assert facts["digest"] == built.digest
    assert facts["key"] == images.key(NAME) == built.key
    assert {"openssh-server", "docker.io", "aziot-edge"} <= {p["name"] for p in facts["packages"]}
    assert [one["type"] for one in facts["attached"]] == [
        "application/spdx+json",
        "application/vnd.in-toto+json",
    ]
    assert built.size < 210 * 10**6


def test_a_time_zone_that_the_image_lacks_is_told(built, tmp_path):
    """The command looks the zone up in the very image, since cloud-init would fail on it."""
    file = tmp_path / "user-data.yaml"
    file.write_text("#cloud-config\ntimezone: Europe/Paris\n")
    result = click.testing.CliRunner().invoke(cloudinit_commands, ["check", str(file)])
    assert isinstance(result.exception, errors.SpecError)
    assert [problem.path for problem in result.exception.problems] == ["timezone"]
