"""Recipes: what is refused, and that every mistake is told at once."""

import pytest

from images import content, recipe
from kvedge import errors


def test_shipped_recipes_are_right():
    """Each shipped recipe parses, and the disk that users get is among them."""
    assert "debian-12-edge" in recipe.names()
    for name in (*recipe.names(), "python-container"):
        assert recipe.load(name).name == name


def test_tells_all_mistakes_at_once():
    """A recipe with many mistakes gives one error with a path for each."""
    text = """
        name = "Bad Name"
        os = "slackware"
        release = "bookworm"
        arch = "amd64"
        epoch = "yesterday"
        disk_mib = 1
        colour = "red"
        [apt]
        suites = []
        components = ["main"]
        keyring = "relative"
        mirror = "ftp://x"
        security_mirror = "http://x"
        [[layers]]
        name = "a"
        packages = ["Not A Package"]
        [[layers]]
        name = "a"
        [[users]]
        name = "edge"
        uid = 12
        [content]
        enable = ["a.service"]
        mask = ["a.service", "nonsense"]
        [boot]
        cmdline = "root=/dev/vda"
    """
    with pytest.raises(errors.SpecError) as caught:
        recipe.parse(text)
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {
        "name", "os", "epoch", "disk_mib", "colour", "apt.suites", "apt.keyring", "apt.mirror",
        "layers[0].packages[0]", "layers[1]", "layers[1].name", "users[0].uid", "content.mask",
        "content.mask[1]", "boot.cmdline",
    }  # fmt: skip


def test_broken_toml_is_a_spec_error():
    """Text that is no TOML is told as the user's mistake."""
    with pytest.raises(errors.SpecError, match="toml"):
        recipe.parse("name = ")


@pytest.mark.parametrize("name", ["no-such", "../etc/passwd", ""])
def test_unknown_recipe(name: str):
    """An unknown name says which recipes there are."""
    with pytest.raises(errors.SpecError, match="debian-12-edge"):
        recipe.load(name)


OWN = """
name = "plant"
os = "debian"
release = "bookworm"
arch = "amd64"
epoch = 2026-01-01T00:00:00Z
[apt]
suites = ["bookworm"]
components = ["main"]
keyring = "/k"
mirror = "http://m.example"
security_mirror = "http://m.example"
[[layers]]
name = "base"
packages = ["linux-image-{arch}"]
"""
SOURCE = """
[[sources]]
name = "vendor"
uri = "https://vendor.example"
suite = "stable"
components = ["main"]
key = "./vendor.asc"
fingerprint = "0123456789ABCDEF0123456789ABCDEF01234567"
[[layers]]
name = "vendor"
sources = ["vendor"]
packages = ["agent=1.0"]
debs = ["./own_1_amd64.deb"]
"""


def test_another_architecture_is_a_name(tmp_path):
    """`NAME@arm64` has that architecture's packages and a lock file of its own."""
    (tmp_path / "plant.toml").write_text(OWN)
    (tmp_path / "plant@arm64.lock").write_text('recipe = "plant"\n[packages]\na = "1"\n')
    plain = recipe.load(str(tmp_path / "plant.toml"))
    other = recipe.load(str(tmp_path / "plant.toml@arm64"))
    assert (plain.arch, plain.layers[0].packages, plain.lock) == (
        "amd64", ("linux-image-amd64",), None,
    )  # fmt: skip
    assert (other.arch, other.layers[0].packages) == ("arm64", ("linux-image-arm64",))
    assert other.lock is not None
    with pytest.raises(errors.SpecError, match="arch: 'riscv64'"):
        recipe.load(str(tmp_path / "plant.toml@riscv64"))


def test_sources_and_files_of_ones_own(tmp_path):
    """Paths start beside the recipe; a layer may use only sources that are described."""
    (tmp_path / "plant.toml").write_text(OWN + SOURCE)
    plant = recipe.load(str(tmp_path / "plant.toml"))
    assert plant.place(plant.layers[1].debs[0]) == tmp_path / "own_1_amd64.deb"
    assert plant.place(plant.sources[0].key) == tmp_path / "vendor.asc"
    with pytest.raises(errors.SpecError) as caught:
        recipe.parse(OWN + SOURCE.replace('["vendor"]', '["other"]').replace('01234567"', '"'))
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"layers[1].sources[0]", "sources[0].fingerprint"}


def test_the_base_is_the_distributions_alone():
    """Vendors' sources and package files come in later layers."""
    text = OWN.replace('packages = ["linux', 'debs = ["./x.deb"]\npackages = ["linux')
    with pytest.raises(errors.SpecError, match=r"layers\[0\]"):
        recipe.parse(text)


def test_an_overlay_of_ones_own(tmp_path):
    """A folder beside the recipe is laid over the tree; one that is not there is told."""
    (tmp_path / "files" / "etc").mkdir(parents=True)
    (tmp_path / "files" / "etc" / "plant.conf").write_text("x")
    text = OWN + '[content]\noverlays = ["./files", "./none"]\n'
    (tmp_path / "plant.toml").write_text(text)
    plant = recipe.load(str(tmp_path / "plant.toml"))
    assert content.overlay_files("./files", plant) == {"etc/plant.conf": b"x"}
    with pytest.raises(errors.SpecError, match="no folder"):
        content.overlay_files("./none", plant)
