"""Keys of steps change exactly when an input does."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from images import plan, recipe


def _assets(**changes):
    values = {
        "overlays": {"guest": {"etc/motd": b"hello"}},
        "hooks": {
            name: name.encode()
            for name in ("container.sh", "customize.sh", "essential.sh", "layer.sh", "unpack.sh")
        },
        "local_packages": {"edgesim": "00"},
    }
    return plan.Assets(**{**values, **changes})


BASE = recipe.load("debian-12-edge")


def _keys(changed=BASE, assets=None):
    return [step.key for step in plan.plan(changed, assets or _assets()).steps]


def test_same_input_same_keys():
    """A plan is a function of its input alone."""
    assert _keys() == _keys()


def test_an_overlay_changes_only_the_disk():
    """A changed file of an overlay leaves all package layers in the cache."""
    before, after = _keys(), _keys(assets=_assets(overlays={"guest": {"etc/motd": b"bye"}}))
    assert before[:-2] == after[:-2]
    assert before[-2] != after[-2]
    assert before[-1] != after[-1]


def test_a_local_package_changes_its_layer_and_all_above():
    """A new stand-in runtime leaves the layers below it in the cache."""
    before, after = _keys(), _keys(assets=_assets(local_packages={"edgesim": "01"}))
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False, False]


def test_a_container_hook_does_not_touch_disks():
    """Disks do not depend on the hook that only containers use."""
    hooks = {**_assets().hooks, "container.sh": b"other"}
    assert _keys() == _keys(assets=_assets(hooks=hooks))


def test_the_mirror_does_not_count_for_packages():
    """Where packages come from changes no layer's key; the image's own sources name the mirror."""
    apt = dataclasses.replace(BASE.apt, mirror="http://elsewhere.example/debian")
    before, after = _keys(), _keys(dataclasses.replace(BASE, apt=apt))
    assert before[:-2] == after[:-2]
    assert before[-2] != after[-2]


def test_a_vendors_source_counts_for_the_layers_that_use_it():
    """Another key of a source changes its layers, and leaves the layers below in the cache."""
    ubuntu = recipe.load("ubuntu-24.04-edge")
    assets = _assets(overlays={"guest": {}})
    (source,) = ubuntu.sources
    other = dataclasses.replace(source, fingerprint="0" * 40)
    before = _keys(ubuntu, assets)
    after = _keys(dataclasses.replace(ubuntu, sources=(other,)), assets)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, *[False] * 4]
    moved = dataclasses.replace(source, key="./microsoft.asc")
    same = _keys(dataclasses.replace(ubuntu, sources=(moved,)), assets)
    assert before[:-2] == same[:-2]


def test_a_package_file_counts_by_its_content():
    """A package file of one's own is part of the key by digest, not by name."""
    layer = dataclasses.replace(BASE.layers[2], local_packages=(), debs=("./a.deb",))
    mine = dataclasses.replace(BASE, layers=(*BASE.layers[:2], layer))
    keys = [_keys(mine, _assets(debs={"./a.deb": digest}))[2] for digest in ("1", "2")]
    assert keys[0] != keys[1]


@given(st.sampled_from(["release", "arch", "epoch", "revision", "disk_mib"]))
def test_every_other_field_counts(field: str):
    """A change of any field that reaches the image changes the image's key."""
    values = {"release": "trixie", "arch": "arm64", "epoch": 1, "revision": 9, "disk_mib": 4096}
    assert _keys()[-1] != _keys(dataclasses.replace(BASE, **{field: values[field]}))[-1]
