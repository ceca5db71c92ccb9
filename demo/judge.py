"""Is an answer right? Both statements are executed on SQLite and their rows compared, as the evaluation does it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from demo.example import FOLDER

STEPS = 100_000  # virtual machine instructions before a statement is stopped


def rows(script: str, sql: str) -> list[str] | None:
    """What a statement finds, in no order; None where it fails, writes or never ends."""
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(script)
        database.execute("PRAGMA query_only = ON")
        budget = iter(range(STEPS // 1000))
        database.set_progress_handler(lambda: int(next(budget, None) is None), 1000)
        return sorted(map(repr, database.execute(sql).fetchall()))
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return None
    finally:
        database.close()


def right(answer: str, reference: str, folder: Path = FOLDER) -> bool:
    """Whether the answer finds the same rows as the reference."""
    script = (folder / "schema.sql").read_text()
    found = rows(script, answer.strip())
    return found is not None and found == rows(script, reference)
