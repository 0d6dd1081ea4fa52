"""Recipes: what is refused, and that every mistake is told at once."""

import pytest

from images import recipe
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
