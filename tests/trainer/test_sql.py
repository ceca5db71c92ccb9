"""SqlExecution: what counts as the same answer, and what an answer may not do."""

from __future__ import annotations

import signal
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_trainer.evaluate import sql
from finetune_trainer.exits import Interrupted, UserError

SCHEMA = """
CREATE TABLE items(id INTEGER, name TEXT, price REAL);
INSERT INTO items VALUES (1, 'lamp', 2.5), (2, 'chair', 7), (3, 'drum', 2.5);
"""


@pytest.fixture
def database() -> sql.Database:
    return sql.Database(SCHEMA, seconds=0.5)


SAME = {
    "the same query": ("SELECT name FROM items", "SELECT name FROM items"),
    "columns by position, not by name": ("SELECT name AS n FROM items", "SELECT name FROM items"),
    "another order where the reference has none": ("SELECT name FROM items ORDER BY price DESC", "SELECT name FROM items"),
    "an ORDER BY in a subquery does not order": (
        "SELECT id FROM items ORDER BY id DESC", "SELECT id FROM (SELECT id FROM items ORDER BY id)",
    ),
    "2 and 2.0": ("SELECT 2.0", "SELECT 2"),
    "sums with rounding error": ("SELECT 0.1 + 0.2", "SELECT 0.3"),
    "a fenced answer with talk around it": ("Sure:\n```sql\nSELECT 1;\n```\nDone.", "SELECT 1"),
    "a closing semicolon": ("SELECT 1;", "SELECT 1"),
    "a common table expression": ("WITH a AS (SELECT 1) SELECT * FROM a", "SELECT 1"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "reference"), SAME.values(), ids=SAME)
def test_answers_that_are_right(database: sql.Database, answer: str, reference: str) -> None:
    assert sql.score(database, answer, reference) == sql.Verdict(1.0)


WRONG = {
    "other rows": ("SELECT name FROM items WHERE id = 1", "SELECT name FROM items", "other rows"),
    "a row twice": ("SELECT 1 UNION ALL SELECT 1", "SELECT 1", "other rows"),
    "another order where the reference has one": (
        "SELECT name FROM items", "SELECT name FROM items ORDER BY price, name", "other rows",
    ),
    "no SQL": ("I do not know.", "SELECT 1", "syntax error"),
    "nothing": ("", "SELECT 1", "no query"),
    "two statements": ("SELECT 1; SELECT 1", "SELECT 1", "one statement"),
    "a table that is not there": ("SELECT * FROM users", "SELECT 1", "no such table"),
    "text for a number": ("SELECT '1'", "SELECT 1", "other rows"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "reference", "note"), WRONG.values(), ids=WRONG)
def test_answers_that_are_wrong_say_why(database: sql.Database, answer: str, reference: str, note: str) -> None:
    verdict = sql.score(database, answer, reference)
    assert verdict.score == 0
    assert note in verdict.note


HARM = {
    "deletes": "DELETE FROM items",
    "drops": "DROP TABLE items",
    "inserts": "INSERT INTO items VALUES (9, 'x', 1)",
    "updates and returns": "UPDATE items SET price = 0 RETURNING id",
    "attaches a file": "ATTACH DATABASE '/tmp/evil.db' AS e",
    "changes a setting": "PRAGMA writable_schema = 1",
    "loads code": "SELECT load_extension('/tmp/evil.so')",
    "counts without end": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "gives rows without end": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    "builds a huge value": "SELECT length(hex(zeroblob(900000000)))",
    "multiplies tables": "SELECT count(*) FROM " + ", ".join(f"items t{index}" for index in range(30)),
}


@pytest.mark.parametrize("answer", HARM.values(), ids=HARM)
def test_an_answer_harms_nothing_and_nobody(database: sql.Database, answer: str, tmp_path: Path) -> None:
    started = time.thread_time()
    assert sql.score(database, answer, "SELECT 1").score == 0
    assert time.thread_time() - started < 3
    assert not Path("/tmp/evil.db").exists()
    assert database.rows("SELECT count(*), sum(price) FROM items") == [(3, 12.0)], "the next answer sees what this one saw"


def test_a_reference_that_does_not_run_is_named_before_anything_is_asked(database: sql.Database) -> None:
    with pytest.raises(UserError, match="test row 7f: its reference query does not run"):
        sql.check_reference(database, "7f", "SELECT nothing FROM nowhere")


def test_a_schema_that_does_not_run_is_the_users() -> None:
    with pytest.raises(UserError, match="schema does not run on SQLite"):
        sql.Database("CREATE TABLE (")


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "


def test_the_rows_of_an_answer_fill_no_memory() -> None:
    database = sql.Database(SCHEMA, seconds=20)
    tracemalloc.start()
    try:
        with pytest.raises(sql.QueryFailed, match="gives more than 64 MiB"):
            database.rows(ENDLESS + "SELECT hex(zeroblob(450000)) FROM n")
        assert tracemalloc.get_traced_memory()[1] < 80 * 1024**2
    finally:
        tracemalloc.stop()


def test_time_that_passes_for_others_is_not_the_querys(database: sql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(sql, "time", SimpleNamespace(monotonic=lambda: next(hours), thread_time=time.thread_time))
    assert database.rows(ENDLESS + "SELECT count(*) FROM (SELECT i FROM n LIMIT 5000)") == [(5000,)]


@pytest.fixture
def terminated(database: sql.Database) -> Iterator[sql.Database]:
    """A database whose function `stop()` is the moment at which SIGTERM comes."""

    def interrupt(*_: Any) -> None:
        raise Interrupted("Interrupted", "stopped by SIGTERM")

    database._connection.create_function("stop", 0, lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, interrupt)
    yield database
    signal.signal(signal.SIGTERM, before)


STOPPED = {
    "an answer": lambda database: sql.score(database, "SELECT stop()", "SELECT 1"),
    "an answer without end": lambda database: sql.score(database, ENDLESS + "SELECT stop() FROM n", "SELECT 1"),
    "a reference": lambda database: sql.check_reference(database, "7f", "SELECT stop()"),
}


@pytest.mark.parametrize("work", STOPPED.values(), ids=STOPPED)
def test_a_request_to_stop_is_no_score_and_no_fault_of(work: Any, terminated: sql.Database) -> None:
    with pytest.raises(Interrupted):
        work(terminated)
    assert terminated.rows("SELECT 1") == [(1,)]
