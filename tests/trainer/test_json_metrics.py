"""JsonSchema and JsonEqual: what is JSON, what is valid, what is the same, and what neither answer nor schema may do."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.config import MetricConfig
from finetune_trainer.data.formats import RowError, convert
from finetune_trainer.data.personal import Scan
from finetune_trainer.data.reading import RawRow
from finetune_trainer.data.store import RowStore
from finetune_trainer.evaluate import jsons, runaway, scoring
from finetune_trainer.evaluate.client import Reply
from finetune_trainer.evaluate.jsons import Schemas
from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import UserError

ORDER = {
    "type": "object",
    "required": ["city"],
    "additionalProperties": False,
    "properties": {"city": {"type": "string", "minLength": 2}, "items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
    "$defs": {"item": {"type": "object", "properties": {"count": {"type": "integer", "minimum": 1}}}},
}
BACKTRACKS = {"type": "string", "pattern": "^(a+)+$"}
DOUBLES = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "anyOf": [{"items": {"$ref": "#/$defs/a"}}] * 2}}}


def row(reference: str = '{"city": "Ulm"}', schema: Any = None) -> TestRow:
    return TestRow("r7", ({"role": "user", "content": "?"},), reference, "" if schema is None else json.dumps(schema))


@pytest.fixture
def schemas(tmp_path: Path) -> Any:
    def made(schema: Any, seconds: float = runaway.SECONDS) -> Schemas:
        file = tmp_path / "schema.json"
        file.write_text(schema if isinstance(schema, str) else json.dumps(schema))
        return Schemas(file, seconds)

    return made


# The answer → the score, and why
ANSWERS: dict[str, tuple[str, float, str]] = {
    "valid": ('{"city": "Ulm", "items": [{"count": 2}]}', 1, ""),
    "in white space": ('\n {"city": "Ulm"}\n', 1, ""),
    "in a fence": ('```json\n{"city": "Ulm"}\n```', 1, ""),
    "in a fence without a language": ('```\n{"city": "Ulm"}\n```', 1, ""),
    "in a fence with words beside": ('Here: ```json\n{"city": "Ulm"}\n```', 0, "text beside JSON"),
    "in a fence of Windows": ('```json\r\n{"city": "Ulm"}\r\n```\r\n', 1, ""),
    "in two fences": ('```json\n{"city": "Ulm"}\n```\n```json\n{}\n```', 0, "text beside JSON"),
    "with words behind": ('{"city": "Ulm"} as you asked', 0, "text beside JSON"),
    "cut off": ('{"city": "Ul', 0, "no JSON"),
    "nothing": ("", 0, "no JSON"),
    "single quotes": ("{'city': 'Ulm'}", 0, "no JSON"),
    "NaN, which JSON has not": ('{"city": NaN}', 0, "a number that JSON or the reader has not, or too deep"),
    "a number beyond any float": ("1e999", 0, "a number that JSON or the reader has not, or too deep"),
    "deeper than can be read": ("[" * 100_000, 0, "a number that JSON or the reader has not, or too deep"),
    "a field is missing": ("{}", 0, "$: 'city' is a required property"),
    "another type": ('{"city": 5}', 0, "$.city: not as `type` asks"),
    "too much": ('{"city": "Ulm", "more": 1}', 0, "$: not as `additionalProperties` asks"),
    "wrong deep inside, wherever that is": ('{"city": "Ulm", "items": [{}, {"count": 0}]}', 0, "$.items[].count: not as `minimum` asks"),
}


@pytest.mark.parametrize(("answer", "score", "why"), ANSWERS.values(), ids=ANSWERS)
def test_json_schema(answer: str, score: float, why: str, schemas: Any) -> None:
    assert schemas(ORDER).score(answer, row()) == (score, why)


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "jsonSchema.schema is no JSON schema: Expecting property name"),
    "a list": ([], r"jsonSchema.schema is no JSON schema: at \$: \[\] is not of type 'object', 'boolean'"),
    "a type that there is not": (
        {"properties": {"a": {"type": "text"}}},
        r"no JSON schema: at \$.properties.a.type: 'text' is not valid under any",
    ),
    "a pattern that does not compile": ({"pattern": "("}, r"no JSON schema: at \$.pattern: '\(' is not a 'regex'"),
    "nothing": ("null", r"no JSON schema: at \$: None is not of type 'object', 'boolean'"),
    "a keyword's wrong value": ({"minLength": -1}, r"at \$.minLength: -1 is less than the minimum of 0"),
}


@pytest.mark.parametrize(("schema", "words"), WRONG.values(), ids=WRONG)
def test_a_schema_that_is_none_is_refused_by_its_field(schema: Any, words: str, schemas: Any) -> None:
    with pytest.raises(UserError, match=words):
        schemas(schema)
    if not isinstance(schema, str):
        with pytest.raises(UserError, match="test row r7: its field json_schema is no JSON schema"):
            Schemas(None).check_row(row(schema=schema))


def test_a_schema_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jsonSchema\.schema: cannot read"):
        Schemas(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "ref", ["https://example.com/schema.json", "http://127.0.0.1:9/x", "file:///etc/passwd", "other.json", "#/$defs/no"]
)
def test_what_a_schema_refers_to_is_never_fetched(ref: str, schemas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *given, **more: asked.append(given))
    with pytest.raises(UserError, match=r"test row r7: evaluation\.metrics.*refers to .*which is not in it"):
        schemas({"$ref": ref}).check_row(row())
    assert asked == []


REFS: dict[str, tuple[Any, str]] = {
    "a pointer to nowhere": ({"$ref": "#/anyOf/7", "anyOf": [True]}, "refers to '#/anyOf/7', which is not in it"),
    "an anchor that is not there": ({"$ref": "#city"}, "refers to '#city', which is not in it"),
    "a text": ({"$ref": "#/title", "title": "Order"}, "that a $ref names is no JSON schema: 'str' object has no attribute 'items'"),
    "a pattern that does not compile": (
        {"$ref": "#/parts/a", "parts": {"a": {"patternProperties": {"(": True}}}},
        "that a $ref names is no JSON schema: missing ), unterminated subpattern",
    ),
    "a type that there is not": (
        {"$ref": "#/parts/a", "parts": {"a": {"type": "text"}}},
        "that a $ref names is no JSON schema: Unknown type",
    ),
    "a place in a list that is no number": ({"$ref": "#/anyOf/x", "anyOf": [True]}, "that a $ref names is no JSON schema: invalid literal"),
}


@pytest.mark.parametrize(("schema", "words"), REFS.values(), ids=REFS)
def test_what_a_schema_refers_to_in_vain_is_named(schema: Any, words: str, schemas: Any) -> None:
    with pytest.raises(UserError) as found:
        schemas(schema).check_row(row())
    assert found.value.message.startswith("test row r7: ")
    assert words in found.value.message
    assert jsons._FIELD in found.value.message
    assert found.value.fix


@pytest.mark.parametrize("draft", [3, 4, 7, 2020])
@pytest.mark.parametrize(
    ("value", "unit", "is_multiple"),
    [("19.99", 0.01, 1), ("4.35", 0.01, 1), ("4.355", 0.01, 0), ("7.5", 2.5, 1), ("8", 3, 0), ("1" + "0" * 400, 0.1, 1), ('"a"', 2, 1)],
)
def test_multiples_are_of_numbers_as_they_are_written(draft: int, value: str, unit: float, is_multiple: float, schemas: Any) -> None:
    keyword = "divisibleBy" if draft == 3 else "multipleOf"
    named = {2020: "https://json-schema.org/draft/2020-12/schema"}.get(draft, f"http://json-schema.org/draft-0{draft}/schema#")
    items = {"$ref": "#"} if draft == 2020 else {keyword: unit}
    schema = {"$schema": named, "type": ["array", "number", "string"], "items": items, keyword: unit}
    assert schemas(schema).score(f"[{value}]", row())[0] == is_multiple


def test_a_reason_can_be_written_whatever_key_it_names(schemas: Any) -> None:
    score, why = schemas({"additionalProperties": {"type": "string"}}).score('{"\\ud800": 5}', row())
    assert (score, why.encode()) == (0, b"$['\\ud800']: not as `type` asks")


def test_blanks_in_a_fence_take_no_longer_than_what_is_read() -> None:
    """Forty thousand of them took more than a second."""
    before = time.process_time()
    assert jsons.equal("```json\n{" + " " * 1_000_000 + "x", "{}") == (0, "text beside JSON")
    assert time.process_time() - before < 1


def test_a_reference_too_deep_to_compare_is_refused_by_its_row() -> None:
    deep = '{"a": ' * 600 + "1" + "}" * 600
    with pytest.raises(UserError, match="test row r7: its reference is a number that JSON or the reader has not, or too deep"):
        jsons.check_reference("r7", deep)
    assert jsons.equal(deep, "1")[0] == 0


def test_drafts_are_what_the_schema_says_they_are(schemas: Any) -> None:
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}], "additionalItems": False}
    assert [schemas(old).score(answer, row())[0] for answer in ("[1]", "[1, 2]")] == [1, 0]
    assert schemas({"prefixItems": [{"type": "integer"}], "items": False}).score("[1, 2]", row())[0] == 0


@pytest.mark.parametrize(
    ("schema", "answer"), [(BACKTRACKS, json.dumps("a" * 60 + "!")), (DOUBLES, "[" * 60 + "2" + "]" * 60)], ids=["a pattern", "anyOf"]
)
def test_what_runs_away_on_answers_scores_0_and_at_last_is_refused(
    schema: Any, answer: str, schemas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runaway, "RUNAWAYS", 2)
    known, before = schemas(schema, 0.2), time.process_time()
    assert known.score(answer, row()) == (0, "checking it took longer than 0.2 s")
    with pytest.raises(UserError, match=r"to check 2 answers against the schema took longer than 0\.2 s each"):
        known.score(answer, row())
    with pytest.raises(UserError, match="to check the reference of test row r7"):
        schemas(schema, 0.2).check_row(row(answer))
    assert time.process_time() - before < 3


def test_a_schema_that_refers_to_itself_alone_scores_0(schemas: Any) -> None:
    assert schemas({"$ref": "#"}).score("1", row()) == (0, "it cannot be checked: RecursionError")


def test_a_rows_own_schema_comes_first_and_one_there_must_be(schemas: Any) -> None:
    own, common = row("5", {"type": "integer"}), schemas(ORDER)
    common.check_row(own)
    common.check_row(row())
    assert [common.score(answer, own)[0] for answer in ("5", '{"city": "Ulm"}')] == [1, 0]
    Schemas(None).check_row(own)
    with pytest.raises(UserError, match="test row r7 has no field json_schema"):
        Schemas(None).check_row(row())


def test_a_reference_that_is_not_valid_is_named_before_anything_is_asked(schemas: Any) -> None:
    with pytest.raises(
        UserError, match=r"test row r7: its reference is not valid against the schema: \$: 'city' is a required property: {}"
    ):
        schemas(ORDER).check_row(row("{}"))
    with pytest.raises(UserError, match="test row r7: its reference is no JSON: Ulm"):
        jsons.check_reference("r7", "Ulm")


SAME: dict[str, tuple[str, str, float, str]] = {
    "another order of keys": ('{"b": [1, 2], "a": null}', '{"a":null,"b":[1,2]}', 1, ""),
    "in a fence": ('```json\n{"a": 1}\n```', '{"a": 1}', 1, ""),
    "1.0 is 1": ('{"a": 1.0}', '{"a": 1}', 1, ""),
    "true is not 1": ("true", "1", 0, "other JSON than the reference's"),
    "inside a list neither": ("[false]", "[0]", 0, "other JSON than the reference's"),
    "another order of a list": ("[2, 1]", "[1, 2]", 0, "other JSON than the reference's"),
    "a key more": ('{"a": 1, "b": 2}', '{"a": 1}', 0, "other JSON than the reference's"),
    "a longer list": ("[1, 2]", "[1]", 0, "other JSON than the reference's"),
    "text of a number": ('"1"', "1", 0, "other JSON than the reference's"),
    "an escape": ('"\\u00e9"', '"é"', 1, ""),
    "no JSON": ("yes", "1", 0, "no JSON"),
}


@pytest.mark.parametrize(("answer", "reference", "score", "why"), SAME.values(), ids=SAME)
def test_json_equal(answer: str, reference: str, score: float, why: str) -> None:
    assert jsons.equal(answer, reference) == (score, why)


def test_both_are_metrics_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(ORDER))
    asked = [
        MetricConfig.model_validate({"type": "JsonSchema", "jsonSchema": {"schemaMount": str(tmp_path / "s.json")}}),
        MetricConfig.model_validate({"type": "JsonEqual"}),
    ]
    every = scoring.scorers(asked)
    scoring.check(every, [row()])
    [found] = scoring.score(every, [row()], {"r7": Reply('{"city": "Bonn"}')})
    assert found.scores == {"JsonSchema": 1.0, "JsonEqual": 0.0}
    assert found.notes == {"JsonEqual": "other JSON than the reference's"}


def test_a_row_keeps_its_schema_until_it_is_scored(tmp_path: Path) -> None:
    value = {"prompt": "Where?", "completion": "anna@example.com", "json_schema": {"type": "string"}}
    made = Scan("Redact").apply(convert(RawRow("f", 1, value, "", ""), "PromptCompletion"))
    store = RowStore(tmp_path / "rows")
    records = [store.add(made), store.add(convert(RawRow("f", 2, {**value, "json_schema": None}, "", ""), "PromptCompletion"))]
    kept = list(store.rows(records))
    store.close()
    assert [found.schema for found in kept] == ['{"type": "string"}', ""]
    with pytest.raises(RowError, match="field json_schema is a list, not an object"):
        convert(RawRow("f", 1, {**value, "json_schema": []}, "", ""), "PromptCompletion")
