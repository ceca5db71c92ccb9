"""Downloads that go on where they broke off.

Invariant: a file under its final name is whole, also after a loss of power. What has arrived of a file waits beside it as
`<name>.part`, and in `<name>.version` how much of it was flushed, and the validator of its version: only that much is gone on from,
so that a connection that ends costs nothing and a pod that ends at most `FLUSH_BYTES`.
"""

from __future__ import annotations

import os
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request

from finetune_trainer import addresses, layout
from finetune_trainer.exits import Infrastructure, UserError, about

TRIES = 5
DOWNLOAD_FAILED = "DownloadFailed"
BLOCK = 1 << 20
FLUSH_BYTES = 64 << 20
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
    with about(f"while {target} was filled"):
        return _transfer(name, ask, target, tries, wait)


def _transfer(name: str, ask: Open, target: Path, tries: int, wait: Callable[[float], None]) -> Version:
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
            raise Infrastructure(DOWNLOAD_FAILED, f"{name}: {reason}")
        print(f"{name}: {reason}; going on", flush=True)
        wait(2.0**failures / 2)
    part.rename(target)
    layout.flush(target.parent)
    note.unlink(missing_ok=True)
    return version


def _append(ask: Open, part: Path, note: Path) -> Version | None:
    """Ask for the rest of the file; its version if it is whole now."""
    flushed, version = _noted(note)
    begun = min(flushed, part.stat().st_size) if part.exists() else 0
    answer = ask(begun, version) if begun and version else ask(0, "")
    if answer.start == 0:
        note.write_text(f"0\n{answer.version}")
    with part.open("r+b" if answer.start else "wb") as stream:
        stream.seek(answer.start)
        stream.truncate()
        try:
            flushed = answer.start
            for block in answer.blocks:
                stream.write(block)
                if stream.tell() - flushed >= FLUSH_BYTES:
                    flushed = _flush(stream, note, answer.version)
        finally:
            _flush(stream, note, answer.version)
        return Version(answer.version, stream.tell()) if answer.size in (None, stream.tell()) else None


def _noted(note: Path) -> tuple[int, str]:
    """How many bytes of the part were flushed, and of which version; (0, '') where the note is not there, or not whole."""
    flushed, separator, version = note.read_text().partition("\n") if note.exists() else ("", "", "")
    return (int(flushed), version) if separator and flushed.isdigit() else (0, "")


def _flush(stream: BinaryIO, note: Path, version: str) -> int:
    stream.flush()
    os.fsync(stream.fileno())
    note.write_text(f"{stream.tell()}\n{version}")
    return stream.tell()


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
    """Whether a file still is of a version. It is asked for, under the condition that its ETag is another, and not read: links that are
    signed for GET allow no HEAD, and a server that knows no conditions still names the version. A date is no condition: servers take
    every older one for no change."""

    def unchanged(version: Version) -> bool:
        condition = {"If-None-Match": version.tag} if version.tag.startswith('"') else {}
        response = _response(address, token, condition)
        if response is None:
            return bool(condition)
        with response:
            return (_validator(response.headers), response.headers.get("Content-Length")) == (version.tag, str(version.size))

    return unchanged


def _response(address: str, token: str, headers: dict[str, str]) -> HTTPResponse | None:
    """The answer to a GET; None where its condition or its range leaves nothing to send."""
    request = Request(address, headers=headers)  # noqa: S310 - https alone gets here
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        response: HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=60)
    except HTTPError as error:
        with error:
            if error.code in (NOT_MODIFIED, BEYOND_END):
                return None
            raise _refusal(address, error.code) from error
    except InvalidURL:  # its words have all of the address
        reason = f"{addresses.shown(address)} is no address"
        raise UserError("AddressInvalid", reason, "Write blanks as %20, and no password: a Secret gives a token.") from None
    except (URLError, OSError, HTTPException) as error:
        raise Broken(str(error)) from error
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, with the token only to where it was given for."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> Request | None:
        """The request that follows `req`."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following is not None and token and _origin(following) == _origin(req):
            following.add_unredirected_header("Authorization", token)
        return following


def _origin(request: Request) -> tuple[str, str]:
    """Scheme, and host with port; those of the request itself, not of a proxy."""
    address = urlsplit(request.full_url)
    return address.scheme, address.netloc


def _refusal(address: str, code: int) -> Exception:
    host = urlsplit(address).hostname
    if code in USERS_CODES:
        return UserError(DOWNLOAD_FAILED, f"{addresses.shown(address)}: HTTP {code} from {host}", "Check the address and its access.")
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
    transfer(addresses.shown(address), over_http(address), target, tries)
