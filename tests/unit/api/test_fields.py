"""Field classes: what belongs to a revision, to an arm; the canonical form; quantities."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.fields import REDEPLOY, REEVALUATE, RETRAIN, digest, extract
from finetune_operator.api.quantities import canonical_decimal, canonical_duration, decimal, quantity, seconds
from finetune_operator.api.spec import Spec

from tests.unit.api.refusals import full_finetune, make_finetune


def test_a_revision_is_what_the_user_wrote_of_the_retrain_fields() -> None:
    spec = full_finetune()["spec"]
    assert extract(spec, Spec, RETRAIN) == {
        "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "revision": "0e9e39f"},
        "data": {
            "train": {"source": "pvc://datasets/support.jsonl", "format": "Auto"},
            "split": {"train": 80, "validation": 10, "test": 10, "seed": 17},
            "quality": {"minResponseCharacters": 10, "maxTokens": 4000, "onTooLong": "Drop", "maxInvalidPercent": 5, "deduplicate": True},
        },
        "method": {"type": "LoRA", "lora": {"rank": 16, "alpha": 32}, "objective": "SFT"},
        "training": {
            "epochs": 3, "learningRate": "0.0002", "maxSequenceLength": 2048, "tokensPerStep": 32768, "seed": 17,
            "earlyStopping": {"patience": 3},
        },
    }  # fmt: skip


def test_an_arm_is_what_the_user_wrote_of_the_redeploy_fields() -> None:
    assert extract(full_finetune()["spec"], Spec, REDEPLOY) == {
        "serving": {"runtime": "Auto", "modelName": "support-bot"},
        "pods": {
            "serviceAccountName": "trainer", "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "annotations": {"team": "ml"},
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        },
    }  # fmt: skip


def test_metrics_are_scored_anew_when_edited() -> None:
    assert extract(full_finetune()["spec"], Spec, REEVALUATE) == {
        "evaluation": {
            "metrics": [
                {"type": "ExactMatch"},
                {"type": "SqlExecution", "sqlExecution": {"schema": "configmap://shop/schema.sql"}},
                {"type": "Regex", "regex": {"pattern": r"answer: (\w+)"}},
                {"type": "JsonEqual"},
                {"type": "JsonSchema", "jsonSchema": {"schema": "configmap://shop/answer.json"}},
                {"type": "Custom", "custom": {"image": "registry.example.com/icd@sha256:0", "command": ["/score"], "args": ["--strict"]}},
            ]
        }
    }


@pytest.mark.parametrize(
    ("case", "one", "other"),
    [
        ("an empty text is none", {"retrain": ""}, {}),
        ("a decimal is its value", {"training": {"learningRate": "2e-4"}}, {"training": {"learningRate": "0.00020"}}),
        ("an empty block is none", {"training": {}}, {}),
        ("what changes in place retrains nothing", {"compute": {"nodes": 4}, "suspend": True}, {}),
    ],
)
def test_the_same_revision(case: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (digest(extract(make_finetune(**s)["spec"], Spec, RETRAIN)) for s in (one, other))
    assert first == second


def test_a_new_value_of_retrain_is_another_revision() -> None:
    assert extract(make_finetune(retrain="2")["spec"], Spec, RETRAIN) != extract(make_finetune(retrain="1")["spec"], Spec, RETRAIN)


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), ("0s", 0)])
def test_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "15", "m", "15 m", "-1s", "15M", "9999999d", "1h" * 6])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(text)


@pytest.mark.parametrize("text", ["", "1e400", "nan", "inf", "0x1", "1e", "1e-999999999"])
def test_no_decimal(text: str) -> None:
    with pytest.raises(ValueError, match="is not a decimal"):
        decimal(text)


@pytest.mark.parametrize(
    ("text", "canonical"), [("15m", "900s"), ("0.5s", "0.5s"), ("1234567s", "1234567s"), ("1000ms", "1s"), ("0s", "0s")]
)
def test_canonical_duration(text: str, canonical: str) -> None:
    assert canonical_duration(text) == canonical


@pytest.mark.parametrize(("text", "canonical"), [("2e-4", "0.0002"), ("1e3", "1000"), ("-0.0", "0"), ("0.10", "0.1")])
def test_canonical_decimal(text: str, canonical: str) -> None:
    assert canonical_decimal(text) == canonical


@pytest.mark.parametrize(("text", "value"), [("500m", 0.5), ("4Gi", 4 * 1024**3), ("1k", 1000), ("2", 2), ("x", None)])
def test_quantity(text: str, value: float | None) -> None:
    assert quantity(text) == value
