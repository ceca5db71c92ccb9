"""What is asked of the API server: dict bodies, server-side apply, timeouts, classified errors.

Every write first asks `may_write`, so that a process whose Lease has run out changes nothing any more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec

from finetune_operator import errors, names, projection
from finetune_operator.connection import Connection
from finetune_operator.kinds import FINETUNE, Kind
from finetune_operator.projection import Object

TIMEOUT_SECONDS: Final = 15.0
TIMEOUT: Final = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
WATCH_SECONDS: Final = 300  # after about so long the API server ends a watch
SILENCE_SECONDS: Final = 130.0  # its bookmarks come once a minute: a connection that says nothing for so long is dead
PAGE: Final = 200
JSON: Final = "application/json"
METADATA: Final = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
T = TypeVar("T")
ERRORS: Final[Mapping[int, type[errors.ClusterError]]] = {
    400: errors.Invalid,
    401: errors.Unavailable,  # a token that has run out: the kubelet has another one
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.Unavailable,  # a list took longer than its pages are kept, or a watch would begin before what is kept: list again
    413: errors.Invalid,
    422: errors.Invalid,
}


def always() -> None:
    """Writes are allowed: for tests and for the elector itself."""


class Page(NamedTuple):
    """Some of a list's objects, and the resourceVersion of the whole list."""

    version: str
    items: list[Object]


class Cluster:
    """The API server. `count` is told (verb, kind) of each write."""

    def __init__(
        self,
        connection: Connection,
        *,
        may_write: Callable[[], None] = always,
        count: Callable[[str, str], None] = lambda verb, kind: None,
    ) -> None:
        self._connection = connection
        self._may_write = may_write
        self._count = count

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """The object, or None when there is none."""
        try:
            return await self._request("GET", kind.path(namespace, name), partial(projection.read, kind))
        except errors.NotFound:
            return None

    async def pages(
        self, kind: Kind, namespace: str | None = None, label_selector: str = "", field_selector: str = "", *, metadata: bool = False
    ) -> AsyncIterator[Page]:
        """All objects (or their metadata alone), page by page; each carries its apiVersion and kind (items of a LIST do not)."""
        query = {"limit": str(PAGE), "labelSelector": label_selector, "fieldSelector": field_selector}
        while True:
            given = {k: v for k, v in query.items() if v}
            read, accept = partial(projection.read_page, kind), METADATA if metadata else JSON
            meta, items = await self._request("GET", kind.path(namespace), read, query=given, accept=accept)
            query["continue"] = meta.get("continue", "")
            yield Page(meta.get("resourceVersion", ""), items)
            if not query["continue"]:
                return

    async def may_list(self, kind: Kind, namespace: str | None = None) -> None:
        """Forbidden where the kind's objects are not for us to list."""
        await self._request("GET", kind.path(namespace), bytes, query={"limit": "1"}, accept=METADATA)

    async def watch(self, kind: Kind, namespace: str | None, label_selector: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        """Type and object of each event after that version (BOOKMARK: nothing but a later version), until the watch ends or is cut off.

        Unavailable, or another ClusterError, when it cannot be had from there: to list again is the way on.
        """
        lasting = round(WATCH_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(lasting)}
        query |= {"labelSelector": label_selector} if label_selector else {}
        timeout = aiohttp.ClientTimeout(sock_read=SILENCE_SECONDS)
        path = kind.path(namespace)
        async with self._response("GET", path, query=query, within=timeout) as response:
            async for line in _lines(response):
                type_, obj = projection.read_event(kind, line)
                if type_ == "ERROR":
                    raise _classified("WATCH", path, int(obj.get("code") or 500), msgspec.json.encode(obj), None)
                yield type_, obj

    async def list(self, kind: Kind, namespace: str | None = None, label_selector: str = "", field_selector: str = "") -> list[Object]:
        """All objects at once, where they are few."""
        return [obj async for page in self.pages(kind, namespace, label_selector, field_selector) for obj in page.items]

    async def create(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        """POST; AlreadyExists when the name is taken."""
        try:
            return await self._write("create", "POST", kind, kind.path(obj["metadata"].get("namespace")), obj)
        except errors.Conflict as error:
            raise errors.AlreadyExists(str(error), reason=error.reason) from error

    async def apply(self, kind: Kind, obj: Mapping[str, Any], *, resource_version: str | None = None) -> Object:
        """Server-side apply of an object that is there; Conflict when it is no longer at that resourceVersion."""
        meta = dict(obj["metadata"])
        if resource_version is not None:
            meta["resourceVersion"] = resource_version
        body = {**obj, "metadata": meta}
        return await self._write("apply", "PATCH", kind, kind.path(meta.get("namespace"), meta["name"]), body)

    async def apply_status(self, finetune: Mapping[str, Any]) -> Object:
        """Server-side apply of a FineTune's status; the object carries uid and resourceVersion."""
        meta = finetune["metadata"]
        path = FINETUNE.path(meta["namespace"], meta["name"]) + "/status"
        return await self._write("status", "PATCH", FINETUNE, path, finetune)

    async def replace(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        """PUT of an object with its resourceVersion."""
        meta = obj["metadata"]
        return await self._write("replace", "PUT", kind, kind.path(meta.get("namespace"), meta["name"]), obj)

    async def annotate(self, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str]) -> Object:
        """Merge-patch annotations of an object that others own."""
        body = {"metadata": {"annotations": dict(annotations)}}
        return await self._write("annotate", "PATCH", kind, kind.path(namespace, name), body, merge=True)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None, foreground: bool = False) -> None:
        """Delete; an object that is not there (or is another one by now) is fine. `foreground`: it stays until what it owns is gone."""
        body: Object = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._write("delete", "DELETE", kind, kind.path(namespace, name), body)
        except (errors.NotFound, errors.Conflict):
            return

    async def _write(self, verb: str, method: str, kind: Kind, path: str, body: Mapping[str, Any], *, merge: bool = False) -> Object:
        self._may_write()
        query = {"fieldManager": names.FIELD_MANAGER} if method != "DELETE" else {}
        content = JSON
        if method == "PATCH":
            content = "application/merge-patch+json" if merge else "application/apply-patch+yaml"
            if not merge:
                query["force"] = "true"
        self._count(verb, kind.kind)
        read = _nothing if method == "DELETE" else partial(projection.read, kind)  # a deletion is answered by the object, or by a Status
        return await self._request(method, path, read, query=query, body=body, content=content)

    async def _request(
        self,
        method: str,
        path: str,
        read: Callable[[bytes], T],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = JSON,
        accept: str = JSON,
    ) -> T:
        async with self._response(method, path, query=query, body=body, content=content, accept=accept) as response:
            return read(await response.read())

    @asynccontextmanager
    async def _response(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = JSON,
        accept: str = JSON,
        within: aiohttp.ClientTimeout = TIMEOUT,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """What the API server answers, begun in time and if that is no error; Unavailable also when it breaks off, or is no JSON."""
        headers = {"Accept": accept, "Accept-Encoding": "identity", "Content-Type": content}  # to compress costs both sides more
        asked = path + (f"?{urlencode(query)}" if query else "")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await self._connection.request(
                    method, asked, headers=headers, body=msgspec.json.encode(body) if body else None, within=within
                )
            async with answer as response:
                if response.status >= 400:
                    raise _classified(method, path, response.status, await response.read(), response.headers.get("Retry-After"))
                yield response
        except (TimeoutError, aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            raise errors.Unavailable(f"{method} {path}: {error or type(error).__name__}") from error


def _classified(method: str, path: str, status: int, answer: bytes, retry_after: str | None) -> errors.ClusterError:
    said = _status(answer)
    message, reason = str(said.get("message") or answer[:300].decode(errors="replace")), str(said.get("reason", ""))
    kind = ERRORS.get(status, errors.Unavailable if status == 429 or status >= 500 else errors.ClusterError)
    delay = float(retry_after) if retry_after and retry_after.isdigit() else None
    return kind(f"{method} {path}: {status} {message}", reason=reason, retry_after=delay)


def _status(answer: bytes) -> Mapping[str, Any]:
    """The Status that an answer is, if it is one."""
    try:
        return msgspec.json.decode(answer, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _nothing(_: bytes) -> Object:
    return {}


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines, of any length, until the answer ends or is cut off; half a line is none."""
    rest = b""
    try:
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError):
        return
