"""Ed25519 keys of checkpoints, from PEM files: one that signs, and those that signed before."""

import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)

from services.common.runtime.settings import WrongSettings
from services.vending.domain.tables import Checkpoint

_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)

_HOW = "make one with `openssl genpkey -algorithm ed25519`, without a password"
_LIST = (
    "name a PEM file of Ed25519 public keys, one after the other; `openssl pkey -in KEY -pubout` "
    "writes that of a signing key"
)


def key_id_of(key: Ed25519PublicKey) -> str:
    """Return what a key is called: the first 16 hexadecimal digits of the sha256 of its bytes."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


class SigningKey:
    """The key that signs checkpoints."""

    def __init__(self, path: Path) -> None:
        """Read the private key. Raises WrongSettings where the file holds none."""
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as odd:
            raise WrongSettings(
                f"WATTVEND_VENDING_SIGNING_KEY={path} cannot be used ({odd}): {_HOW}"
            ) from odd
        if not isinstance(key, Ed25519PrivateKey):
            raise WrongSettings(f"WATTVEND_VENDING_SIGNING_KEY={path} is of another kind: {_HOW}")
        self._key = key
        self.public = key.public_key()
        self.key_id = key_id_of(self.public)

    def signed(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the checkpoint with its signature."""
        return Checkpoint(
            checkpoint.book_epoch,
            checkpoint.root,
            checkpoint.written_at_ms,
            self.key_id,
            self._key.sign(checkpoint.message),
        )


class PublicKeys:
    """The keys whose signatures count."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        """Take `keys`; of none no signature counts."""
        self._keys = {key_id_of(key): key for key in keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def vouch_for(self, checkpoint: Checkpoint) -> bool:
        """Say whether one of the keys signed the checkpoint as it is."""
        key = self._keys.get(checkpoint.key_id)
        if key is None:
            return False
        try:
            key.verify(checkpoint.signature, checkpoint.message)
        except InvalidSignature:
            return False
        return True


def public_keys_in(path: Path) -> list[Ed25519PublicKey]:
    """Return the public keys of a PEM file, one after the other. Raises WrongSettings."""
    try:
        found = [load_pem_public_key(pem) for pem in _PUBLIC_KEY.findall(path.read_bytes())]
    except (OSError, ValueError, UnsupportedAlgorithm) as odd:
        raise WrongSettings(
            f"WATTVEND_VENDING_PUBLIC_KEYS={path} cannot be read ({odd}): {_LIST}"
        ) from odd
    keys = [key for key in found if isinstance(key, Ed25519PublicKey)]
    if not keys or len(keys) < len(found):
        raise WrongSettings(
            f"WATTVEND_VENDING_PUBLIC_KEYS={path} holds none or another kind: {_LIST}"
        )
    return keys
