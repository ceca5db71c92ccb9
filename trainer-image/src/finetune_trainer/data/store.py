"""Conversations on disk while they are prepared: memory holds a small record of each, never the rows themselves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.data.formats import Row

LONGEST_LABEL = 64


@dataclass(frozen=True, slots=True)
class Record:
    """Where a row came from, its content's digest, its answer (characters, and the text where it may be a label), and its bytes
    in the store."""

    source: str
    row: int
    digest: str
    characters: int
    label: str
    offset: int
    size: int


class RowStore:
    """An append-only file of conversations, read back by record in any order."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a+b")
        self._end = self._stream.seek(0, os.SEEK_END)

    def add(self, row: Row) -> Record:
        """Keep `row`; OSError where the volume fails."""
        kept = [row.messages, row.rejected, *([row.schema] if row.schema else [])]
        content = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        self._stream.write(content)
        answer = row.response.strip()
        label = sys.intern(answer) if len(answer) <= LONGEST_LABEL else ""
        record = Record(row.source, row.row, row.digest, len(answer), label, self._end, len(content))
        self._end += len(content)
        return record

    def rows(self, records: Iterable[Record]) -> Iterator[Row]:
        """The rows of `records`, in their order."""
        for row, _ in self.contents(records):
            yield row

    def contents(self, records: Iterable[Record]) -> Iterator[tuple[Row, bytes]]:
        """The rows of `records`, in their order, each with what is kept of it."""
        self._stream.flush()
        descriptor = self._stream.fileno()
        for record in records:
            content = os.pread(descriptor, record.size, record.offset)
            messages, rejected, *schema = json.loads(content)
            yield Row(record.source, record.row, tuple(messages), record.digest, tuple(rejected), *schema), content

    def flush(self) -> None:
        """Give what was added to the file system."""
        self._stream.flush()

    def close(self) -> None:
        """Close the file; its folder's owner removes it."""
        self._stream.close()
