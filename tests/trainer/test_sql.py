"""SqlExecution: what counts as the same answer, and what an answer may not do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from finetune_trainer.evaluate import sql
from finetune_trainer.exits import UserError

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
    started = time.monotonic()
    assert sql.score(database, answer, "SELECT 1").score == 0
    assert time.monotonic() - started < 3
    assert not Path("/tmp/evil.db").exists()
    assert database.rows("SELECT count(*), sum(price) FROM items") == [(3, 12.0)], "the next answer sees what this one saw"


def test_a_reference_that_does_not_run_is_named_before_anything_is_asked(database: sql.Database) -> None:
    with pytest.raises(UserError, match="test row 7f: its reference query does not run"):
        sql.check_reference(database, "7f", "SELECT nothing FROM nowhere")


def test_a_schema_that_does_not_run_is_the_users() -> None:
    with pytest.raises(UserError, match="schema does not run on SQLite"):
        sql.Database("CREATE TABLE (")
