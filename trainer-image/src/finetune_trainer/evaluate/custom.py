"""Custom: what an image of the user's says of the answers.

It finds `in/rows.jsonl`, a line for each row that was answered, and leaves `out/scores.jsonl`, a line for each of these in any order. It is
as little to be trusted as the answers: no line of its file is believed before it is checked, and none makes the evaluator wait or swell.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import UserError

ROWS: Final = "in/rows.jsonl"
SCORES: Final = "out/scores.jsonl"
LINE_BYTES: Final = 4096  # of a score with its note
NOTE_CHARACTERS: Final = 200
FIX: Final = (
    'Its image must leave /metric/out/scores.jsonl with a line {"id": "…", "score": 0.5, "note": "why"} '
    "for each line of /metric/in/rows.jsonl."
)


def hand_out(folder: Path, test: Sequence[TestRow], answers: Mapping[str, str | None]) -> None:
    """Write the rows that were answered, with what is wanted, and make room for the scores."""
    for name in ("in", "out", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / ROWS).open("w") as stream:
        for row in {row.id: row for row in test}.values():  # where rows may repeat, the same question with the same answer comes once
            if (answer := answers.get(row.id)) is not None:
                document = {"id": row.id, "prompt": list(row.messages), "reference": row.reference, "answer": answer}
                stream.write(json.dumps(document, ensure_ascii=False) + "\n")


class Scores:
    """The scores of an image, read once they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / SCORES

    def score(self, answer: str, row: TestRow) -> tuple[float, str]:
        """Score and note of a row that was answered. UserError where the image left none, or one that is none."""
        found = self._found.get(row.id)
        if found is None:
            raise _invalid(f"it has no line for row {row.id}, which was answered")
        return found

    @cached_property
    def _found(self) -> dict[str, tuple[float, str]]:
        found: dict[str, tuple[float, str]] = {}
        with _opened(self._file) as stream:
            number = 0
            while line := stream.readline(LINE_BYTES + 1):
                number += 1
                if len(line) > LINE_BYTES:
                    raise _invalid(f"line {number} is longer than {LINE_BYTES} bytes")
                if line.strip():
                    row, score, note = _read(line, number)
                    if row in found:
                        raise _invalid(f"line {number} scores row {row[:64]} a second time")
                    found[row] = score, note
        return found


def _opened(file: Path) -> BinaryIO:
    """The file itself: neither what a link points to, nor a pipe that nobody writes."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _invalid(f"it cannot be read: {error.strerror}") from error
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise _invalid("it is no plain file")
    return stream


def _read(line: bytes, number: int) -> tuple[str, float, str]:
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"line {number} is no JSON: {str(error)[:100]}") from error
    if not isinstance(said, dict) or not isinstance(said.get("id"), str):
        raise _invalid(f"line {number} has no id of a row")
    score, note = said.get("score"), said.get("note") or ""
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise _invalid(f"line {number}: its score is {str(score)[:40]}, no number from 0 to 1")
    return said["id"], float(score), str(note)[:NOTE_CHARACTERS].encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def _invalid(what: str) -> UserError:
    return UserError("MetricInvalid", f"evaluation.metrics: the scores of metric Custom: {what}", FIX)
