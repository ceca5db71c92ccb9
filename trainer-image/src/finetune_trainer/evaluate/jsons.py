"""JsonSchema and JsonEqual: is the answer JSON, and valid against a schema, or the same as the reference?

All of an answer must be JSON, or all of it one fenced block of JSON. Nothing that a schema refers to is fetched. What takes too long on an
answer scores 0 there; on a reference, or on many answers, the schema is refused.
"""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import UserError

SECONDS = 1.0  # of processor time for one answer
RUNAWAYS = 60  # so many answers on which it ran away are the last
SHOWN = 200  # characters of what is told
_FIELD = "evaluation.metrics[].jsonSchema.schema"
_ROW_FIELD = "its field json_schema"
_FENCED = re.compile(r"```[A-Za-z0-9]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_PLACES = re.compile(r"\[\d+\]")


class NotJson(Exception):
    """Why a text is no JSON."""


class RanAway(BaseException):
    """It took too long. No Exception: nothing that is run meanwhile may take it for its own."""


def parse(text: str) -> Any:
    """The value of a text that is JSON, or one fenced block of it. Raises NotJson."""
    fenced = _FENCED.fullmatch(text.strip())
    try:
        return json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise NotJson("text beside JSON" if error.msg == "Extra data" or "```" in text else "no JSON") from error
    except (ValueError, RecursionError) as error:
        raise NotJson("a number that JSON or the reader has not, or too deep") from error


def equal(answer: str, reference: str) -> tuple[float, str]:
    """1 where both are the same JSON, whatever the order of keys and the white space, else 0, and why."""
    try:
        same_value = same(parse(answer), parse(reference))
    except NotJson as error:
        return 0.0, str(error)
    return (1.0, "") if same_value else (0.0, "other JSON than the reference's")


def check_reference(row: str, reference: str) -> None:
    """Raise UserError that names `row` where its reference is no JSON."""
    try:
        parse(reference)
    except NotJson as error:
        raise UserError("ReferenceInvalid", f"test row {row}: its reference is {error}: {reference[:SHOWN]}", "Correct the row.") from error


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


class Schemas:
    """Validates against the FineTune's schema, or the row's own where it has one."""

    def __init__(self, mount: Path | None, seconds: float = SECONDS) -> None:
        """Raises UserError where the FineTune's schema cannot be read, or is none."""
        self._seconds, self._runaways = seconds, 0
        self._common = _validator(_read(mount), _FIELD) if mount else None
        self._own: dict[str, Any] = {}  # by text: many rows have the same

    def check_row(self, row: TestRow) -> None:
        """Raise UserError that names `row` where it has no schema, a wrong one, or a reference that is not valid against it."""
        try:
            score, why = self._validated(row.reference, row)
        except RanAway:
            _rest()
            raise self._too_slow(f"the reference of test row {row.id}") from None
        if not score:
            raise UserError(
                "ReferenceInvalid", f"test row {row.id}: its reference is not valid against the schema: {why}: {row.reference[:SHOWN]}",
                "Correct the row, or the schema.",
            )  # fmt: skip

    def score(self, answer: str, row: TestRow) -> tuple[float, str]:
        """1 where the answer is JSON and valid, else 0, and why. Raises UserError once checking it ran away too often."""
        try:
            return self._validated(answer, row)
        except RanAway:
            _rest()
            self._runaways += 1
            if self._runaways >= RUNAWAYS:
                raise self._too_slow(f"{self._runaways} answers") from None
            return 0.0, f"checking it took longer than {self._seconds:g} s"

    def _validated(self, text: str, row: TestRow) -> tuple[float, str]:
        import referencing.exceptions

        validator = self._of(row)
        try:
            with within(self._seconds):
                error = next(validator.iter_errors(parse(text)), None)
        except NotJson as found:
            return 0.0, str(found)
        except (RecursionError, ArithmeticError) as found:
            return 0.0, f"it cannot be checked: {type(found).__name__}"
        except referencing.exceptions.Unresolvable as found:
            where = _ROW_FIELD if row.schema else _FIELD
            raise UserError(
                "SchemaInvalid", f"test row {row.id}: {where} refers to {str(found.ref)[:SHOWN]!r}, which is not in it",
                "Put what is referred to under $defs: nothing is fetched.",
            ) from found  # fmt: skip
        return (0.0, _words(error)) if error else (1.0, "")

    def _of(self, row: TestRow) -> Any:
        if row.schema:
            if row.schema not in self._own:
                self._own[row.schema] = _validator(row.schema, f"test row {row.id}: {_ROW_FIELD}")
            return self._own[row.schema]
        if self._common is None:
            raise UserError(
                "SchemaMissing", f"test row {row.id} has no field json_schema, and {_FIELD} names none for all rows",
                "Name a schema, or give every row its own.",
            )  # fmt: skip
        return self._common

    def _too_slow(self, what: str) -> UserError:
        return UserError(
            "SchemaTooSlow", f"{_FIELD}: to check {what} against the schema took longer than {self._seconds:g} s each",
            "Write patterns without a repetition inside a repetition, and fewer anyOf inside anyOf.",
        )  # fmt: skip


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise RanAway once the process has computed for so long; in the main thread alone. It is raised again until it is heard, and may come
    at the very end: who hears it calls `_rest`."""

    def ran_away(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise RanAway

    signal.signal(signal.SIGVTALRM, ran_away)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.05)
    try:
        yield
    finally:
        _rest()


def _rest() -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, signal.SIG_IGN)


def _validator(text: str, field: str) -> Any:
    """What validates against a schema: by the draft that it names, else 2020-12. Raises UserError that names `field`."""
    import jsonschema
    import jsonschema.validators
    import jsonschema_specifications

    try:
        schema = json.loads(text)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(
            "SchemaInvalid", f"{field} is no JSON schema: at {error.json_path}: {error.message[:SHOWN]}", "Correct the schema."
        ) from error
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError("SchemaInvalid", f"{field} is no JSON schema: {str(error)[:SHOWN]}", "Correct the schema.") from error
    return kind(schema, registry=jsonschema_specifications.REGISTRY)


def _read(mount: Path) -> str:
    try:
        return mount.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("SchemaMissing", f"{_FIELD}: cannot read {mount}: {error}") from error


def _words(error: Any) -> str:
    """What is wrong, so that the same mistake in other rows has the same words."""
    where = _PLACES.sub("[]", error.json_path)
    what = error.message if error.validator == "required" else f"not as `{error.validator}` asks"
    return f"{where}: {what}"[:SHOWN]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
