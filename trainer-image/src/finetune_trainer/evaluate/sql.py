"""SqlExecution: does the answer's query give the rows that the reference's query gives?

Both run on a SQLite database made in memory from the schema script. Columns are compared by position, not by name; the
order of rows counts only where the reference has an ORDER BY of its own (not in a subquery).
Invariant: an answer can only read: an authorizer refuses everything but SELECT, and processor time, rows, SQLite's
memory, the length of values and the bytes of all rows together are bounded, so that no answer harms the evaluator or
another answer. SIGTERM waits for the end of a query, because SQLite swallows what is raised inside it.
"""

from __future__ import annotations

import re
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from finetune_trainer.exits import UserError

SECONDS = 2.0  # of processor time, so that a busy machine makes no answer wrong
MAX_ROWS = 10_000
MAX_VALUE_BYTES = 1_000_000
MAX_BYTES = 64 * 1024 * 1024  # of all rows of a query, as Python holds them
HEAP_BYTES = 256 * 1024 * 1024
_SCHEMA_SECONDS = 120.0
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_REFUSED_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
_FENCE = re.compile(r"```[ \t]*(?:sqlite3?|sql)?\b[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_INNERMOST = re.compile(r"\([^()]*\)")
_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)

Row = tuple[object, ...]


@dataclass(frozen=True)
class Verdict:
    """A score, and why it is 0 where the query did not run."""

    score: float
    note: str = ""


class QueryFailed(Exception):
    """A query that was refused, failed or went over a limit; the text says which."""


class Database:
    """The schema's database, open for reading only."""

    def __init__(self, script: str, seconds: float = SECONDS) -> None:
        """Raises UserError where the script fails."""
        self._seconds, self._deadline, self._stopped = seconds, 0.0, False
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.execute("PRAGMA temp_store = MEMORY")
        self._connection.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.set_progress_handler(self._late, 1000)
        self._make(script)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000)
        self._connection.set_authorizer(_authorize)

    def rows(self, query: str) -> list[Row]:
        """The rows of one SELECT. Raises QueryFailed."""
        if not query:
            raise QueryFailed("no query")
        self._deadline = time.thread_time() + self._seconds
        try:
            with self._uninterrupted():
                return self._rows(query)
        except sqlite3.OperationalError as error:
            late = "interrupted" in str(error)
            raise QueryFailed(f"took longer than {self._seconds:g} s" if late else str(error)) from None
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError, OverflowError) as error:
            raise QueryFailed(str(error) or "out of memory") from None

    def _rows(self, query: str) -> list[Row]:
        cursor = self._connection.execute(query)
        try:
            if cursor.description is None:
                raise QueryFailed("not a query that gives rows")
            return _bounded(cursor)
        finally:
            cursor.close()

    def _make(self, script: str) -> None:
        self._deadline = time.thread_time() + _SCHEMA_SECONDS
        try:
            with self._uninterrupted():
                self._connection.executescript(script)
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            raise UserError(
                "SchemaInvalid", f"evaluation's SQL schema does not run on SQLite: {error}",
                "Give CREATE TABLE and INSERT statements that SQLite accepts.",
            ) from error  # fmt: skip

    def _late(self) -> int:
        return int(self._stopped or time.thread_time() > self._deadline)

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Hold SIGTERM's handler back during the block, which `_late` then ends, and call it after the block."""
        handler = signal.getsignal(signal.SIGTERM)
        if not callable(handler) or threading.current_thread() is not threading.main_thread():
            yield
            return

        def hold(_signal: int, _frame: FrameType | None) -> None:
            self._stopped = True

        signal.signal(signal.SIGTERM, hold)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
            if self._stopped:
                self._stopped = False
                handler(signal.SIGTERM, None)


def open_schema(schema: Path) -> Database:
    """The database that a schema script makes. Raises UserError."""
    try:
        return Database(schema.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("SchemaMissing", f"cannot read the SQL schema {schema}: {error}") from error


def check_reference(database: Database, row: str, reference: str) -> None:
    """Raise UserError that names `row` where its reference query does not run."""
    try:
        database.rows(query_in(reference))
    except QueryFailed as error:
        raise UserError(
            "ReferenceInvalid", f"test row {row}: its reference query does not run on the schema: {error}: {reference[:200]}",
            "Correct the row, or the schema.",
        ) from error  # fmt: skip


def score(database: Database, answer: str, reference: str) -> Verdict:
    """1 where the answer's query gives the reference's rows. The reference must run (`check_reference`)."""
    query = query_in(reference)
    expected = database.rows(query)
    try:
        found = database.rows(query_in(answer))
    except QueryFailed as error:
        return Verdict(0.0, str(error)[:300])
    same = found == expected if is_ordered(query) else Counter(found) == Counter(expected)
    return Verdict(float(same), "" if same else "other rows than the reference")


def query_in(answer: str) -> str:
    """The SQL in an answer: its first code fence, else all of it; one closing semicolon is left out."""
    fenced = _FENCE.search(answer)
    text = (fenced.group(1) if fenced else answer).strip()
    return text.removesuffix(";").strip()


def is_ordered(query: str) -> bool:
    """Whether the query itself, not a part in parentheses, has an ORDER BY."""
    text = _QUOTED.sub(" ", query)
    while (shorter := _INNERMOST.sub(" ", text)) != text:
        text = shorter
    return _ORDER_BY.search(text) is not None


def _bounded(cursor: Iterable[Row]) -> list[Row]:
    """All rows, taken one by one, so that one row too much (at most SQLite's heap) is the most ever held. Raises QueryFailed."""
    rows: list[Row] = []
    size = 0
    for row in cursor:
        size += sys.getsizeof(row) + sum(map(sys.getsizeof, row))
        if len(rows) == MAX_ROWS:
            raise QueryFailed(f"gives more than {MAX_ROWS} rows")
        if size > MAX_BYTES:
            raise QueryFailed(f"gives more than {MAX_BYTES // 1024**2} MiB")
        rows.append(tuple(_plain(value) for value in row))
    return rows


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    allowed = action in _ALLOWED and not (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _REFUSED_FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _plain(value: object) -> object:
    """Numbers so that 2, 2.0 and a sum with rounding error compare equal (9 significant digits)."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.9g}")
