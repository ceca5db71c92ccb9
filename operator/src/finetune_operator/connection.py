"""The way to the API server: as whom, and one pool of connections. From a pod with its ServiceAccount, elsewhere by a kubeconfig.

kopf's own watches take the same `login` (docs/adr/0018), with connections of their own, for they live in another loop.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.request import getproxies

import aiohttp
import kopf
import yaml

from finetune_operator import errors, projection
from finetune_operator.kinds import FINETUNE

RENEWED_SECONDS: Final = 60.0  # a kubelet replaces a token long before it runs out
AT_ONCE: Final = 100  # requests
BUFFER: Final = 2**21  # bytes of an answer, of which a list may have many


def login(**_: object) -> kopf.ConnectionInfo:
    """Server and credentials as they are now; Unavailable says what is missing."""
    settings = kopf.OperatorSettings()
    settings.networking.trust_env = bool(getproxies())  # else a thread is asked for a proxy at each request
    try:
        info = kopf.login_with_service_account(settings=settings)
        if info is not None:
            return dataclasses.replace(info, server=_in_cluster(os.environ) or info.server)
        info = kopf.login_with_kubeconfig(settings=settings)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError, kopf.LoginError) as error:
        raise errors.Unavailable(f"no login to the API server: {type(error).__name__}: {error}") from error
    if info is None:
        raise errors.Unavailable("no login to the API server: neither a pod's ServiceAccount nor a kubeconfig (KUBECONFIG, ~/.kube/config)")
    if not info.server:
        raise errors.Unavailable("no login to the API server: the kubeconfig's cluster names no server")
    if info.server.startswith("https:") and not (info.as_http_headers() or info.certificate_path or info.certificate_data):
        raise errors.Unavailable(
            "no login to the API server: the kubeconfig's user has neither token, password nor client certificate "
            "(a plugin that would fetch one is not run): name one that has, or let the chart run the operator"
        )
    return info


def _in_cluster(environment: Mapping[str, str]) -> str:
    """The API server as the kubelet tells it, which needs no name server; empty outside a pod."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}" if host else ""


class Connection:
    """Connections to the API server, within `async with`. Who it is is asked of `login` again each minute, and after a 401.

    `watches` connections are held for good, beside those of AT_ONCE requests.
    """

    def __init__(self, login: Callable[[], kopf.ConnectionInfo] = login, *, watches: int = 0) -> None:
        self._login = login
        self._watches = watches
        self._info = login()
        self._until = time.monotonic() + RENEWED_SECONDS
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Connection:
        self._session = _session(self._info, limit=AT_ONCE + self._watches)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None, within: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """The answer, begun, to be read within `async with`; its status is the caller's. Unavailable without a login."""
        if self._session is None:
            raise RuntimeError("the connection is not open")
        if time.monotonic() >= self._until:
            self._info = self._login()
            self._until = time.monotonic() + RENEWED_SECONDS
        response = await self._session.request(
            method, self._info.server.rstrip("/") + path, headers={**headers, **self._info.as_http_headers()}, data=body, timeout=within
        )
        if response.status == 401:
            self._until = 0.0
        return response


class Listed(NamedTuple):
    """A page of a list of FineTunes, of one namespace or of all; `first` and `last` of the list's pages."""

    namespace: str | None
    first: bool
    last: bool
    items: list[projection.Object]


def watching(listed: Callable[[Listed], object]) -> Callable[..., Awaitable[kopf.AiohttpSession]]:
    """A login of kopf's: `login`, and the connections over which it lists and watches FineTunes, which kopf closes.

    What it lists is told to `listed`, read no further than it is used; kopf is shown an empty list of that version
    (docs/adr/0022), from which its watch goes on.
    """

    class Response(aiohttp.ClientResponse):
        async def json(self, **_: Any) -> Any:
            raw, parts = await self.read(), self.url.path.split("/")
            if self.status >= 400 or parts[-1] != FINETUNE.plural:
                return json.loads(raw)
            meta, items = projection.read_page(FINETUNE, raw)
            namespace = parts[-2] if parts[-3] == "namespaces" else None
            listed(Listed(namespace, first="continue" not in self.url.query, last=not meta.get("continue"), items=items))
            return {"metadata": meta, "items": []}

    async def logged_in(**_: object) -> kopf.AiohttpSession:
        info = login()
        headers = {**info.as_http_headers(), "Accept-Encoding": "identity"}
        session = _session(info, limit=0, headers=headers, response_class=Response)
        return kopf.AiohttpSession(server=info.server, aiohttp_session=session, default_namespace=info.default_namespace)

    return logged_in


def _session(info: kopf.ConnectionInfo, *, limit: int, **given: Any) -> aiohttp.ClientSession:
    try:
        connector = aiohttp.TCPConnector(limit=limit, ssl=info.as_ssl_context())
    except (OSError, ValueError) as error:
        raise errors.Unavailable(f"no login to the API server: its or the user's certificate cannot be used: {error}") from error
    return aiohttp.ClientSession(
        connector=connector,
        proxy=info.proxy_url,
        trust_env=info.trust_env,
        read_bufsize=BUFFER,
        cookie_jar=aiohttp.DummyCookieJar(),
        **given,
    )
