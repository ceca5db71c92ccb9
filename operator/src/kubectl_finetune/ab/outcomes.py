"""The outcomes that the user brings: rows of CSV or JSON lines with the id of a user, or of an answer, and a number."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kubectl_finetune.ab.statistics import LARGEST
from kubectl_finetune.kubectl import PluginError

WORDS: Final = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One row: whose it is, and the metric's value."""

    row: int
    id: str
    value: float


@dataclass(frozen=True)
class Outcomes:
    """A file's rows, the metric's name, and whether it is a share (nothing but 0 and 1)."""

    metric: str
    rows: tuple[Outcome, ...]

    @property
    def share(self) -> bool:
        """Is every value 0 or 1?"""
        return all(o.value in (0.0, 1.0) for o in self.rows)


def load(path: Path, id_column: str, metric: str | None) -> Outcomes:
    """The file's rows. PluginError names file, row and column that are wrong."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_json_rows(file, path) if path.suffix in (".jsonl", ".ndjson") else _csv_rows(file, path))
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PluginError(f"{path}: it is not in UTF-8") from None
    if not rows:
        raise PluginError(f"{path}: it has no rows")
    named = _metric([str(name) for name in rows[0][1]], id_column, metric, path)
    return Outcomes(named, tuple(_outcome(number, row, id_column, named, path) for number, row in rows))


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise PluginError(f"{path}, row {reader.line_num}: it has not as many values as the first row names columns")
            yield reader.line_num, row
    except csv.Error as error:
        raise PluginError(f"{path}, after row {reader.line_num}: {error}") from None


def _json_rows(file: Any, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PluginError(f"{path}, row {number}: it is no JSON ({error})") from None
        if not isinstance(row, dict):
            raise PluginError(f"{path}, row {number}: it is to be a JSON object")
        yield number, row


def _metric(columns: Sequence[str], id_column: str, metric: str | None, path: Path) -> str:
    there = f"{path} has: {', '.join(columns)}"
    if id_column not in columns:
        raise PluginError(f"there is no column {id_column} ({there}); --id names the one with the ids")
    others = [name for name in columns if name != id_column]
    if metric is None and len(others) == 1:
        return others[0]
    if metric is None:
        raise PluginError(f"which column is the metric? --metric names it ({there})")
    if metric not in others:
        raise PluginError(f"there is no column {metric} ({there})")
    return metric


def _outcome(number: int, row: Row, id_column: str, metric: str, path: Path) -> Outcome:
    for column in (id_column, metric):
        if row.get(column) in (None, ""):
            raise PluginError(f"{path}, row {number}: {column} is empty")
    return Outcome(number, str(row[id_column]), _value(row[metric], f"{path}, row {number}: {metric}"))


def _value(value: Any, where: str) -> float:
    if isinstance(value, str) and value.strip().lower() in WORDS:
        return WORDS[value.strip().lower()]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:
        number = math.inf
    if not abs(number) <= LARGEST:
        wanted = "a number, true or false" if math.isnan(number) else f"a number of {LARGEST:g} at most"
        raise PluginError(f"{where} is {value!r:.60}, and is to be {wanted}")
    return number
