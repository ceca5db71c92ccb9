"""Tokens by which routers know the operator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from finetune_operator import tokens

KEY = tokens.generate_key()
NOW = datetime.now(UTC)


def read(token: str, key: str = KEY, audience: str = "uid-1") -> dict[str, object]:
    public = jwt.PyJWK(tokens.jwks(key)["keys"][0])
    claims: dict[str, object] = jwt.decode(token, public, algorithms=["ES256"], audience=audience, issuer=tokens.ISSUER)
    return claims


def test_a_token_is_for_one_finetune_and_lives_a_minute() -> None:
    now = datetime.now(UTC)
    claims = read(tokens.sign(KEY, "uid-1", now))
    assert claims == {"iss": "finetune-operator", "aud": "uid-1", "iat": int(now.timestamp()), "exp": int(now.timestamp()) + 60}


@pytest.mark.parametrize(
    ("what", "token"),
    [
        ("for another FineTune", tokens.sign(KEY, "uid-2", NOW)),
        ("of another key", tokens.sign(tokens.generate_key(), "uid-1", NOW)),
        ("of yesterday", tokens.sign(KEY, "uid-1", NOW - timedelta(days=1))),
    ],
)
def test_a_token_is_refused(what: str, token: str) -> None:
    with pytest.raises(jwt.InvalidTokenError):
        read(token)


def test_the_public_half_tells_nothing_of_the_private_one_and_stays_the_same() -> None:
    first = tokens.jwks(KEY)
    assert first == tokens.jwks(KEY)
    assert set(first["keys"][0]) == {"kty", "crv", "alg", "use", "kid", "x", "y"}
    assert all(len(tokens.jwks(tokens.generate_key())["keys"][0]["x"]) == 43 for _ in range(50)), "short numbers are padded"


def test_another_kind_of_key_is_refused_in_words() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    with pytest.raises(ValueError, match="elliptic-curve"):
        tokens.jwks(pem)
