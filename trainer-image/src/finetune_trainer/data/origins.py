"""Where each prepared row came from: `<split>-rows.jsonl` has a line `[row, source]` a row, in the order of the arrays.

Only a message reads it, so a folder that has none (an older image prepared it) is told of by the rows' places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TextIO

from finetune_trainer.data.formats import Row

MOST = 5


class Writer:
    """Writes the lines of a split."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def add(self, row: Row) -> None:
        """Append where `row` came from."""
        self._stream.write(json.dumps([row.row, row.source], ensure_ascii=False) + "\n")


@contextmanager
def written(folder: Path, split: str) -> Iterator[Writer]:
    """What writes the file of a split."""
    with _file(folder, split).open("w") as stream:
        yield Writer(stream)


def told(folder: Path, split: str, rows: Sequence[int]) -> str:
    """The first few of the prepared `rows` (places in the arrays) by number and source: 'rows 17, 203 of a.jsonl and 2 more'."""
    shown, more = sorted(rows)[:MOST], len(rows) - MOST
    found = _found(folder, split, shown)
    named = [_named([row for row, _ in several], f" of {source}") for source, several in groupby(found, key=lambda pair: pair[1])]
    words = " and ".join(named) or _named(shown, f" (from 0) of the prepared {split} rows")
    return words + (f" and {more} more" if more > 0 else "")


def _found(folder: Path, split: str, places: Sequence[int]) -> list[tuple[int, str]]:
    """(row, source) of each place, by source; none where the file is not there."""
    try:
        with _file(folder, split).open() as stream:
            found = [json.loads(line) for place, line in enumerate(stream) if place in places]
    except OSError:
        return []
    return sorted(((row, source) for row, source in found), key=lambda pair: (pair[1], pair[0]))


def _named(rows: Sequence[int], where: str) -> str:
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}{where}"


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}-rows.jsonl"
