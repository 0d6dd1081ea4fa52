"""What the store looks up quickly is what a walk over all records finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import records, store

names = st.sampled_from(["a", "b", "c"])
modules = st.sampled_from(["", "m", "n"])
prints = st.sampled_from([None, "AA", "aa:bb", "CC"])
changes = st.lists(
    st.tuples(st.just("identity"), names, modules, st.none() | st.tuples(prints, prints))
    | st.tuples(st.just("twin"), names, modules, st.booleans())
    | st.tuples(st.just("message"), st.integers(1, 4), names, st.booleans()),
    max_size=25,
)


def identity(device, module, given_prints):
    return records.Identity(
        device_id=device, module_id=module, generation_id="1", revision=1, auth="selfSigned",
        primary_thumbprint=given_prints[0], secondary_thumbprint=given_prints[1],
    )  # fmt: skip


def apply(memory, change):
    with memory.transaction() as transaction:
        match change:
            case ("identity", device, module, None):
                transaction.delete("identity", records.key_of(device, module))
            case ("identity", device, module, given_prints):
                transaction.put(identity(device, module, given_prints))
            case ("twin", device, module, True):
                transaction.put(
                    records.Twin(device_id=device, module_id=module, desired={}, reported={})
                )
            case ("twin", device, module, _):
                transaction.delete("twin", records.key_of(device, module))
            case (_, number, device, True):
                transaction.put(
                    records.Message(
                        sequence=number, device_id=device, payload=b"\xff", properties={}
                    )
                )
            case (_, number, _, _):
                transaction.delete("message", records.message_key(number))


def check(memory):
    twins = sorted(memory.twins)
    assert memory.device_keys == [key for key in twins if "/" not in key]
    assert memory.module_keys == [key for key in twins if "/" in key]
    for device in "abc":
        mine = [key for key in sorted(memory.messages) if memory.messages[key].device_id == device]
        assert [item.key for item in memory.messages_of(device)] == mine
        assert memory.waiting(device) == len(mine)
        inside = sorted(key for key in memory.identities if key.startswith(f"{device}/"))
        assert [item.key for item in memory.modules_of(device)] == inside
    known = {text for item in memory.identities.values() for text in item.thumbprints}
    for text in ("AA", "AABB", "CC", "DD"):
        assert memory.knows_thumbprint(text) is (text in known)


@given(changes)
def test_indices_follow_any_changes(history):
    """After each transaction keys, queues, modules and thumbprints are those of the records."""
    memory = store.Store(None)
    for change in history:
        apply(memory, change)
        check(memory)
    memory.close()


def test_a_store_comes_back_as_it_was(tmp_path):
    """Records and what is found by them outlive the process."""
    path = tmp_path / "hub.db"
    first = store.Store(path)
    for change in (
        ("identity", "b", "", ("AA", None)), ("identity", "b", "m", (None, None)),
        ("twin", "b", "", True), ("twin", "a", "", True), ("twin", "b", "m", True),
        ("message", 2, "b", True), ("message", 1, "b", True),
    ):  # fmt: skip
        apply(first, change)
    before = (first.identities, first.twins, first.messages)
    first.close()
    second = store.Store(path)
    assert (second.identities, second.twins, second.messages) == before
    assert [item.sequence for item in second.messages_of("b")] == [1, 2]
    check(second)
    second.close()
