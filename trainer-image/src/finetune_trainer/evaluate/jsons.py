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
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.evaluate.runaway import SECONDS, Runaways
from finetune_trainer.exits import UserError

SHOWN = 200  # characters of what is told
_FIELD = "evaluation.metrics[].jsonSchema.schema"
_ROW_FIELD = "its field json_schema"
_FENCE = "```"
_FENCE_BEGINS = re.compile(_FENCE + r"[A-Za-z0-9]*[ \t]*\r?")  # the first of its lines
_UNREADABLE = "a number that JSON or the reader has not, or too deep"
_PLACES = re.compile(r"\[\d+\]")


class NotJson(Exception):
    """Why a text is no JSON."""


class RanAway(BaseException):
    """It took too long. No Exception: nothing that is run meanwhile may take it for its own."""


def parse(text: str) -> Any:
    """The value of a text that is JSON, or one fenced block of it. Raises NotJson."""
    try:
        return json.loads(_unfenced(text), parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise NotJson("text beside JSON" if error.msg == "Extra data" or _FENCE in text else "no JSON") from error
    except (ValueError, RecursionError) as error:
        raise NotJson(_UNREADABLE) from error


def _unfenced(text: str) -> str:
    """What stands in a text that is one fenced block from end to end, else the text: in one pass, however many blanks there are."""
    first, _, rest = text.strip().partition("\n")
    return rest.removesuffix(_FENCE) if rest.endswith(_FENCE) and _FENCE_BEGINS.fullmatch(first) else text


def equal(answer: str, reference: str) -> tuple[float, str]:
    """1 where both are the same JSON, whatever the order of keys and the white space, else 0, and why."""
    try:
        same_value = same(parse(answer), parse(reference))
    except NotJson as error:
        return 0.0, str(error)
    except RecursionError:
        return 0.0, _UNREADABLE
    return (1.0, "") if same_value else (0.0, "other JSON than the reference's")


def check_reference(row: str, reference: str) -> None:
    """Raise UserError that names `row` where its reference is no JSON, or cannot be compared."""
    score, why = equal(reference, reference)
    if not score:
        raise UserError("ReferenceInvalid", f"test row {row}: its reference is {why}: {reference[:SHOWN]}", "Correct the row.")


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
        self._runaways = Runaways(seconds)
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
            return self._runaways.score("checking it", self._too_slow)

    def _validated(self, text: str, row: TestRow) -> tuple[float, str]:
        import referencing.exceptions

        validator = self._of(row)
        try:
            with within(self._runaways.seconds):
                error = next(validator.iter_errors(parse(text)), None)
        except NotJson as found:
            return 0.0, str(found)
        except (RecursionError, ArithmeticError) as found:
            return 0.0, f"it cannot be checked: {type(found).__name__}"
        except referencing.exceptions.Unresolvable as found:
            raise UserError(
                "SchemaInvalid", f"test row {row.id}: {_field(row)} refers to {_target(found)[:SHOWN]!r}, which is not in it",
                "Put what is referred to under $defs: nothing is fetched.",
            ) from found  # fmt: skip
        except Exception as found:  # whatever a part comes to that no check has seen, for only a $ref says that it is a schema
            raise UserError(
                "SchemaInvalid", f"test row {row.id}: a part of {_field(row)} that a $ref names is no JSON schema: {_shown(str(found))}",
                "Correct that part, or what the $ref names.",
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
            "SchemaTooSlow", f"{_FIELD}: to check {what} against the schema took longer than {self._runaways.seconds:g} s each",
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
        draft = schema.pop("$schema", "") if isinstance(schema, dict) else ""
        kind = jsonschema.validators.validator_for({"$schema": str(draft)}, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(
            "SchemaInvalid", f"{field} is no JSON schema: at {error.json_path}: {_shown(error.message)}", "Correct the schema."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError("SchemaInvalid", f"{field} is no JSON schema: {_shown(str(error))}", "Correct the schema.") from error
    return _exact(kind)(schema, registry=jsonschema_specifications.REGISTRY)


@cache
def _exact(kind: Any) -> Any:
    """What validates as `kind` does, but for multiples."""
    import jsonschema.validators

    return jsonschema.validators.extend(kind, {name: _multiple for name in ("multipleOf", "divisibleBy") if name in kind.VALIDATORS})


def _multiple(validator: Any, unit: float, value: Any, _schema: object) -> Iterator[Any]:
    """The keyword multipleOf of numbers as they are written: divided as floats, 19.99 is no multiple of 0.01."""
    import jsonschema

    if validator.is_type(value, "number") and (Fraction(str(value)) / Fraction(str(unit))).denominator != 1:
        yield jsonschema.ValidationError(f"{value} is not a multiple of {unit}")


def _read(mount: Path) -> str:
    try:
        return mount.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("SchemaMissing", f"{_FIELD}: cannot read {mount}: {error}") from error


def _words(error: Any) -> str:
    """What is wrong, so that the same mistake in other rows has the same words."""
    where = _PLACES.sub("[]", error.json_path)
    what = error.message if error.validator == "required" else f"not as `{error.validator}` asks"
    return _shown(f"{where}: {what}")


def _shown(text: str) -> str:
    """The beginning of a text, as it can be written: a key may hold half of a surrogate pair."""
    return text[:SHOWN].encode("utf-8", "backslashreplace").decode()


def _field(row: TestRow) -> str:
    """Where the schema of a row stands."""
    return _ROW_FIELD if row.schema else _FIELD


def _target(found: Any) -> str:
    """What a $ref named, as it is written there: the error has a pointer without its #, and an anchor beside."""
    anchor, ref = getattr(found, "anchor", ""), str(found.ref)
    return f"{ref}#{anchor}" if anchor else f"#{ref}" if ref.startswith("/") else ref


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
