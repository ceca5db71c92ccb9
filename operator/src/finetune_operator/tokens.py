"""Short-lived tokens by which routers know the operator: ES256, the FineTune's uid as audience.

What needs cryptography imports it: of a start without any router that is 0.05 s.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

ISSUER: Final = "finetune-operator"
LIFETIME_SECONDS: Final = 60


def generate_key() -> str:
    """A new private key, PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


@lru_cache(maxsize=4)
def jwks(pem: str) -> dict[str, Any]:
    """The public half as a JSON Web Key Set."""
    numbers = _load(pem).public_key().public_numbers()
    x, y = _encode(numbers.x), _encode(numbers.y)
    return {"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": _kid(x, y), "x": x, "y": y}]}


def sign(pem: str, audience: str, now: datetime) -> str:
    """A token for one FineTune's routers, valid for a minute."""
    import jwt

    key_id = jwks(pem)["keys"][0]["kid"]
    claims = {"iss": ISSUER, "aud": audience, "iat": now, "exp": now + timedelta(seconds=LIFETIME_SECONDS)}
    return jwt.encode(claims, pem, algorithm="ES256", headers={"kid": key_id})


def _load(pem: str) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the routers' key must be an elliptic-curve key")  # noqa: TRY004
    return key


def _encode(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()


def _kid(x: str, y: str) -> str:
    return hashlib.sha256(f"{x}.{y}".encode()).hexdigest()[:16]
