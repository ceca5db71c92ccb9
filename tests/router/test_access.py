"""Who is admitted: API keys and TLS at a real Envoy, from files that change as mounted Secrets do."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from typing import Any

import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from finetune_operator import names
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.build import access
from finetune_operator.build import router as documents
from finetune_operator.traffic import Source

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import CHAT, Router, structure, until

KEYS = Serving.model_validate({"apiKeys": {"secretName": "bot-keys"}})
TLS = Serving.model_validate({"tls": {"secretName": "bot-tls"}})
BOTH = Serving.model_validate({"apiKeys": {"secretName": "bot-keys"}, "tls": {"secretName": "bot-tls"}})
SPLIT = structure(OLD, NEW)
LINES = "# who may call\nshop sk-shop-1\n\n  web\tsk-web-1  \nbroken\nold # sk-old-1\n"
HOST = "bot.ml.svc"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def keyed(world: World, lines: str | None = LINES, serving: Serving = KEYS) -> Router:
    router = world.router()
    router.serving = serving
    if lines is not None:
        router.secret(access.KEYS_FOLDER, {access.KEYS_ENTRY: lines})
    router.write(SPLIT, 50)
    return await router.start()


async def test_who_has_a_key_is_admitted_and_nobody_else(world: World) -> None:
    router = await keyed(world)
    for key in ("sk-shop-1", "sk-web-1"):
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models?a=b")):
            assert await router.status(path, method=method, headers=bearer(key)) == 200
    assert await router.status(CHAT, method="POST", headers={"authorization": "bearer  sk-web-1 "}) == 200
    refused: list[dict[str, str]] = [
        {}, bearer("sk-nobody"), bearer("shop"), bearer("sk-shop-"), bearer("sk-shop-1x"), bearer("SK-SHOP-1"), bearer("#"),
        bearer("sk-old-1"), bearer("broken"), bearer(""),
        {"authorization": "sk-shop-1"}, {"authorization": "Basic sk-shop-1"}, {"x-api-key": "sk-shop-1"},
    ]  # fmt: skip
    before = sum(pod.served for pods in world.pods.values() for pod in pods)
    for headers in refused:
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/"), ("GET", f"{documents.STRUCTURE_PATH}x")):
            assert await router.status(path, method=method, headers=headers) == 401, f"{headers}: {method} {path}"
    assert sum(pod.served for pods in world.pods.values() for pod in pods) == before, "no server heard of them"


async def test_the_operator_still_reads_the_structure_and_pushes_weights(world: World) -> None:
    router = await keyed(world)
    await router.push(SPLIT, 100)
    assert ((await router.state()).error, (await router.state()).weight) == ("", 100)


async def test_a_key_is_for_the_router_alone_and_may_be_the_identity(world: World) -> None:
    router = world.router()
    router.serving = KEYS
    router.secret(access.KEYS_FOLDER, {access.KEYS_ENTRY: "".join(f"user{i} sk-{i}\n" for i in range(40))})
    router.write(structure(OLD, NEW, (Source(header="authorization"),)), 50)
    await router.start()
    arms = [await router.arm_of(None, headers=bearer(f"sk-{i}")) for i in range(40)]
    assert set(arms) == {OLD.arm, NEW.arm}
    assert [await router.arm_of(None, headers=bearer(f"sk-{i}")) for i in range(40)] == arms
    assert all("authorization" not in {h.lower() for h in pod.last[0]} for pods in world.pods.values() for pod in pods)


async def test_without_keys_of_ours_a_key_is_for_the_server(world: World) -> None:
    router = await world.started(structure(OLD))
    await router.arm_of("ada", headers=bearer("sk-server"))
    assert "Bearer sk-server" in {pod.last[0].get("Authorization") for pod in world.pods["old"]}


async def test_who_is_refused_is_told_why_as_openai_tells_it(world: World) -> None:
    router = await keyed(world)
    async with openai.AsyncOpenAI(api_key="sk-nobody", base_url=router.url("/v1"), max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided") as refused:
            await client.models.list()
    assert refused.value.code == "invalid_api_key"
    async with router.request("POST", CHAT) as answer:
        assert (answer.headers["content-type"], answer.headers["www-authenticate"]) == ("application/json", "Bearer")
        assert "You didn't provide an API key" in (await answer.json())["error"]["message"]


async def test_a_secret_may_hold_as_many_keys_as_it_has_room_for(world: World) -> None:
    """A variable of the process would hold 128 KiB."""
    lines = "".join(f"user-{i} sk-{i:060}\n" for i in range(13_000))
    assert 2**19 < len(lines) < 2**20
    router = await keyed(world, lines)
    told = [await router.status(CHAT, method="POST", headers=bearer(f"sk-{i:060}")) for i in (0, 12_999, 13_000)]
    assert told == [200, 200, 401]


async def test_a_changed_secret_counts_without_a_restart(world: World) -> None:
    router = await keyed(world)
    assert await router.status(CHAT, method="POST", headers=bearer("sk-shop-1")) == 200
    router.secret(access.KEYS_FOLDER, {access.KEYS_ENTRY: "shop sk-shop-2\n"})

    async def told() -> list[int]:
        return [await router.status(CHAT, method="POST", headers=bearer(key)) for key in ("sk-shop-1", "sk-shop-2")]

    async def changed() -> bool:
        return await told() == [401, 200]

    await until(changed, "the old key is out, the new one in", 10)


async def test_keys_that_were_read_hold_while_their_file_is_gone_and_none_hold_before(world: World) -> None:
    gone, never = await keyed(world), await keyed(world, None)
    assert await gone.status(CHAT, method="POST", headers=bearer("sk-shop-1")) == 200
    (gone.folder.with_name(f"{gone.folder.name}-keys") / access.KEYS_ENTRY).unlink()
    await asyncio.sleep(6)
    assert await gone.status(CHAT, method="POST", headers=bearer("sk-shop-1")) == 200
    assert await gone.status(CHAT, method="POST", headers=bearer("sk-nobody")) == 401
    assert await never.status(CHAT, method="POST", headers=bearer("sk-shop-1")) == 401


async def test_a_router_from_before_the_keys_goes_on_until_it_is_replaced(world: World) -> None:
    router = await world.started(SPLIT)
    router.serving = KEYS
    changed = structure(OLD, NEW, salt="after")
    router.write(changed, 0)
    await router.serves(changed, 0)
    assert await router.status(CHAT, method="POST") == 200


def certificate(name: str) -> tuple[dict[str, str], int]:
    """A self-signed one as a Secret holds it, and its serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {"tls.crt": made.public_bytes(serialization.Encoding.PEM).decode(), "tls.key": private.decode()}, made.serial_number


def trusting(secret: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=secret["tls.crt"])


async def call(router: Router, context: ssl.SSLContext, body: dict[str, Any], headers: str = "") -> tuple[int, str, int]:
    """(Status, arm, serial number of the certificate) of a chat completion over TLS."""
    text = json.dumps(body)
    port = router.ports[names.TLS_PORT]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=HOST)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{headers}content-length: {len(text)}\r\n\r\n{text}".encode()
    )
    head = (await reader.read()).decode().partition("\r\n\r\n")[0].lower()
    seen = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    arm = next((line.partition(": ")[2] for line in head.splitlines() if line.startswith(documents.ARM_HEADER)), "")
    return int(head[9:12]), arm, x509.load_der_x509_certificate(seen).serial_number


async def encrypted(world: World, secret: dict[str, str], serving: Serving = TLS) -> Router:
    router = world.router()
    router.serving = serving
    router.secret(access.TLS_FOLDER, secret)
    router.secret(access.KEYS_FOLDER, {access.KEYS_ENTRY: LINES})
    router.write(structure(OLD, NEW, (Source(header="x-user-id"), Source(body_field="user"))), 100)
    return await router.start()


async def test_users_are_served_over_tls_as_without_it(world: World) -> None:
    secret, serial = certificate(HOST)
    router = await encrypted(world, secret)
    assert await call(router, trusting(secret), {"user": "ada"}) == (200, NEW.arm, serial)
    assert await call(router, trusting(secret), {}, "x-user-id: ada\r\n") == (200, NEW.arm, serial)
    assert await call(router, trusting(secret), {}) == (200, OLD.arm, serial)
    assert (await router.state()).error == "", "the operator asks without TLS, as before"


async def test_keys_are_asked_for_over_tls_too(world: World) -> None:
    secret, serial = certificate(HOST)
    router = await encrypted(world, secret, BOTH)
    assert await call(router, trusting(secret), {"user": "ada"}) == (401, "", serial)
    assert await call(router, trusting(secret), {"user": "ada"}, "authorization: Bearer sk-shop-1\r\n") == (200, NEW.arm, serial)


async def test_a_renewed_certificate_is_used_without_a_restart(world: World) -> None:
    secret, serial = certificate(HOST)
    renewed, next_serial = certificate(HOST)
    router = await encrypted(world, secret)
    assert await call(router, trusting(secret), {}) == (200, OLD.arm, serial)
    router.secret(access.TLS_FOLDER, renewed)

    async def changed() -> bool:
        try:
            return await call(router, trusting(renewed), {}) == (200, OLD.arm, next_serial)
        except ssl.SSLCertVerificationError:
            return False

    await until(changed, "the renewed certificate is shown", 10)


async def test_old_versions_of_tls_and_plain_text_are_refused(world: World) -> None:
    secret, _ = certificate(HOST)
    router = await encrypted(world, secret)
    old = trusting(secret)
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await call(router, old, {})
    reader, writer = await asyncio.open_connection("127.0.0.1", router.ports[names.TLS_PORT])
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
