"""Signatures of thinking blocks: a block is accepted back only as it was issued."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

_NONCE_BYTES = 8


class Signer:
    """Signs thinking texts by HMAC-SHA256 and knows its own signatures again."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def sign(self, thinking: str, nonce: bytes) -> str:
        """The signature of `thinking`; `nonce` (8 bytes) sets blocks of equal text apart."""
        nonce = nonce[:_NONCE_BYTES].ljust(_NONCE_BYTES, b"\0")
        return base64.b64encode(nonce + self._digest(nonce, thinking)).decode()

    def is_own(self, thinking: str, signature: str) -> bool:
        """Whether `signature` was issued here for exactly this text."""
        try:
            raw = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            return False
        nonce, digest = raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]
        return hmac.compare_digest(digest, self._digest(nonce, thinking))

    def _digest(self, nonce: bytes, thinking: str) -> bytes:
        return hmac.new(self._key, nonce + thinking.encode(), hashlib.sha256).digest()
