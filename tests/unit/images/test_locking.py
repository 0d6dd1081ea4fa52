"""Locks: read as written, part of the key, compared by version."""

import dataclasses

import pytest

from images import locking, plan, recipe
from kvedge import errors

LOCK = locking.Lock(recipe="debian-12-edge", packages=(("bash", "5.2-1"), ("libstdc++6", "12")))


def test_reads_what_it_writes():
    """A lock survives its text."""
    assert locking.parse(locking.render(LOCK), subject="x") == LOCK


def test_no_lock_file_is_no_lock(tmp_path):
    """A recipe without a lock beside it has none; a broken one is an error."""
    file = tmp_path / "a.lock"
    assert locking.read(file) is None
    file.write_text("packages = 7")
    with pytest.raises(errors.SpecError, match="lock"):
        locking.read(file)


def test_preferences_hold_versions():
    """Apt is told to take each locked version, even downwards."""
    assert "Package: bash\nPin: version 5.2-1\nPin-Priority: 1001\n" in locking.preferences(LOCK)


def test_compare_names_each_difference():
    """New, gone and changed packages are told, equal ones are not."""
    changes = locking.compare({"a": "1", "b": "1", "c": "1"}, {"b": "1", "c": "2", "d": "1"})
    assert [(one.package, one.before, one.after) for one in changes] == [
        ("a", "1", ""), ("c", "1", "2"), ("d", "", "1"),
    ]  # fmt: skip


def test_a_lock_changes_the_key():
    """Locked and free images have different names."""
    hooks = dict.fromkeys(("customize.sh", "essential.sh", "layer.sh", "unpack.sh"), b"")
    assets = plan.Assets(overlays={"guest": {}}, hooks=hooks, local_packages={"edgesim": "0"})
    free = dataclasses.replace(recipe.load("debian-12-edge"), lock=None)
    locked = dataclasses.replace(free, lock=LOCK)
    assert plan.plan(free, assets).key != plan.plan(locked, assets).key


def test_a_recipe_of_ones_own_takes_its_lock(tmp_path):
    """A path names a recipe; the lock beside it belongs to it."""
    import importlib.resources

    text = (importlib.resources.files("images") / "recipes/debian-12-edge.toml").read_text()
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "mine.lock").write_text(locking.render(LOCK))
    assert recipe.load(str(tmp_path / "mine.toml")).lock == LOCK
