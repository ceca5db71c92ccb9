"""What an earlier try has downloaded of a model from the hub, for the next one to go on from.

Invariant: a file that is kept is, byte for byte, what the hub named when it came (after a loss of power it may not be), and once a
download is complete nothing else is there: a branch may have moved between two tries. The hub's client notes of each file its commit, its
ETag (the sha256 of a large file, git's name of a small one) and when, in `.cache/huggingface/download/<file>.metadata`; of a file that is
not whole it keeps nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer import layout

NOTES = Path(".cache", "huggingface", "download")
_BLOCK = 1 << 20
_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Noted:
    """A file, and what the hub's client noted of it: `time` in seconds since the epoch."""

    path: Path
    commit: str
    etag: str
    time: float

    def is_whole(self) -> bool:
        """Whether its content is what its ETag names; one that names no content proves nothing."""
        if _SHA256.fullmatch(self.etag):
            return layout.sha256_file(self.path) == self.etag
        return bool(_GIT.fullmatch(self.etag)) and _git_name(self.path) == self.etag


def keep_whole(folder: Path) -> int:
    """Remove what no note proves whole, and what was being written; the bytes that are left."""
    for left in (folder / NOTES).rglob("*.incomplete"):
        left.unlink()
    kept = {noted.path for noted in _noted(folder) if noted.is_whole()}
    for path in _files(folder):
        if path not in kept:
            path.unlink()
    return sum(path.stat().st_size for path in kept)


def drop_others(folder: Path) -> None:
    """Of a download that is complete: remove files of an earlier commit that the last one does not have."""
    noted = list(_noted(folder))
    last = max(noted, key=lambda note: note.time, default=None)
    for note in noted:
        if last is not None and note.commit != last.commit:
            note.path.unlink()


def _noted(folder: Path) -> Iterator[Noted]:
    for note in sorted((folder / NOTES).rglob("*.metadata")):
        path = folder / note.relative_to(folder / NOTES).with_suffix("")
        lines = note.read_text(errors="replace").split()
        if len(lines) == 3 and path.is_file() and re.fullmatch(r"[0-9.]+", lines[2]):
            yield Noted(path, lines[0], lines[1], float(lines[2]))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != NOTES.parts[0]]


def _git_name(path: Path) -> str:
    """How git names a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
