"""`load_spec`: good objects load, bad ones are refused by field, reason and fix."""

# ruff: noqa: E501 - one case, one line: it reads as a table
from __future__ import annotations

import pytest
from finetune_operator.api.load import load_spec
from finetune_operator.api.rules import ALWAYS, NOT_YET
from finetune_operator.errors import SpecError

from tests.unit.api.refusals import REFUSED, Manifest, changed, full_finetune, make_finetune

BASE = make_finetune()

ACCEPTED: dict[str, Manifest] = {
    "the smallest": BASE,
    "DESIGN's example": full_finetune(),
    "a name of 40 characters": make_finetune("a" * 40),
    "shares that sum to 100 with a default": changed(BASE, "spec.data.split", {"train": 85, "validation": 5}),
    "a single step": changed(BASE, "spec.rollout.steps", [{"weight": 100}]),
    "rows from the web": changed(BASE, "spec.data.train.source", "https://example.com/rows.jsonl"),
    "an archive with its digest": changed(BASE, "spec.model", {"source": "https://example.com/m.tar", "revision": "sha256:" + "0" * 64}),
    "a gated model of the hub": changed(BASE, "spec.model", {"source": "hf://owner/name", "secretName": "hf-token"}),
    "a whole CPU as a number": changed(BASE, "spec.compute.cpu", 2),
    "a row that is too long fails": changed(BASE, "spec.data.quality", {"onTooLong": "Fail"}),
    "plain text that is scored by its loss": changed(changed(BASE, "spec.evaluation", {"gate": {}}), "spec.data.train.format", "Text"),
    "plain text, and questions to test with": changed(
        changed(BASE, "spec.evaluation", {"metrics": [{"type": "ExactMatch"}]}),
        "spec.data",
        {"train": {"source": "pvc://a/b", "format": "Text"}, "test": {"source": "pvc://a/c", "format": "Messages"}},
    ),
    "plain text mixed into questions": changed(BASE, "spec.data.mix", [{"source": "pvc://a/b", "percent": 10, "format": "Text"}]),
    "vLLM": changed(BASE, "spec.serving", {"runtime": "vLLM"}),
    "every metric": changed(
        BASE,
        "spec.evaluation.metrics",
        [
            *({"type": name} for name in ("ExactMatch", "Contains", "TokenF1", "RougeL")),
            {"type": "Regex", "regex": {"pattern": r"(?i)[[\]]answer:\s*([^.]{1,80})"}},
        ],
    ),
    "resources of a server": changed(
        BASE,
        "spec.serving.resources",
        {
            "requests": {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1G", "rdma/ib": 1, "hugepages-2Mi": "4Mi"},
            "limits": {"cpu": 1, "memory": "1024Mi", "nvidia.com/gpu": 2, "rdma/ib": "1", "hugepages-2Mi": "4Mi"},
        },
    ),
    "a device that the accelerator's profile limits": changed(BASE, "spec.serving.resources", {"requests": {"nvidia.com/gpu": 1}}),
    "devices in thousands, and resources of Kubernetes' own names": changed(
        BASE,
        "spec.serving.resources",
        {
            "requests": {"kubernetes.io/batch-memory": "4Gi"},
            "limits": {"kubernetes.io/batch-memory": "8Gi", "kubernetes.io/batch-cpu": "4k", "sgx.intel.com/epc": "512Ki"},
        },
    ),
    "everySteps alone": changed(BASE, "spec.training.checkpoint", {"everySteps": 5}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts(case: str) -> None:
    load_spec(ACCEPTED[case])


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    finetune, message = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        load_spec(finetune)
    assert message in str(caught.value)


def test_every_rule_is_broken_by_a_case() -> None:
    messages = []
    for finetune, _ in REFUSED.values():
        with pytest.raises(SpecError) as caught:
            load_spec(finetune)
        messages.append(str(caught.value))
    unbroken = [rule.text for rule in (*ALWAYS, *NOT_YET) if not any(rule.text in m for m in messages)]
    repeated = [t for t in unbroken if t.startswith(("spec.data.validation.", "spec.data.test."))]  # as for spec.data.train
    assert unbroken == repeated


@pytest.mark.parametrize(
    ("case", "finetune", "message"),
    [
        ("a misspelt field is named", changed(BASE, "spec.training", {"learningRat": "1"}), "spec.training.learningRat: is no field of a FineTune; remove it or correct its name"),
        ("a missing field is named", changed(BASE, "spec.data", {}), "spec.data.train: is required; set it"),
        ("a place in a list is named", changed(BASE, "spec.rollout.steps", [{"weight": 10}, {"weight": 101}]), "spec.rollout.steps[1].weight: input should be less than or equal to 100, but it is '101'; correct it"),
        ("a duration says its form", changed(BASE, "spec.rollout.bake", "9999999d"), "spec.rollout.bake: '9999999d' is not a duration such as 90s, 15m or 1h30m, but it is '9999999d'; correct it"),
        ("a pattern that Python cannot compile", changed(BASE, "spec.evaluation.metrics", [{"type": "Regex", "regex": {"pattern": "(a"}}]), "spec.evaluation.metrics[0].regex.pattern: is no regular expression of Python (missing ), unterminated subpattern at position 0), but it is '(a'; correct it"),
        ("a pattern that repeats too often", changed(BASE, "spec.evaluation.metrics", [{"type": "Regex", "regex": {"pattern": "a{99999999999}"}}]), "spec.evaluation.metrics[0].regex.pattern: is no regular expression of Python (the repetition number is too large), but it is 'a{99999999999}'; correct it"),
        ("a pattern that is too deep", changed(BASE, "spec.evaluation.metrics", [{"type": "Regex", "regex": {"pattern": "(" * 499 + ")" * 499}}]), f"spec.evaluation.metrics[0].regex.pattern: is no regular expression of Python (it nests too deep), but it is '{'(' * 60}'; correct it"),
        ("an affinity of the wrong shape", changed(BASE, "spec.pods", {"affinity": {"podAffinity": "near"}}), "spec.pods.affinity: podAffinity must be an object, but it is \"{'podAffinity': 'near'}\"; correct it"),
        ("a term of an affinity of the wrong shape", changed(BASE, "spec.pods", {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [1]}}}}), "spec.pods.affinity: each term of nodeAffinity must be an object, but it is \"{'nodeAffinity': {'requiredDuringSchedulingIgnoredDuringExec\"; correct it"),
    ],
)  # fmt: skip
def test_says(case: str, finetune: Manifest, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(finetune)
    assert str(caught.value) == message


def test_a_message_fits_a_condition() -> None:
    fields = {f"misspelt{i}": 1 for i in range(200)}
    with pytest.raises(SpecError) as caught:
        load_spec(make_finetune(**fields))
    assert len(str(caught.value)) <= 1024
    assert "and 192 more" in str(caught.value)
