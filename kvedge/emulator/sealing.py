"""Sealing a key to one TPM 2.0, as the provisioning service does; pure.

Only the TPM that holds both private keys can use what is sealed: the endorsement key opens the
credential (an AES key), and with it the storage root key takes in the HMAC key, which then never
leaves the TPM. What is joined here is what iot-identity-service's `aziot-tpmd` takes apart:
TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET, TPM2B_PRIVATE, TPM2B_ENCRYPTED_SECRET, TPM2B_PUBLIC.
Sections are those of the Trusted Platform Module Library, part 1
(https://trustedcomputinggroup.org/resource/tpm-library-specification/).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from kvedge.emulator import catalogue

__all__ = ["TpmKey", "seal"]

_RSA, _KEYED_HASH, _HMAC, _SHA256, _NULL = 0x0001, 0x0008, 0x0005, 0x000B, 0x0010
_AES, _CFB = 0x0006, 0x0043
_USER_WITH_AUTH, _SIGN = 1 << 6, 1 << 18
_AES_BYTES = 16
"""Of the key between credential and duplicate, as clients expect it."""
_BLOCK_BYTES = 16
_DIGEST_BYTES = 32
_DEFAULT_EXPONENT = 65537


class TpmKey:
    """A public RSA key of a TPM, out of a TPM2B_PUBLIC in base64."""

    def __init__(self, text: object) -> None:
        """Read it; raises ArgumentInvalid."""
        try:
            raw = base64.b64decode(str(text), validate=True)
            area = _unsized(raw)
            self.public, self.aes_bytes = _rsa_key(area)
        except (binascii.Error, struct.error, ValueError) as error:
            raise catalogue.HubError(
                "ArgumentInvalid",
                "A TPM's key must be the base64 of a TPM2B_PUBLIC: an RSA storage key.",
            ) from error
        self.name = _name(area)
        """What other keys are bound to: the hash of the public area, with its algorithm."""


def seal(key: bytes, *, endorsement: TpmKey, storage: TpmKey) -> str:
    """Return an HMAC key that only the TPM of these keys can use, in base64."""
    inner = secrets.token_bytes(_AES_BYTES)
    seed = secrets.token_bytes(_DIGEST_BYTES)
    public = struct.pack("!HHI", _KEYED_HASH, _SHA256, _USER_WITH_AUTH | _SIGN)
    public += _sized(b"") + struct.pack("!HH", _HMAC, _SHA256)
    public += _sized(hashlib.sha256(seed + key).digest())
    sensitive = struct.pack("!H", _KEYED_HASH) + _sized(b"") + _sized(seed) + _sized(key)
    parts = (
        *_credential(inner, endorsement, storage.name),
        *_duplicate(_sized(sensitive), inner, storage, _name(public)),
        public,
    )
    return base64.b64encode(b"".join(_sized(part) for part in parts)).decode()


def _credential(secret: bytes, endorsement: TpmKey, name: bytes) -> tuple[bytes, bytes]:
    """Protect a secret for the TPM that has the named key too (section "Credential Protection")."""
    seed = secrets.token_bytes(_DIGEST_BYTES)
    return (
        _protected(_sized(secret), seed, name, endorsement.aes_bytes),
        _for_key(endorsement, seed, b"IDENTITY"),
    )


def _duplicate(sensitive: bytes, inner: bytes, parent: TpmKey, name: bytes) -> tuple[bytes, bytes]:
    """Wrap an object twice for import under a parent (section "Duplication")."""
    integrity = hashlib.sha256(sensitive + name).digest()
    wrapped = _encrypted(inner, _sized(integrity) + sensitive)
    seed = secrets.token_bytes(_DIGEST_BYTES)
    return (
        _protected(wrapped, seed, name, parent.aes_bytes),
        _for_key(parent, seed, b"DUPLICATE"),
    )


def _protected(data: bytes, seed: bytes, name: bytes, aes_bytes: int) -> bytes:
    """Encrypt, and bind to a name, under keys that are derived from a seed."""
    encrypted = _encrypted(_derived(seed, b"STORAGE", name, aes_bytes), data)
    key = _derived(seed, b"INTEGRITY", b"", _DIGEST_BYTES)
    return _sized(hmac.digest(key, encrypted + name, "sha256")) + encrypted


def _for_key(key: TpmKey, seed: bytes, label: bytes) -> bytes:
    digest = hashes.SHA256()
    return key.public.encrypt(
        seed, padding.OAEP(mgf=padding.MGF1(digest), algorithm=digest, label=label + b"\0")
    )


def _derived(key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """Return KDFa of one block: SP 800-108 in counter mode (section "Key derivation functions")."""
    block = struct.pack("!I", 1) + label + b"\0" + context + struct.pack("!I", size * 8)
    return hmac.digest(key, block, "sha256")[:size]


def _encrypted(key: bytes, data: bytes) -> bytes:
    """Encrypt by AES in CFB mode from a block of zeros, as a TPM does inside its objects."""
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - made into CFB here
    last, encrypted = bytes(_BLOCK_BYTES), b""
    for at in range(0, len(data), _BLOCK_BYTES):
        mask = blocks.update(last)
        part = data[at : at + _BLOCK_BYTES]
        last = bytes(one ^ other for one, other in zip(part, mask, strict=False))
        encrypted += last
    return encrypted


def _name(area: bytes) -> bytes:
    return struct.pack("!H", _SHA256) + hashlib.sha256(area).digest()


def _sized(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def _unsized(data: bytes) -> bytes:
    if _sized(data[2:]) != data:
        raise ValueError("the size is another one")
    return data[2:]


def _rsa_key(area: bytes) -> tuple[rsa.RSAPublicKey, int]:
    """Read the TPMT_PUBLIC of a storage key: its key, and the size of AES keys below it.

    Raises:
        ValueError, struct.error: it is another kind of key.
    """
    kind, name_algorithm, _, policy_bytes = struct.unpack_from("!HHIH", area)
    symmetric, aes_bits, mode, scheme = struct.unpack_from("!HHHH", area, 10 + policy_bytes)
    _, exponent, size = struct.unpack_from("!HIH", area, 18 + policy_bytes)
    modulus = area[26 + policy_bytes :]
    found = (kind, name_algorithm, symmetric, mode, scheme)
    if found != (_RSA, _SHA256, _AES, _CFB, _NULL) or len(modulus) != size:
        raise ValueError("no RSA storage key")
    number = int.from_bytes(modulus, "big")
    public = rsa.RSAPublicNumbers(exponent or _DEFAULT_EXPONENT, number).public_key()
    return public, aes_bits // 8
