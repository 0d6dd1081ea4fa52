"""Parts of layers put together and told apart again."""

from __future__ import annotations

from kvedge import edge
from kvedge.edge import packing


def revision(name, **notes):
    """Return the layer of a pod with a route and a module twin."""
    annotations = {
        "kvedge.io/devices": "d1",
        "m.kvedge.io/routes": '{"up": "FROM /* INTO $upstream"}',
        "m.kvedge.io/desired-properties": '{"a": 1}',
        **notes,
    }
    pod = {
        "metadata": {"name": name, "namespace": "ns", "annotations": annotations},
        "spec": {"containers": [{"name": "m", "image": "i:1"}]},
    }
    return edge.revision_of(edge.Inputs(pod=pod, cluster="c", node="n"))


def test_a_pack_is_known_by_what_it_holds():
    """Target, priority and number come back from the hub's entry, and so do the parts."""
    parts = packing.parts_of(revision("a").content) | packing.parts_of(revision("b").content)
    pack = ("deviceId='d1'", 10, 3)
    made = packing.pack_revision(pack, parts, cluster="c", node="n")
    entry = made.configuration(10_007)
    assert packing.pack_of(entry) == pack
    assert packing.parts_of(entry["content"]["modulesContent"]) == parts
    assert packing.pack_of(revision("a").configuration(10_001)) is None


def test_parts_of_a_module():
    """Module, twin and routes belong together; nothing of another module is meant."""
    own = packing.parts_of(revision("a").content)
    both = own | packing.parts_of(revision("b").content)
    assert packing.held_by(both, ["a-m"]) == own.keys()


def test_room():
    """A deployment takes 50 modules, and no more than a twin can hold."""
    fifty = {("$edgeAgent", f"properties.desired.modules.m{n}"): {"n": n} for n in range(50)}
    assert packing.room_for(fifty)
    assert not packing.room_for(fifty | {("$edgeAgent", "properties.desired.modules.x"): {}})
    assert not packing.room_for({("m", "properties.desired"): {"x": "y" * 33_000}})
