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
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from finetune_trainer import layout
from finetune_trainer.exits import Infrastructure, UserError, about

TRIES = 5
BLOCK = 1 << 20
FLUSH_BYTES = 64 << 20
USERS_CODES = (400, 401, 403, 404, 410)
PARTIAL, BEYOND_END = 206, 416


@dataclass(frozen=True)
class Answer:
    """Blocks of a file from byte `start` on, its whole size where that is known, and what names this version of it ('' if nothing does)."""

    start: int
    size: int | None
    version: str
    blocks: Iterator[bytes]


Open = Callable[[int, str], Answer]


class Broken(Exception):
    """A connection could not be made, or ended early: to be tried again."""


def transfer(name: str, ask: Open, target: Path, tries: int = TRIES, wait: Callable[[float], None] = time.sleep) -> None:
    """Fill `target` by `ask(offset, version)`, asked again from where an answer broke off, `tries` times without a new byte.

    Raises Infrastructure when it gives up."""
    with about(f"while {target} was filled"):
        _transfer(name, ask, target, tries, wait)


def _transfer(name: str, ask: Open, target: Path, tries: int, wait: Callable[[float], None]) -> None:
    part, note = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.version")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _append(ask, part, note):
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
    layout.flush(target.parent)
    note.unlink(missing_ok=True)


def _append(ask: Open, part: Path, note: Path) -> bool:
    """Ask for the rest of the file; whether it is whole now."""
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
        return answer.size is None or stream.tell() == answer.size


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
        headers = {"Range": f"bytes={offset}-", "If-Range": version} if offset else {}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(address, headers=headers)  # noqa: S310 - https alone gets here
        try:
            response = urllib.request.urlopen(request, timeout=60)  # noqa: S310
        except HTTPError as error:
            with error:
                if error.code == BEYOND_END:
                    return ask(0, "")
                if error.code not in USERS_CODES:
                    raise Broken(f"HTTP {error.code} from {urlsplit(address).hostname}") from error
                raise UserError(
                    "DownloadFailed", f"{address}: HTTP {error.code} from {urlsplit(address).hostname}", "Check the address and its access."
                ) from error
        except (URLError, OSError, HTTPException) as error:
            raise Broken(str(error)) from error
        start = offset if response.status == PARTIAL else 0
        length = response.headers.get("Content-Length")
        return Answer(start, None if length is None else start + int(length), _validator(response.headers), _blocks(response))

    return ask


def _validator(headers: HTTPMessage) -> str:
    """What a server takes in If-Range: a strong ETag, else the date of the last change."""
    tag = str(headers.get("ETag") or "")
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified") or "")


def _blocks(response: object) -> Iterator[bytes]:
    with response:  # type: ignore[attr-defined]
        while True:
            try:
                block = response.read1(BLOCK)  # type: ignore[attr-defined]
            except (OSError, ssl.SSLError, HTTPException) as error:
                raise Broken(str(error)) from error
            if not block:
                return
            yield block


def download(address: str, target: Path, tries: int = TRIES) -> None:
    """Fetch `address` to `target`. Client errors are the user's, everything else is infrastructure."""
    transfer(address, over_http(address), target, tries)
