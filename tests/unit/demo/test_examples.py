"""The examples: committed is what the generators write, every answer runs, the API accepts the manifests."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from finetune_operator.api.rules import broken
from finetune_operator.api.spec import Spec

from demo import example
from demo.judge import right, rows

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SHOP = EXAMPLES / "text-to-sql"
LABELS = EXAMPLES / "support-labels"
TONE = EXAMPLES / "support-tone"
MANIFESTS = sorted(path for path in EXAMPLES.glob("*/*.yaml") if path.name not in ("kustomization.yaml", "namespace.yaml"))


def generator(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"generate_{folder.name}".replace("-", "_"), folder / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shop_is_what_its_generator_writes() -> None:
    script, lines = generator(SHOP).generate()
    assert (SHOP / "schema.sql").read_text() == script
    assert (SHOP / "questions.jsonl").read_text().splitlines() == lines


def test_the_labels_are_what_their_generator_writes() -> None:
    lines = (LABELS / "train.jsonl").read_text().splitlines()
    assert lines == generator(LABELS).generate()
    assert len({json.loads(line)["input"] for line in lines}) == len(lines) == 300


def test_every_question_and_statement_occurs_once_and_finds_something() -> None:
    messages = [json.loads(line)["messages"] for line in (SHOP / "questions.jsonl").read_text().splitlines()]
    database = sqlite3.connect(":memory:")
    database.executescript((SHOP / "schema.sql").read_text())
    for row in messages:
        assert [turn["role"] for turn in row] == ["system", "user", "assistant"]
        found = database.execute(row[2]["content"]).fetchall()
        assert any(value not in (None, 0) for line in found for value in line)
    database.close()
    assert len({row[1]["content"] for row in messages}) == len(messages)
    assert len({row[2]["content"] for row in messages}) == len(messages)
    assert len(messages) * 0.16 > 50, "a share of 16 % must leave 40 test rows"


def test_the_pairs_are_what_their_generator_writes() -> None:
    lines = (TONE / "train.jsonl").read_text().splitlines()
    assert lines == generator(TONE).generate()
    rows = [json.loads(line) for line in lines]
    assert len({row["prompt"] for row in rows}) == len(rows) == 240
    assert all(row["chosen"] != row["rejected"] for row in rows)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_api_accepts_the_manifest(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    Spec.model_validate(manifest["spec"])
    assert broken(manifest) == []
    source = manifest["spec"]["data"]["train"]["source"]
    assert any(f"name: {source.split('/')[2]}" in text or f"configmap {source.split('/')[2]}" in text for text in _beside(path)), source


def test_the_examples_show_each_kind_of_method() -> None:
    methods = [yaml.safe_load(path.read_text())["spec"]["method"] for path in MANIFESTS]
    assert {"LoRA", "QLoRA", "PromptTuning"} <= {method["type"] for method in methods}
    assert "DPO" in {method.get("objective") for method in methods}


def _beside(path: Path) -> list[str]:
    """The texts that say where a manifest's ConfigMaps come from."""
    return [path.read_text(), (path.parent / "kustomization.yaml").read_text()]


def test_the_demo_reads_and_makes_the_example() -> None:
    found = example.load()
    assert (found.name, found.namespace, found.weights, found.replicas) == (
        "shop-sql",
        "finetune-demo",
        (10, 50, 100),
        2,
    )
    made = example.manifests(found.namespace)
    assert [manifest["kind"] for manifest in made] == ["Namespace", "ConfigMap", "ConfigMap", "FineTune"]
    named = {(m["metadata"]["name"], key) for m in made if m["kind"] == "ConfigMap" for key in m["data"]}
    spec = made[-1]["spec"]
    assert f"configmap://{'/'.join(['shop-questions', 'train.jsonl'])}" == spec["data"]["train"]["source"]
    assert named == {("shop-questions", "train.jsonl"), ("shop-schema", "schema.sql")}


ANSWERS = {
    "the same statement": ("SELECT price FROM products WHERE name = 'kite'", True),
    "another way to the same rows": ("select price from products where name in ('kite');", True),
    "other rows": ("SELECT price FROM products WHERE name = 'pan'", False),
    "prose": ("The kite costs 12.", False),
    "nothing": ("", False),
    "two statements": ("SELECT 1; SELECT 2", False),
    "a write": ("DELETE FROM products", False),
    "one without end": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
        False,
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_are_judged_by_what_they_find(case: str) -> None:
    answer, expected = ANSWERS[case]
    assert right(answer, "SELECT price FROM products WHERE name = 'kite'") is expected


def test_a_statement_that_fails_finds_nothing() -> None:
    assert rows("CREATE TABLE t (a);", "SELECT b FROM t") is None
