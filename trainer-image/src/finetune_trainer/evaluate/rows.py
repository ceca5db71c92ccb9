"""The sealed test split, what is left out of it, and scored rows on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer import layout
from finetune_trainer.exits import Infrastructure, JsonObject, UserError

TEST = "test.jsonl"
HASHES = "train-hashes.txt"
ROWS = "rows.jsonl"
RESULT = "result.json"
Message = dict[str, str]


@dataclass(frozen=True)
class TestRow:
    """One question; `id` is the content hash of question and reference answer. A plain text has no messages, and is the reference.
    `schema` is the JSON schema that the row brings for its answer, as text; empty where it has none."""

    __test__ = False
    id: str
    messages: tuple[Message, ...]
    reference: str
    schema: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is a plain text, to which there is no question."""
        return not self.messages


@dataclass(frozen=True)
class ScoredRow:
    """A row's answer (None where none was asked for), its score by metric and, if it has none, why."""

    id: str
    answer: str | None
    scores: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)


def test_rows(data: Path) -> list[TestRow]:
    """The rows of a complete data folder. Raises UserError where there are none, Infrastructure if incomplete."""
    try:
        layout.read_manifest(data, layout.DATA_MANIFEST)
        lines = (data / TEST).read_text().split("\n")
    except (layout.Corrupt, OSError) as error:
        raise Infrastructure("DataIncomplete", str(error), "Let the prepare stage run again.") from error
    rows = [_test_row(json.loads(line)) for line in lines if line.strip()]
    if not rows:
        raise UserError("NoTestRows", "the test split is empty", "Give more data, a larger split.test, or data.test.")
    return rows


test_rows.__test__ = False  # type: ignore[attr-defined]


def without_trained_on(rows: list[TestRow], data: Path | None) -> tuple[list[TestRow], int]:
    """`rows` less those whose hash is among the training rows of `data`, and how many were left out. Raises UserError if
    none is left."""
    if data is None:
        return rows, 0
    try:
        layout.read_manifest(data, layout.DATA_MANIFEST)
        seen = set((data / HASHES).read_text().split())
    except (layout.Corrupt, OSError) as error:
        raise Infrastructure("DataIncomplete", str(error), "The live revision's data folder is needed.") from error
    kept = [row for row in rows if row.id not in seen]
    if not kept:
        raise UserError(
            "NoComparableRows",
            f"the live revision was trained on all {len(rows)} test rows: none is left to compare the two on",
            "Bring a data.test of your own that no revision trains on, or keep data.split.seed as it was.",
        )
    return kept, len(rows) - len(kept)


def write(path: Path, rows: Iterable[ScoredRow]) -> None:
    """Write rows as JSON lines."""
    with path.open("w") as stream:
        for row in rows:
            stream.write(json.dumps(_document(row), ensure_ascii=False) + "\n")


def read(folder: Path) -> list[ScoredRow]:
    """The rows of a complete evaluation folder. Raises Infrastructure if it is not complete."""
    try:
        layout.read_manifest(folder)
        lines = (folder / ROWS).read_text().split("\n")
    except (layout.Corrupt, OSError) as error:
        raise Infrastructure("ReferenceIncomplete", str(error), "Score the reference again.") from error
    documents = [json.loads(line) for line in lines if line.strip()]
    return [ScoredRow(str(d["id"]), d["answer"], {k: float(v) for k, v in d["scores"].items()}, d.get("notes", {})) for d in documents]


def finished(folder: Path) -> JsonObject | None:
    """The result of an evaluation's folder that counts and is intact, else None."""
    try:
        layout.verify(folder)
        return dict(json.loads((folder / RESULT).read_text()))
    except (layout.Corrupt, OSError, ValueError):
        return None


def _test_row(document: dict[str, Any]) -> TestRow:
    messages = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in document["messages"])
    return TestRow(str(document["id"]), messages, str(document["reference"]), str(document.get("schema", "")))


def _document(row: ScoredRow) -> dict[str, object]:
    document: dict[str, object] = {"id": row.id, "answer": row.answer, "scores": row.scores}
    return {**document, "notes": row.notes} if row.notes else document
