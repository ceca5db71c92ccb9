"""Answers that are kept while an evaluation runs, so that an interrupted one goes on where it was.

One line of JSON per answer in a file beside the evaluation's folder; the first line holds the fingerprint of what was
asked. Invariant: answers to other questions, or of another model, are never taken up.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import IO

from finetune_trainer.evaluate.client import Reply


class Kept:
    """Replies by row id, appended to a file as they come."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """`folder` is how they are called; the file lies beside where that would, and is of this fingerprint alone: an evaluation that is
        still being stopped writes into no other's."""
        self._path = _file(folder, fingerprint[:16])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.replies = _read(self._path, fingerprint)
        self._stream = self._open(fingerprint)

    def add(self, row: str, reply: Reply) -> None:
        """Keep one reply."""
        self.replies[row] = reply
        self._keep(row, reply)

    def close(self) -> None:
        """Close the file; it stays."""
        self._stream.close()

    def _open(self, fingerprint: str) -> IO[str]:
        self._stream = self._path.open("w")
        self._line({"fingerprint": fingerprint})
        for row, reply in self.replies.items():
            self._keep(row, reply)
        return self._stream

    def _keep(self, row: str, reply: Reply) -> None:
        self._line({"id": row, **asdict(reply)})

    def _line(self, document: dict[str, object]) -> None:
        self._stream.write(json.dumps(document, ensure_ascii=False) + "\n")
        self._stream.flush()


def forget(folder: Path) -> None:
    """Remove what was kept under that name, if anything was."""
    for file in folder.parent.glob(f".{folder.name}@*.answers.jsonl"):
        file.unlink(missing_ok=True)


def _file(folder: Path, fingerprint: str) -> Path:
    return folder.parent / f".{folder.name}@{fingerprint}.answers.jsonl"


def _read(path: Path, fingerprint: str) -> dict[str, Reply]:
    """Whole lines of a file with this fingerprint; a torn last line is left out."""
    try:
        lines = path.read_text().split("\n")[:-1]
        if not lines or json.loads(lines[0]).get("fingerprint") != fingerprint:
            return {}
        documents = [json.loads(line) for line in lines[1:]]
    except (OSError, ValueError):
        return {}
    return {document.pop("id"): Reply(**document) for document in documents}
