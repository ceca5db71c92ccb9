"""The CRD as generated: structural, bounded, complete; the files are what the models say."""

# ruff: noqa: E501 - one case, one line: it reads as a table
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from finetune_operator.api import crd, fields
from finetune_operator.api.rules import RULES
from finetune_operator.api.spec import Spec
from finetune_operator.api.structural import NotStructural, convert
from finetune_operator.api.types import SpecModel
from pydantic import BaseModel, Field


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from walk(schema[key], f"{path}[]")


def test_the_files_are_what_the_models_say() -> None:
    stale = [name for name, text in crd.texts().items() if (crd.ROOT / name).read_text() != text]
    assert stale == [], "run `make crds`"


def test_the_reference_page_has_every_rule_once() -> None:
    """Also those on a single field, as storage.size may not shrink."""
    lines = crd.texts()["docs/reference.md"].splitlines()
    assert {rule.text: lines.count(f"- {rule.text}") for rule in RULES} == {rule.text: 1 for rule in RULES}


def test_no_name_reads_as_a_boolean() -> None:
    """kubectl reads YAML 1.1, where a bare n is false."""
    text = crd.texts()["crds/finetune.dev_finetunes.yaml"]
    assert re.findall(r"^ *(?:- )?[yYnN]:?$", text, re.MULTILINE) == []
    assert "'n':" in text


def test_every_leaf_of_the_spec_says_what_an_edit_does() -> None:
    assert [path for path, marker in fields.classes(Spec) if marker is None] == []


def test_retrain_fields_have_no_default() -> None:
    nodes = dict(walk(crd.schema()["properties"]["spec"]))
    retrain = [path for path, marker in fields.classes(Spec) if marker is fields.RETRAIN]
    assert [p for p in retrain if "default" in {k.replace("[]", ""): v for k, v in nodes.items()}[f".{p}"]] == []


def test_a_nested_default_has_a_default_on_every_optional_parent_that_is_not_asked_for() -> None:
    spec = crd.schema()["properties"]["spec"]
    assert {name for name, child in spec["properties"].items() if "default" in child} == {
        "compute",
        "storage",
        "retries",
        "deadlines",
        "retention",
        "rollout",
        "suspend",
    }
    assert spec["properties"]["rollout"]["properties"]["guards"]["default"] == {}


def test_every_field_is_described() -> None:
    spec = crd.schema()["properties"]["spec"]
    assert [path for path, node in walk(spec) if not path.endswith("[]") and not node.get("description")] == []


def test_all_that_is_defaulted_of_the_status_is_that_nobody_has_seen_the_object() -> None:
    defaults = {path: node["default"] for path, node in walk(crd.schema()["properties"]["status"]) if "default" in node}
    assert defaults == {"": {"observedGeneration": -1}}


def test_nothing_inside_a_list_is_defaulted() -> None:
    """GitOps tools compare a list as a whole: a default in it is a difference that no sync mends."""
    assert [path for path, node in walk(crd.schema()["properties"]["spec"]) if "[]" in path and "default" in node] == []


def _model(annotation: Any) -> type[BaseModel]:
    return type("M", (SpecModel,), {"__annotations__": {"field": annotation}})


@pytest.mark.parametrize(
    ("case", "annotation", "message"),
    [
        ("a keyword that is not known", Annotated[int, Field(multiple_of=2)], "multipleOf is not known"),
        ("a choice between types", int | bool, "a choice between types"),
        ("a text without a bound", str, "a text without maxLength"),
        ("a list without a bound", list[int], "a list without maxItems"),
        ("a map without a bound", dict[str, int], "a map without maxProperties"),
        ("anything at all", Any, "has no type"),
        ("an object of which nothing is said", dict[str, Any], "an object of which nothing is said"),
    ],
)
def test_refuses(case: str, annotation: Any, message: str) -> None:
    with pytest.raises(NotStructural, match=message):
        convert(_model(annotation))


@pytest.mark.parametrize(
    ("case", "annotation", "schema"),
    [
        ("optional means absent", Annotated[str, Field(max_length=5)] | None, {"type": "string", "maxLength": 5}),
        ("choices are an enum", Literal["A", "B"], {"type": "string", "enum": ["A", "B"]}),
        ("free objects are preserved", Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})], {"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        ("lists are atomic", Annotated[list[bool], Field(max_length=3)], {"type": "array", "maxItems": 3, "x-kubernetes-list-type": "atomic", "items": {"type": "boolean"}}),
    ],
)  # fmt: skip
def test_converts(case: str, annotation: Any, schema: dict[str, Any]) -> None:
    assert convert(_model(annotation))["properties"]["field"] == schema
