"""Reading the keys that a TPM shows; what is sealed to them is opened by a TPM in integration."""

from __future__ import annotations

import base64
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import catalogue, sealing

RSA, SHA256, AES, CFB, NULL = 0x0001, 0x000B, 0x0006, 0x0043, 0x0010
NUMBERS = rsa.generate_private_key(65537, 2048).public_key().public_numbers()


def shown(*, kind=RSA, name=SHA256, policy=b"", aes_bits=128, exponent=0, modulus=None):
    """Return a TPM2B_PUBLIC of a storage key."""
    number = NUMBERS.n.to_bytes(256, "big") if modulus is None else modulus
    area = struct.pack("!HHIH", kind, name, 0x30072, len(policy)) + policy
    area += struct.pack("!HHHH", AES, aes_bits, CFB, NULL)
    area += struct.pack("!HIH", 2048, exponent, len(number)) + number
    return struct.pack("!H", len(area)) + area


@pytest.mark.parametrize("policy", [b"", b"p" * 32])
@pytest.mark.parametrize("exponent", [0, 65537])
@pytest.mark.parametrize("aes_bits", [128, 256])
def test_storage_keys(policy, exponent, aes_bits):
    """The default exponent is spelled 0; a policy and longer AES keys may be there."""
    raw = shown(policy=policy, exponent=exponent, aes_bits=aes_bits)
    key = sealing.TpmKey(base64.b64encode(raw).decode())
    assert key.public.public_numbers() == NUMBERS
    assert key.aes_bytes == aes_bits // 8
    assert len(key.name) == 34


@given(
    st.binary(max_size=80)
    | st.integers(0, 320).map(lambda size: shown()[:size])
    | st.sampled_from([shown(kind=0x23), shown(name=0x0C), shown(modulus=b""), shown() + b"x"])
)
def test_other_bytes_are_no_key(raw):
    """Whatever is cut, longer, or another kind of key is refused by name."""
    if raw == shown():
        return
    with pytest.raises(catalogue.HubError, match="ArgumentInvalid"):
        sealing.TpmKey(base64.b64encode(raw).decode())


@pytest.mark.parametrize("text", [None, "", "?", 3, {}])
def test_what_is_no_text_is_no_key(text):
    """So is what is no base64."""
    with pytest.raises(catalogue.HubError):
        sealing.TpmKey(text)
