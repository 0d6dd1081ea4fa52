"""Effective priorities: unique, and rising within a workload."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvedge.connector.ledger import slot_for

NUMBERS = st.sets(st.integers(1, 40), max_size=20)


@given(NUMBERS, NUMBERS)
def test_slot_is_free_and_above_the_own_ones(own, others):
    """A new revision gets an unused priority in its block, above its older revisions."""
    lowest = 10_000
    own = {lowest + n for n in own}
    taken = own | {lowest + n for n in others} | {0}
    slot = slot_for(lowest, taken, own)
    assert slot is not None
    assert slot not in taken
    assert lowest < slot < lowest + 1000
    assert all(slot > older for older in own)


def test_own_revision_of_another_block_does_not_count():
    """A workload whose user priority went down starts anew in its lower block."""
    assert slot_for(10_000, [20_005], [20_005]) == 10_001


def test_full_block_has_no_slot():
    """A block with 999 deployments takes no more."""
    assert slot_for(0, range(1000), ()) is None
