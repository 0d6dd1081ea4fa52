"""Shared access signatures."""

from __future__ import annotations

import hmac

import pytest
from azure.iot.hub.sastoken import SasToken
from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import tokens

KEY = tokens.new_key()


@given(st.text("abc/.:$ %-_", min_size=1), st.integers(0, 2**40), st.text("pq ", max_size=4))
def test_a_token_verifies_with_its_key_only(resource, expiry, policy):
    """A token made with a key is good for that key and for no other."""
    token = tokens.parse(tokens.issue(resource, KEY, expiry=expiry, policy=policy))
    assert token is not None
    assert token.signed_by(KEY)
    assert not token.signed_by(tokens.new_key())
    assert (token.resource, token.expiry, token.policy) == (
        resource.lower().rstrip("/"),
        expiry,
        policy,
    )


def test_the_vendors_tokens_are_good():
    """What azure-iot-hub makes is read."""
    token = tokens.parse(str(SasToken("localhost:4000", KEY, "iothubowner")))
    assert token is not None
    assert token.signed_by(KEY)
    assert (token.resource, token.policy) == ("localhost:4000", "iothubowner")


@given(st.text(max_size=60))
def test_no_text_crashes(text):
    """Every text is a token or None."""
    tokens.parse(text)
    tokens.parse(f"SharedAccessSignature {text}")
    tokens.parse(f"SharedAccessSignature sr=a&sig={text}&se=1")
    tokens.parse(f"SharedAccessSignature sr=a&sig=YQ==&se={text}")


@pytest.mark.parametrize("key", ["", "not base64!", "YQ==", None])
def test_bad_keys_sign_nothing(key):
    """Empty and mangled keys never verify, and are not usable."""
    token = tokens.parse(tokens.issue("a", KEY, expiry=1))
    assert token is not None
    assert not token.signed_by(key or "")
    assert not tokens.usable_key(key or "")


def test_nothing_secret_is_shown():
    """Neither key nor signature are in a token's repr."""
    text = tokens.issue("a", KEY, expiry=1)
    assert "sig" not in repr(tokens.parse(text))


def test_signatures_are_compared_in_constant_time(monkeypatch):
    """Right or wrong, a signature goes through hmac.compare_digest whole."""
    seen = []
    compare = hmac.compare_digest

    def watched(one, other):
        seen.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    token = tokens.parse(tokens.issue("hub", KEY, expiry=9999999999))
    assert token.signed_by(KEY)
    assert not token.signed_by(tokens.new_key())
    assert [len(one) == len(other) == 32 for one, other in seen] == [True, True]
