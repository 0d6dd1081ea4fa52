"""Merge patches, time stamps and tokens."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge.edgesim import identity, merging, times

_LEAVES = st.one_of(st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.integers()))
_DOCUMENTS = st.dictionaries(
    st.sampled_from("abcd"),
    st.recursive(_LEAVES, lambda inner: st.dictionaries(st.sampled_from("abcd"), inner)),
)


@given(_DOCUMENTS, _DOCUMENTS)
def test_difference_is_what_merging_needs(old, new):
    """Applying the patch to the old document gives the new one."""
    assert merging.merged(old, merging.difference(old, new)) == new


@given(_DOCUMENTS)
def test_no_difference_is_no_patch(document):
    """Equal reports are not sent."""
    assert merging.difference(document, document) == {}


def test_engine_times_become_twin_times():
    """Nine decimals are cut to seven; never stays never."""
    assert times.twin_text("2026-11-21T13:00:01.123456789Z")[:26] == "2026-11-21T13:00:01.123456"
    assert times.twin_text("0001-01-01T00:00:00Z") == times.NEVER


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("", None),
        ("1700000000", 1700000000.0),
        ("2h 5m", 10000.0 - 7500.0),
        ("90 seconds", 10000.0 - 90.0),
        ("1 day", 10000.0 - 86400.0),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
    ],
)
def test_log_filters_take_times_and_spans(text, moment):
    """As GetModuleLogs' since and until do."""
    assert times.moment_text(text, now=10000.0) == moment


@pytest.mark.parametrize("text", ["soon", "5 weeks", "2026-99-99T00:00:00Z", "-5"])
def test_other_filters_are_refused(text):
    """A mistake must not mean everything."""
    with pytest.raises(ValueError):
        times.moment_text(text, now=0.0)


def test_token_is_checked_for_resource_key_and_time():
    """A module's token opens no other module's door."""
    key = base64.b64encode(b"k" * 32).decode()
    other = base64.b64encode(b"o" * 32).decode()
    token = identity.sas_token("hub/devices/d/modules/m", key)
    assert identity.token_is_valid(token, resource="hub/devices/d/modules/m", key=key)
    assert not identity.token_is_valid(token, resource="hub/devices/d/modules/n", key=key)
    assert not identity.token_is_valid(token, resource="hub/devices/d/modules/m", key=other)
    assert not identity.token_is_valid("", resource="hub/devices/d/modules/m", key=key)
    old = identity.sas_token("hub/devices/d/modules/m", key, seconds=-5)
    assert not identity.token_is_valid(old, resource="hub/devices/d/modules/m", key=key)
