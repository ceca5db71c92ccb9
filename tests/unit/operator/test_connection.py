"""As whom the operator speaks to the API server, and what becomes of a token that is replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kopf
import pytest
import yaml
from aiohttp import web
from finetune_operator import connection as module
from finetune_operator import errors
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection, Listed, _in_cluster, login, watching
from finetune_operator.kinds import JOB


@asynccontextmanager
async def answering(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A server that answers so: its address."""
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def server(accepted: set[str], seen: list[str]) -> AsyncIterator[str]:
    """An API server that knows those tokens, and remembers what it was shown: its address."""

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.json_response({"metadata": {"name": "a"}}, status=200 if seen[-1].removeprefix("Bearer ") in accepted else 401)

    async with answering(answer) as url:
        yield url


async def test_a_token_is_read_again_after_it_was_refused_and_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, token, accepted, seen = [0.0], ["first"], {"first"}, list[str]()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    async with server(accepted, seen) as url, Connection(lambda: kopf.ConnectionInfo(server=url, token=token[0])) as connection:
        cluster = Cluster(connection)
        assert await cluster.get(JOB, "ml", "a")
        token[0] = "second"
        assert await cluster.get(JOB, "ml", "a")
        accepted.symmetric_difference_update({"first", "second"})
        with pytest.raises(errors.Unavailable):
            await cluster.get(JOB, "ml", "a")
        assert await cluster.get(JOB, "ml", "a")
        token[0] = "third"
        accepted.add("third")
        now[0] += module.RENEWED_SECONDS
        assert await cluster.get(JOB, "ml", "a")
    assert seen == ["Bearer first", "Bearer first", "Bearer first", "Bearer second", "Bearer third"]


async def test_a_login_that_fails_for_a_while_is_an_api_server_that_is_away() -> None:
    logins: list[Any] = [errors.Unavailable("half a file"), errors.Unavailable("half a file")]
    seen: list[str] = []
    async with server({"t"}, seen) as url:
        info = kopf.ConnectionInfo(server=url, token="t")
        logins.insert(0, info)
        logins.append(info)

        def next_login() -> kopf.ConnectionInfo:
            given = logins.pop(0)
            if isinstance(given, Exception):
                raise given
            return given  # type: ignore[no-any-return]

        async with Connection(next_login) as connection:
            cluster = Cluster(connection)
            connection._until = 0.0
            for _ in range(2):
                with pytest.raises(errors.Unavailable, match="half a file"):
                    await cluster.get(JOB, "ml", "a")
            assert await cluster.get(JOB, "ml", "a")


def kubeconfig(folder: Path, monkeypatch: pytest.MonkeyPatch, *, server: str | None = "https://api:6443", **user: Any) -> None:
    document = {
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}], "users": [{"name": "u", "user": user}],
    }  # fmt: skip
    (folder / "config").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("KUBECONFIG", str(folder / "config"))


def test_a_kubeconfig_outside_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig(tmp_path, monkeypatch, token="t")
    info = login()
    assert (info.server, info.token) == ("https://api:6443", "t")


@pytest.mark.parametrize(("proxies", "trusted"), [({}, False), ({"https": "http://proxy:3128"}, True)])
def test_a_proxy_of_the_environment_is_taken_where_there_is_one(
    proxies: dict[str, str], trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig(tmp_path, monkeypatch, token="t")
    monkeypatch.setattr(module, "getproxies", lambda: proxies)
    assert login().trust_env == trusted


@pytest.mark.parametrize(
    ("environment", "server"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}, "https://10.96.0.1:443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://[fd00::1]:6443"),
        ({}, ""),
    ],
)
def test_a_pod_finds_the_api_server_without_a_name_server(environment: dict[str, str], server: str) -> None:
    assert _in_cluster(environment) == server


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"user": {"exec": {"command": "aws"}}}, "neither token, password nor client certificate"),
        ({"server": None, "user": {"token": "t"}}, "names no server"),
        ({"text": "{"}, "ParserError"),
        ({"text": "clusters: []\n"}, "Current context is not set"),
        ({"text": "current-context: c\n"}, "KeyError: 'c'"),
        ({"text": "- a\n"}, "AttributeError"),
        ({"text": None}, "No such file"),
        ({}, "neither a pod's ServiceAccount nor a kubeconfig"),
    ],
)
def test_a_login_that_cannot_be_says_why(given: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    if "user" in given:
        kubeconfig(tmp_path, monkeypatch, server=given.get("server", "https://api:6443"), **given["user"])
    elif "text" in given:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        if given["text"] is not None:
            (tmp_path / "config").write_text(given["text"])
    with pytest.raises(errors.Unavailable, match="no login to the API server: ") as raised:
        login()
    assert said in str(raised.value)


async def test_a_certificate_that_is_none_is_told_before_anything_is_asked() -> None:
    with pytest.raises(errors.Unavailable, match="certificate cannot be used"):
        async with Connection(lambda: kopf.ConnectionInfo(server="https://api:6443", ca_data="bm90aGluZw==")):
            pass


LIST = "/apis/finetune.dev/v1alpha1/finetunes"


@pytest.mark.parametrize(
    ("status", "path", "told"),
    [
        (200, LIST, (None, True, False)),
        (200, f"{LIST}?limit=100&continue=b", (None, False, False)),
        (200, "/k8s/clusters/c1/apis/finetune.dev/v1alpha1/namespaces/ml/finetunes?limit=100", ("ml", True, False)),
        (403, LIST, None),
        (200, "/apis/finetune.dev/v1alpha1", None),
    ],
)
async def test_lists_of_finetunes_are_told_projected_and_kopf_sees_them_empty_and_all_else_as_it_is(
    status: int, path: str, told: tuple[str | None, bool, bool] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"kind": "Status", "message": "no", "metadata": {"continue": "c"}, "items": [{"metadata": {"name": "a", "managedFields": []}}]}

    async def answered(request: web.Request) -> web.Response:
        return web.json_response({**answer, "token": request.headers["Authorization"]}, status=status)

    async with answering(answered) as url:
        kubeconfig(tmp_path, monkeypatch, server=url, token="t")
        pages = list[Listed]()
        info = await watching(pages.append)()
        async with info.aiohttp_session as session, session.get(info.server + path) as response:
            read = await response.json()
    if told:
        known = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTune", "metadata": {"name": "a"}}
        assert (read, pages) == ({"metadata": {"continue": "c"}, "items": []}, [Listed(*told, [known])])
    else:
        assert (read, pages) == ({**answer, "token": "Bearer t"}, [])


async def test_the_last_page_of_a_list_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answered(_: web.Request) -> web.Response:
        return web.json_response({"metadata": {"continue": "", "resourceVersion": "7"}, "items": None})

    async with answering(answered) as url:
        kubeconfig(tmp_path, monkeypatch, server=url, token="t")
        pages = list[Listed]()
        info = await watching(pages.append)()
        async with info.aiohttp_session as session, session.get(f"{info.server}{LIST}?continue=b") as response:
            assert await response.json() == {"metadata": {"continue": "", "resourceVersion": "7"}, "items": []}
    assert pages == [Listed(None, first=False, last=True, items=[])]
