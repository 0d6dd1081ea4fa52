"""What apt is told, by recipe: during the build, and in the image."""

import dataclasses
from pathlib import Path

import pytest

from images import content, openpgp, recipe, sources
from kvedge import errors

GOLDEN = Path(__file__).parents[2] / "golden" / "apt"
KEYRING = Path("/keys/archive.gpg")
# A key pair made for this test alone: gpg --quick-generate-key "kvedge test" ed25519.
KEY = (GOLDEN / "example.asc").read_bytes()
FINGERPRINT = (GOLDEN / "example.fingerprint").read_text().strip()


def _build_lines(name, **options):
    wanted = recipe.load(name)
    lines = sources.deb_lines(wanted, KEYRING, environment={}, **options)
    vendor = [
        sources.vendor_line(one, wanted.arch, Path(f"/keys/{one.name}.asc"))
        for one in wanted.sources
    ]
    return "\n".join([*lines, *vendor]) + "\n"


@pytest.mark.parametrize(
    "name", [*recipe.names(), "debian-12-edge@arm64", "ubuntu-24.04-edge@arm64"]
)
def test_apt_configuration(name):
    """The build's sources and the image's own are those of the golden files."""
    assert _build_lines(name) == (GOLDEN / f"{name}.build.list").read_text()
    assert content.apt_sources(recipe.load(name)) == (GOLDEN / f"{name}.sources").read_text()


def test_this_machines_sources_go_before_the_recipes():
    """What this machine's apt has for a suite is used; other suites come from the recipe."""
    machine = {"bookworm": ["http://near.example/debian"]}
    lines = sources.deb_lines(
        recipe.load("debian-12-edge"), KEYRING, machine=machine, environment={}
    )
    assert "http://near.example/debian bookworm main" in lines[0]
    assert "http://deb.debian.org/debian bookworm-updates main" in lines[1]


@pytest.mark.parametrize(
    ("name", "security"),
    [
        ("debian-12-edge", "http://m.example/a-security bookworm-security"),
        ("ubuntu-24.04-edge", "http://m.example/a noble-security"),
    ],
)
def test_a_named_mirror_goes_before_all(name, security):
    """The environment's mirror wins, with security updates where each distribution keeps them."""
    wanted = recipe.load(name)
    environment = {sources.MIRRORS[wanted.os]: "http://m.example/a/"}
    machine = {suite: ["http://near.example/x"] for suite in wanted.apt.suites}
    lines = sources.deb_lines(wanted, KEYRING, machine=machine, environment=environment)
    assert [line for line in lines if "http://m.example/a" in line] == lines
    assert security in lines[-1]


def _source(fingerprint):
    return recipe.Source(
        name="vendor",
        uri="https://vendor.example",
        suite="s",
        components=("main",),
        key="./key.asc",
        fingerprint=fingerprint,
    )


def test_packages_of_a_folder_are_copied():
    """A source on this machine is read by apt, but its packages are opened inside the tree."""
    folder = dataclasses.replace(_source("0" * 40), uri="file:///srv/apt")
    line = sources.vendor_line(folder, "amd64", Path("/k"))
    assert line == "deb [signed-by=/k arch=amd64] copy:///srv/apt s main"


def test_the_stated_key_is_taken_alone(tmp_path):
    """A keyring with the key gives that key, armored, and apt can read it."""
    file = tmp_path / "key.asc"
    file.write_bytes(KEY)
    key = sources.signing_key(_source(FINGERPRINT), file)
    assert openpgp.fingerprints(key) == [FINGERPRINT]
    assert key.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n")


@pytest.mark.parametrize("data", [KEY, b"", b"nonsense", KEY[:200], b"\x99\x01"])
def test_another_key_is_refused(tmp_path, data):
    """A key with another fingerprint, or no key at all, ends the build before apt runs."""
    file = tmp_path / "key.asc"
    file.write_bytes(data)
    with pytest.raises(errors.KvedgeError, match="another one") as caught:
        sources.signing_key(_source("0" * 40), file)
    assert "0" * 40 in caught.value.hint


def test_a_missing_key_is_told(tmp_path):
    """A key that cannot be read says which source's it is."""
    with pytest.raises(errors.KvedgeError, match="'vendor'"):
        sources.signing_key(_source(FINGERPRINT), tmp_path / "none")
