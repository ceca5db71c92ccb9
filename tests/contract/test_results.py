"""What the trainer says at the end of a stage is what the operator reads: exit codes, results, failures."""

# ruff: noqa: E501 - one case, one line: it reads as a table
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_operator.api.blocks import evaluation as block
from finetune_operator.api.status import Answering, Estimate, FewShot, Fidelity, Forgetting, Rows, Score
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import advice as hearing
from finetune_operator.decide import layout
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.stages import _fetched, _prepared, _scored
from finetune_operator.workloads.causes import root_cause
from finetune_operator.workloads.endings import EXIT_CLASSES, parse_result
from finetune_trainer import advice, estimate, exits, fetch
from finetune_trainer.config import ComputeConfig, EvaluationConfig, MethodConfig
from finetune_trainer.data import advice as of_data
from finetune_trainer.data import solved
from finetune_trainer.evaluate import fewshot, scoring, throughput
from finetune_trainer.evaluate.fewshot import Alone
from finetune_trainer.evaluate.rows import ScoredRow, TestRow

from tests.unit.operator.helpers import make_observed, make_revision

WORDS = {"interrupted": "disruption"}  # the trainer stops on request; whose request it was, the operator knows


def told(result: dict[str, Any]) -> dict[str, Any]:
    """A result as it arrives: through the termination message."""
    return parse_result(exits.shrink(result))


def test_exit_codes_mean_the_same_on_both_sides() -> None:
    theirs = {code: WORDS.get(kind.failure_class, kind.failure_class) for code, kind in exits.BY_CODE.items()}
    assert {code: EXIT_CLASSES.get(code, "error") for code in theirs} == theirs
    assert {code for code in EXIT_CLASSES if code < 128} <= set(theirs)


def test_a_fetched_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    manifest: dict[str, object] = {"digest": "ab" * 32, "files": {"config.json": {"bytes": 23, "sha256": "00"}}}
    assert _fetched(told(fetch.summary(tmp_path, manifest))) == {"model_digest": "ab" * 32}


def test_prepared_data() -> None:
    rows = {"read": 100, "invalid": 30, "duplicate": 2, "nearDuplicate": 4, "tooLong": 0, "train": 50, "validation": 8, "test": 10}
    bad = [{"source": "configmap://rows/train.jsonl", "row": n, "reason": "x" * 400} for n in range(10)]
    found = _prepared(told({"stage": "prepare", "digest": "cd" * 32, "rows": rows, "invalid": bad, "warnings": [], "estimate": {}}))
    assert found["data_digest"] == "cd" * 32
    assert found["rows"] == Rows(read=100, invalid=30, duplicate=2, near_duplicate=4, train=50, validation=8, test=10)
    assert found["dropped"].startswith("configmap://rows/train.jsonl row 0: x")


def test_an_estimate_for_accelerators_survives_a_long_result_and_one_for_cpus_is_not_kept() -> None:
    outline = estimate.Outline(8 * 10**9, 0, 0, 2 * 10**7, 8 * 10**9, 4096, (estimate.Layer(81_920, 0, 8_192),) * 32, 128256)
    rows = {"read": 100, "train": 80, "validation": 10, "test": 10}
    bad = [{"source": "configmap://rows/train.jsonl", "row": n, "reason": "x" * 400} for n in range(10)]
    for gpus in (8, 0):
        said = {
            **estimate.estimate(outline, MethodConfig(), ComputeConfig.model_validate({"gpusPerNode": gpus}), 10**6, 1, 8192, True),
            "longest": 700,
        }
        found = _prepared(told({"stage": "prepare", "digest": "cd" * 32, "rows": rows, "invalid": bad, "warnings": [], "estimate": said}))
        assert found["estimate"] == (Estimate.model_validate(said) if gpus else None)
    kept = Estimate.model_validate(said)
    assert sum(kept.memory.values()) == kept.memory_bytes
    assert set(layout.BY_PASS) - {"recomputed"} - layout.ONCE < set(kept.memory)
    named = frozenset().union(*(found.divided | found.hosted | found.once for found in layout.LAYOUTS))
    assert named | set(layout.BY_PASS) - {"recomputed"} < set(kept.sharded)
    assert kept.recomputed == round(8192 * 2 * (32 * 4096 + 2.4 * 81_920 + 1.75 * 8_192))


LARGE: dict[str, tuple[dict[str, str], str | None]] = {
    "LoRA": ({"type": "LoRA"}, "ZeRO3, activations recomputed"),
    "LoRA, on preferences": ({"type": "LoRA", "objective": "DPO"}, None),
    "QLoRA": ({"type": "QLoRA"}, "DDP, activations recomputed"),
    "all weights": ({"type": "Full"}, "ZeRO3, offload Optimizer, activations recomputed"),
    "a prompt": ({"type": "PromptTuning"}, None),
}


@pytest.mark.parametrize(("method", "expected"), LARGE.values(), ids=LARGE)
def test_seventy_billion_weights_on_one_machine_with_eight_h100(method: dict[str, str], expected: str | None) -> None:
    """Llama 70B, rows of 4,096 tokens: kept, their activations alone are twice what a card has."""
    whole, trains = 70_553_706_496, 207_093_760 if "LoRA" in method["type"] else 163_840
    quantized = whole - 2 * 128256 * 8192 if method["type"] == "QLoRA" else 0
    counts = (0, 0, 0, whole) if method["type"] == "Full" else (whole - quantized, quantized, 0, trains)
    outline = estimate.Outline(*counts, whole, 8192, (estimate.Layer(161_792, 0, 16_384),) * 80, 128256)
    compute = ComputeConfig.model_validate({"gpusPerNode": 8})
    said = estimate.estimate(outline, MethodConfig.model_validate(method), compute, 10**6, 1, 8192, True)
    h100 = Accelerator("h100", "nvidia.com/gpu", memory_bytes=80 * 2**30)
    changes = {"method": method, "compute": {"accelerator": "h100", "gpusPerNode": 8}}
    o = make_observed(make_revision(estimate={**said, "longest": 4096}), changes=changes, profiles={"h100": h100})
    choice = layout.chosen(o, o.status.revisions[0].estimate)
    assert (choice.layout.title if choice else None) == expected


@pytest.mark.parametrize("size", [8, 24, 40, 80])
@pytest.mark.parametrize("method", [method for method, _ in LARGE.values()], ids=LARGE)
def test_the_fewest_accelerators_that_prepare_names_are_the_fewest_that_the_operator_lets_it_train_on(
    method: dict[str, str], size: int
) -> None:
    """Llama 8B: with one fewer it is refused, without offload."""
    whole, trains = 8_030_261_248, 41_943_040 if "LoRA" in method["type"] else 81_920
    quantized = whole - 2 * 128256 * 4096 if method["type"] == "QLoRA" else 0
    counts = (0, 0, 0, whole) if method["type"] == "Full" else (whole - quantized, quantized, 0, trains)
    outline = estimate.Outline(*counts, whole, 4096, (estimate.Layer(79_872, 0, 8_192),) * 32, 128256)
    asked = MethodConfig.model_validate(method)
    said = estimate.estimate(outline, asked, ComputeConfig.model_validate({"gpusPerNode": 1}), 10**6, 1, 8192, True)
    told = {**said, "longest": 2048}
    gpu = Accelerator("gpu", "nvidia.com/gpu", memory_bytes=size * 2**30, per_machine=64)

    def trains_on(count: int) -> bool:
        changes = {"method": method, "compute": {"accelerator": "gpu", "nodes": count, "gpusPerNode": 1, "offload": "None"}}
        o = make_observed(make_revision(estimate=told), changes=changes, profiles={"gpu": gpu})
        return layout.chosen(o, o.status.revisions[0].estimate) is not None

    needed = estimate.ranks_needed(told, size * 2**30, asked)
    assert needed == next((count for count in range(1, 65) if trains_on(count)), None)


def test_what_prepare_and_the_scores_advise_is_heard() -> None:
    """By the names that the status gives it."""
    rows = {"read": 100, "train": 64, "validation": 8, "test": 8}
    facts = of_data.Facts(rows, "free answers", {}, [])
    o = make_observed(make_revision())
    found = told({"stage": "prepare", "advice": advice.told(of_data.advise(facts))})
    kept = hearing.heard(Draft(status=o.status), "prepare", found["advice"]).status.advice or []
    assert [item.code for item in kept] == ["FewRows", "FewTestRows"]
    assert [f"{item.message} {item.fix}" for item in kept] == [item.text for item in of_data.advise(facts)]


def test_a_score_with_its_interval_and_difference() -> None:
    scored = [ScoredRow(str(n), "a", {"ExactMatch": float(n % 4 > 0)}, {}) for n in range(40)]
    result = {
        "stage": "evaluate", "name": "tuned", "excluded": 3, "path": "/work/revisions/r/evaluations/tuned-k",
        "metrics": {"ExactMatch": scoring.interval("ExactMatch", scored, 95)},
        "paired": scoring.paired("ExactMatch", scored, {str(n): 0.0 for n in range(40)}, 95),
        "answering": throughput.Answering(64, 41.3, 6210, 1790, 16, "h100", 8, "vLLM").told(),
        "forgetting": {
            "percent": 6.210487, "low": -3.3, "high": 1e9, "texts": 40, "tokens": 2301, "base": {"perplexity": 24.834362, "low": 13.9, "high": 43.3},
            "tuned": {"perplexity": 1e9, "low": 14.7, "high": 1e9}, "kl": 0.061163, "klP95": 0.166833, "agreement": 0.836234, "prompts": "sha256:" + "9" * 64,
        },
        "fidelity": {
            "kl": 0.000000325, "klP99": 1e-9, "klMax": 1e9, "differs": 0.036764706, "tokens": 272, "rows": 8,
            "trained": "QLoRA in float32 beside a base quantised as NF4, read in float32", "served": "the adapter merged into the base", "merged": True,
        },
    }  # fmt: skip
    found = _scored("k", told(result))
    assert (found.metric, found.score.score, found.score.n, found.excluded) == ("ExactMatch", "0.75", 40, 3)
    assert found.difference is not None
    assert found.difference.difference == "0.75"
    assert float(found.difference.low) <= 0.75 <= float(found.difference.high)
    assert Score.model_validate(found.score.to_dict()) == found.score
    assert found.forgetting == Forgetting(
        percent="6.2105", low="-3.3", high="1000000000", base="24.8344", tuned="1000000000", kl="0.0612", kl_p95="0.1668", agreement_percent="83.6234",
        texts=40, tokens=2301,
    )  # fmt: skip
    assert found.answering == Answering(
        rows=64, seconds="41.3", input_tokens=6210, output_tokens=1790, concurrency=16, accelerator="h100", accelerators=8, runtime="vLLM",
    )  # fmt: skip
    why = "the model takes about 1.2 GiB, and the container has 1.0 GiB"
    assert _scored("k", told({**result, "forgetting": {"unmeasured": why}})).forgetting == Forgetting(unmeasured=why)
    assert _scored("k", told({**result, "forgetting": None})).forgetting is None
    assert found.fidelity == Fidelity(kl="0.00000033", kl_p99="0", kl_max="1000000000", differs_percent="3.6765", tokens=272, merged=True)
    assert _scored("k", told({**result, "fidelity": {"unmeasured": why}})).fidelity == Fidelity(unmeasured=why)
    assert _scored("k", told({**result, "fidelity": None})).fidelity is None
    assert found.few_shot is None


def test_what_examples_in_the_prompt_did() -> None:
    """The same figures on both sides, in a message that is as long as one can be."""
    alone = [ScoredRow(str(n), "a", {"ExactMatch": float(n % 4 == 0)}, {}) for n in range(40)]
    prompted = [ScoredRow(str(n), "a", {"ExactMatch": float(n % 4 > 0)}, {}) for n in range(16)]
    test = [TestRow(row.id, ({"role": "user", "content": "?"},), "a") for row in alone]
    evaluation = EvaluationConfig.model_validate({"name": "baseline", "path": "/work/e", "metrics": [{"type": "ExactMatch"}]})
    said = {"examples": 4, "tokens": 212, **fewshot._figures(evaluation, prompted, Alone(test, alone, {}))}
    many = [advice.Advice(f"Code{n}", "m" * 200, "f" * 200) for n in range(9)]
    result = {
        "stage": "evaluate", "name": "baseline", "metrics": {"ExactMatch": scoring.interval("ExactMatch", alone, 95)}, "paired": None, "excluded": 0,
        "path": "/work/revisions/r/evaluations/baseline-k", "fewShot": said, "advice": advice.told(many),
    }  # fmt: skip
    few = _scored("k", told(result)).few_shot
    assert few is not None
    heard = few.to_dict()
    assert list(heard) == ["examples", "score", "alone", "difference"]
    assert (heard["examples"], heard["score"]["score"], heard["alone"]["score"], heard["difference"]["difference"]) == (
        4,
        "0.75",
        "0.25",
        "0.5",
    )
    assert {heard[name]["n"] for name in ("score", "alone", "difference")} == {16}
    assert float(heard["score"]["low"]) < 0.75 < float(heard["score"]["high"])
    why = "the model server does not count tokens: what fits into its context is not known"
    assert _scored("k", told({**result, "fewShot": {"unmeasured": why}})).few_shot == FewShot(unmeasured=why)


def test_as_many_examples_are_kept_as_may_be_asked_for() -> None:
    schema = block.FewShot.model_json_schema()["properties"]["examples"]
    assert schema["maximum"] == solved.MOST


@pytest.mark.parametrize(
    ("case", "error", "failure_class", "words"),
    [
        ("a user's mistake", exits.UserError("TooManyInvalidRows", "row 7: no answer", "Correct the rows."), "user", "row 7: no answer. Correct the rows."),
        ("no memory", MemoryError(), "outOfMemory", f"memory ran out. {exits.MORE_MEMORY}"),
        ("a full disk", OSError(28, "No space left on device"), "infrastructure", "[Errno 28] No space left on device. Raise spec.storage.size."),
        ("a stop on request", exits.Interrupted("Interrupted", "stopped by SIGTERM"), "disruption", "stopped by SIGTERM"),
        ("anything else", KeyError("x"), "error", "'x'"),
    ],
)  # fmt: skip
def test_a_failure_is_told_with_its_fix(case: str, error: Exception, failure_class: str, words: str) -> None:
    known = exits.classify(error)
    message = exits.shrink({"stage": "train", "error": known.describe(), "folder": None, "step": None, "checkpoint": None})
    ended = {"exitCode": known.code, "message": message, "finishedAt": "2026-01-01T00:00:00Z", "reason": "Error"}
    pod = {
        "metadata": {"name": "bot-r-a1-0", "uid": "u"},
        "status": {"containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}]},
    }
    failure = root_cause([pod], {"reason": "PodFailurePolicy"})
    assert (failure.failure_class, failure.reason, failure.message.strip()) == (failure_class, known.reason, words)


def test_a_result_fits_the_termination_message() -> None:
    bad = [{"source": "s" * 500, "row": n, "reason": "r" * 5000} for n in range(1000)]
    text = exits.shrink({"stage": "prepare", "digest": "d", "rows": {"read": 1000}, "invalid": bad})
    assert len(text.encode()) <= 4096
    assert json.loads(text)["digest"] == "d"
