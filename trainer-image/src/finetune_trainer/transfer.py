"""Downloads that go on where they broke off.

Invariant: a file under its final name is whole. What has arrived of a file waits beside it as `<name>.part` with the
validator of its version, so that a connection that ends, or a pod, costs only what was not yet written.
"""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from finetune_trainer.exits import Infrastructure, UserError

TRIES = 5
BLOCK = 1 << 20
USERS_CODES = (400, 401, 403, 404, 410)
PARTIAL, NOT_MODIFIED, BEYOND_END = 206, 304, 416
DATE_PROVES = timedelta(minutes=1)  # a file of which the date is younger may change again within the same second (RFC 9110, 8.8.2.2)


class Version(NamedTuple):
    """What names one version of a file at its server ('' if nothing does), and its bytes."""

    tag: str
    size: int


@dataclass(frozen=True)
class Answer:
    """Blocks of a file from byte `start` on, its whole size where that is known, and what names this version of it ('' if nothing does)."""

    start: int
    size: int | None
    version: str
    blocks: Iterator[bytes]


Open = Callable[[int, str], Answer]
Unchanged = Callable[[Version], bool]


class Broken(Exception):
    """A connection could not be made, or ended early: to be tried again."""


def transfer(name: str, ask: Open, target: Path, tries: int = TRIES, wait: Callable[[float], None] = time.sleep) -> Version:
    """Fill `target` by `ask(offset, version)`, asked again from where an answer broke off, `tries` times without a new byte.

    Returns the version that came. Raises Infrastructure when it gives up."""
    part, note = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.version")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if version := _append(ask, part, note):
                break
            reason = f"{part.stat().st_size:,} bytes came, then the connection ended"
        except Broken as error:
            reason = str(error)
        moved = part.exists() and part.stat().st_size > before
        failures = 1 if moved else failures + 1
        if failures >= tries:
            raise Infrastructure("DownloadFailed", f"{name}: {reason}")
        print(f"{name}: {reason}; going on", flush=True)
        wait(2.0**failures / 2)
    part.rename(target)
    note.unlink(missing_ok=True)
    return version


def _append(ask: Open, part: Path, note: Path) -> Version | None:
    """Ask for the rest of the file; its version if it is whole now."""
    version = note.read_text() if note.exists() and part.exists() else ""
    answer = ask(part.stat().st_size if version else 0, version)
    note.write_text(answer.version)
    with part.open("r+b" if answer.start else "wb") as stream:
        stream.seek(answer.start)
        stream.truncate()
        for block in answer.blocks:
            stream.write(block)
        return Version(answer.version, stream.tell()) if answer.size in (None, stream.tell()) else None


def over_http(address: str, token: str = "") -> Open:
    """How a file is asked for by HTTP, with a bearer `token` if one is given. Client errors are the user's."""

    def ask(offset: int, version: str) -> Answer:
        response = _response(address, token, {"Range": f"bytes={offset}-", "If-Range": version} if offset else {})
        if response is None:
            return ask(0, "")
        start = offset if response.status == PARTIAL else 0
        length = response.headers.get("Content-Length")
        return Answer(start, None if length is None else start + int(length), _validator(response.headers), _blocks(response))

    return ask


def unchanged_over_http(address: str, token: str = "") -> Unchanged:
    """Whether a file still is of a version. It is asked for under that condition and not read: links that are signed for GET allow
    no HEAD, and a server that knows no conditions still names the version."""

    def unchanged(version: Version) -> bool:
        condition = "If-None-Match" if version.tag.startswith('"') else "If-Modified-Since"
        response = _response(address, token, {condition: version.tag})
        if response is None:
            return True
        with response:
            return (_validator(response.headers), response.headers.get("Content-Length")) == (version.tag, str(version.size))

    return unchanged


def _response(address: str, token: str, headers: dict[str, str]) -> HTTPResponse | None:
    """The answer to a GET; None where its condition or its range leaves nothing to send."""
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - https alone gets here
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=60)  # noqa: S310
    except HTTPError as error:
        with error:
            if error.code in (NOT_MODIFIED, BEYOND_END):
                return None
            raise _refusal(address, error.code) from error
    except (URLError, OSError, HTTPException) as error:
        raise Broken(str(error)) from error
    return response


def _refusal(address: str, code: int) -> Exception:
    host = urlsplit(address).hostname
    if code in USERS_CODES:
        return UserError("DownloadFailed", f"{address}: HTTP {code} from {host}", "Check the address and its access.")
    return Broken(f"HTTP {code} from {host}")


def _validator(headers: HTTPMessage) -> str:
    """What names the version for certain: a strong ETag, else the date of the last change where it is old enough."""
    tag = str(headers.get("ETag") or "")
    if tag and not tag.startswith("W/"):
        return tag
    changed, now = headers.get("Last-Modified"), headers.get("Date")
    try:
        return changed if changed and now and parsedate_to_datetime(now) - parsedate_to_datetime(changed) >= DATE_PROVES else ""
    except (TypeError, ValueError):
        return ""


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    with response:
        while True:
            try:
                block = response.read1(BLOCK)
            except (OSError, ssl.SSLError, HTTPException) as error:
                raise Broken(str(error)) from error
            if not block:
                return
            yield block


def download(address: str, target: Path, tries: int = TRIES) -> None:
    """Fetch `address` to `target`. Client errors are the user's, everything else is infrastructure."""
    transfer(address, over_http(address), target, tries)
