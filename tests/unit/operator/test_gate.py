"""The gate: every branch of docs/adr/0002."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.blocks.evaluation import Gate
from finetune_operator.api.status import Fidelity, Forgetting, Scored
from finetune_operator.decide.gate import gate, verdict

from tests.unit.operator.helpers import draft, make_observed, make_revision, make_scored

BASE = "base"


def forgot(percent: str, low: str, high: str) -> Scored:
    """An improvement beyond chance, and so much forgotten."""
    return make_scored("0.5", "0.1", "0.2").model_copy(update={"forgetting": Forgetting(percent=percent, low=low, high=high)})


def served(kl: str | None = None, **found: Any) -> Scored:
    """An improvement beyond chance, and as served so far from what was trained."""
    return make_scored("0.5", "0.1", "0.2").model_copy(update={"fidelity": Fidelity(kl=kl, **found)})


UNMEASURED = make_scored("0.5", "0.1", "0.2").model_copy(update={"forgetting": Forgetting(unmeasured="no room")})
# score with the interval of its difference, gate, reference → what is missed (words), nothing when it passes
CASES: dict[str, tuple[Scored, dict[str, Any] | None, str, list[str]]] = {
    "base: the lower bound is above 0": (make_scored("0.5", "0.01", "0.2"), None, BASE, []),
    "base: the lower bound is 0": (make_scored("0.5", "0", "0.2"), None, BASE, ["is not above 0 (no minImprovement"]),
    "base: the lower bound reaches minImprovement": (make_scored("0.5", "0.05", "0.2"), {"minImprovement": "0.05"}, BASE, []),
    "base: it does not": (
        make_scored("0.5", "0.049", "0.2"),
        {"minImprovement": "0.05"},
        BASE,
        ["does not reach evaluation.gate.minImprovement 0.05"],
    ),
    "base: minImprovementOverLive is not asked": (make_scored("0.5", "0.01", "0.2"), {"minImprovementOverLive": "0.1"}, BASE, []),
    "live: just as good": (make_scored("0.5", "-0.1", "0.1"), None, "r0", []),
    "live: minImprovement is not asked again": (make_scored("0.5", "-0.1", "0.1"), {"minImprovement": "0.05"}, "r0", []),
    "live: the upper bound is 0": (make_scored("0.5", "-0.1", "0"), None, "r0", []),
    "live: provably worse": (make_scored("0.5", "-0.2", "-0.01"), None, "r0", ["provably worse"]),
    "live: more is asked and reached": (make_scored("0.5", "0.02", "0.1"), {"minImprovementOverLive": "0.02"}, "r0", []),
    "live: more is asked and missed": (
        make_scored("0.5", "0.01", "0.1"),
        {"minImprovementOverLive": "0.02"},
        "r0",
        ["minImprovementOverLive 0.02"],
    ),
    "live: less than equal is allowed": (make_scored("0.5", "-0.2", "-0.1"), {"minImprovementOverLive": "-0.3"}, "r0", []),
    "the score itself is too low, in both cases": (
        make_scored("0.5", "0.1", "0.2"),
        {"minScore": "0.6"},
        "r0",
        ["below evaluation.gate.minScore 0.6"],
    ),
    "the score reaches minScore": (make_scored("0.6", "0.1", "0.2"), {"minScore": "0.6"}, BASE, []),
    "both are missed, and both are told": (make_scored("0.1", "-1", "0"), {"minScore": "0.6"}, BASE, ["minScore", "lower bound"]),
    "nothing could be paired": (make_scored("0.9"), None, BASE, ["could not be paired"]),
    "forgetting is not asked for": (forgot("50", "40", "60"), None, BASE, []),
    "it forgot less than is borne": (forgot("2", "1", "3"), {"maxForgettingPercent": 5}, BASE, []),
    "it clearly forgot more": (
        forgot("7", "5.1", "9"), {"maxForgettingPercent": 5}, BASE, ["at least 5.1 %, is above evaluation.gate.maxForgettingPercent 5"],
    ),
    "it seems to have forgotten more": (forgot("7", "5", "9"), {"maxForgettingPercent": 5}, BASE, []),
    "nothing may be forgotten, and it knows more": (forgot("-2", "-3", "-1"), {"maxForgettingPercent": 0}, BASE, []),
    "nothing may be forgotten": (forgot("0.2", "0.1", "0.3"), {"maxForgettingPercent": 0}, BASE, ["maxForgettingPercent 0"]),
    "live: it is against the base model all the same": (forgot("7", "5.1", "9"), {"maxForgettingPercent": 5}, "r0", ["at least 5.1 %"]),
    "what it forgot could not be measured, and nobody asks": (UNMEASURED, None, BASE, []),
    "what it forgot could not be measured": (
        UNMEASURED, {"maxForgettingPercent": 100}, BASE, ["was not measured, but evaluation.gate.maxForgettingPercent is 100: no room"],
    ),
    "its evaluation did not look for it": (make_scored("0.5", "0.1", "0.2"), {"maxForgettingPercent": 100}, BASE, ["went without"]),
    "how it is served is not asked for": (served("3"), None, BASE, []),
    "it is served as far from what was trained as is borne": (served("0.005"), {"maxServingDivergence": "0.005"}, BASE, []),
    "it is served farther from what was trained": (
        served("0.0051"), {"maxServingDivergence": "0.005"}, "r0",
        ["its divergence as served from what was trained, 0.0051, is above evaluation.gate.maxServingDivergence 0.005"],
    ),
    "nothing may lie between, and nothing does": (served("0"), {"maxServingDivergence": "0"}, BASE, []),
    "how it is served could not be measured, and nobody asks": (served(unmeasured="no room"), None, BASE, []),
    "how it is served could not be measured": (
        served(unmeasured="no room"), {"maxServingDivergence": "9"}, BASE,
        ["was not measured, but evaluation.gate.maxServingDivergence is 9: no room"],
    ),
    "its evaluation did not look for how it is served": (
        make_scored("0.5", "0.1", "0.2"), {"maxServingDivergence": "9"}, BASE, ["maxServingDivergence is 9: its evaluation went without"],
    ),
    "it forgot too much, and is served otherwise": (
        served("0.2").model_copy(update={"forgetting": Forgetting(percent="7", low="6", high="8")}),
        {"maxForgettingPercent": 5, "maxServingDivergence": "0.1"}, BASE, ["at least 6 %", "as served from what was trained, 0.2"],
    ),
    "it forgot too much, and could not be paired": (
        forgot("7", "6", "8").model_copy(update={"difference": None}), {"maxForgettingPercent": 5}, BASE,
        ["at least 6 %", "could not be paired"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_verdict(case: str) -> None:
    scored, asked, against, missed = CASES[case]
    found = verdict(Gate.model_validate(asked) if asked else None, scored, against)
    assert len(found) == len(missed)
    assert all(words in text for words, text in zip(missed, found, strict=True))


@pytest.mark.parametrize(
    ("scored", "limit", "words"),
    [
        (forgot("7", "5", "9"), 5, "but whether it forgot more than evaluation.gate.maxForgettingPercent 5 is not clear: ExactMatch"),
        (forgot("5", "4", "6"), 5, "gate passed: ExactMatch"),
        (forgot("7", "5", "9"), None, "gate passed: ExactMatch"),
        (forgot("7", "5", "9"), None, "difference 0 [0.1, 0.2], perplexity of general text +7 % [5, 9]"),
        (forgot("-0.5", "-1", "0"), 5, "perplexity of general text -0.5 % [-1, 0]"),
        (UNMEASURED, None, "difference 0 [0.1, 0.2]"),
    ],
)  # fmt: skip
def test_what_was_forgotten_is_told_and_where_it_is_not_clear_that_too(scored: Scored, limit: int | None, words: str) -> None:
    asked = {"evaluation": {"gate": {"maxForgettingPercent": limit}}} if limit is not None else {}
    o = make_observed(make_revision(artifact="/a", baseline=make_scored("0.1"), evaluated=scored), changes=asked)
    found = gate(o, draft(o))
    assert found.status.evaluation is not None
    assert words in (found.status.evaluation.message or "")
    assert found.status.evaluation.forgetting == scored.forgetting


@pytest.mark.parametrize(
    ("scored", "words"),
    [
        (served("0.00012"), "difference 0 [0.1, 0.2], as served against as trained KL 0.00012"),
        (served(unmeasured="no room"), "difference 0 [0.1, 0.2]"),
    ],
)
def test_how_it_is_served_is_told_with_the_verdict(scored: Scored, words: str) -> None:
    o = make_observed(make_revision(artifact="/a", baseline=make_scored("0.1"), evaluated=scored))
    found = gate(o, draft(o)).status.evaluation
    assert found is not None
    assert (found.message or "").endswith(words)
    assert found.fidelity == scored.fidelity


def test_the_verdict_is_told_with_both_intervals_and_n_and_changes_with_the_gate_alone() -> None:
    known = make_revision(artifact="/a", baseline=make_scored("0.1"), evaluated=make_scored("0.5", "0.1", "0.6"))
    strict = {"evaluation": {"gate": {"minScore": "0.9"}}}
    o = make_observed(known, changes=strict)
    failed = gate(o, draft(o))
    assert (failed.phase, failed.reason, failed.revision.gate) == (c.REJECTED, c.GATE_FAILED, "Failed")
    assert failed.status.evaluation is not None
    assert failed.status.evaluation.verdict == "Failed"
    for words in ("tuned 0.5 [0, 1]", "base model 0.1 [0, 1]", "n=40", "difference 0 [0.1, 0.6]", "Lower the gate"):
        assert words in failed.message
    o = make_observed(failed.revision)
    passed = gate(o, draft(o))
    assert (passed.blocked, passed.revision.gate, passed.revision.stopped) == (False, "Passed", None)
    assert [n.reason for n in passed.notes] == ["GatePassed"]
    o = make_observed(passed.revision)
    assert gate(o, draft(o)).notes == (), "it is told once"
