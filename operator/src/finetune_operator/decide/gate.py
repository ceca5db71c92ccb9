"""Does the tuned model pass? Asked of stored scores, so that an edited gate is judged again without a new evaluation.

Against the base model the improvement's lower bound must reach `minImprovement` (unset: it must be above 0). Against a
live revision, which has already brought that improvement, the tuned model must not be provably worse, unless
`minImprovementOverLive` asks for more (docs/adr/0002). What it forgot is always against the base model, and stops it only where the
rise of general text's perplexity is clearly above `maxForgettingPercent`: where its interval's lower bound is. How far it is as served
from what was trained is asked of the mean itself (docs/adr/0016).
"""

from __future__ import annotations

from finetune_operator import conditions
from finetune_operator.api.blocks.evaluation import Gate
from finetune_operator.api.status import Baseline, Evaluation, Fidelity, Forgetting, Scored, Stopped
from finetune_operator.decide.draft import Draft, stamp
from finetune_operator.decide.stages import BASE, reference
from finetune_operator.observed import Observed

WITHOUT = "its evaluation went without, as one of an older version does"


def gate(o: Observed, d: Draft) -> Draft:
    """Pass the revision on to the rollout, or reject it with the numbers."""
    if d.blocked or d.revision.promoted:
        return d
    scored, base = d.revision.evaluated, d.revision.baseline
    if scored is None or base is None:
        return d
    against = reference(d)
    asked = o.spec.evaluation.gate if o.spec.evaluation else None
    failures = verdict(asked, scored, against)
    passed = not failures
    message = _sentence(asked, scored, base, against, failures)
    evaluation = Evaluation(
        metric=scored.metric, reference=against, baseline=Baseline(**vars(base.score), few_shot=base.few_shot), tuned=scored.score,
        improvement=scored.difference, forgetting=scored.forgetting, fidelity=scored.fidelity, verdict="Passed" if passed else "Failed",
        message=message[:1024],
    )  # fmt: skip
    d = d.set(evaluation=evaluation)
    if passed:
        if d.revision.gate != "Passed":
            d = d.note("Normal", "GatePassed", message)
        return d.update(gate="Passed", stopped=None)
    if d.revision.gate != "Failed":
        d = d.note("Warning", conditions.GATE_FAILED, message)
    stopped = Stopped(reason=conditions.GATE_FAILED, message=message[:1024], time=stamp(o.now), tried=o.tried)
    if d.revision.stopped is None:
        d = d.update(gate="Failed", stopped=stopped)
    return d.block(conditions.REJECTED, message, reason=conditions.GATE_FAILED)


def verdict(gate: Gate | None, scored: Scored, against: str) -> list[str]:
    """What the tuned model misses, each as a sentence; empty when it passes."""
    failures: list[str] = []
    minimum = gate.min_score if gate else None
    if minimum is not None and float(scored.score.score) < float(minimum):
        failures.append(f"its score {scored.score.score} is below evaluation.gate.minScore {minimum}")
    failures += [*_forgot(gate, scored.forgetting), *diverged(gate, scored.fidelity)]
    difference = scored.difference
    if difference is None:
        return [*failures, "it could not be paired with the reference's rows"]
    if against == BASE:
        limit = gate.min_improvement if gate else None
        missed = float(difference.low) < float(limit) if limit is not None else float(difference.low) <= 0
        wanted = f"does not reach evaluation.gate.minImprovement {limit}" if limit else "is not above 0 (no minImprovement is set)"
        if missed:
            failures.append(f"the lower bound of its improvement, {difference.low}, {wanted}")
        return failures
    over_live = gate.min_improvement_over_live if gate else None
    if over_live is not None and float(difference.low) < float(over_live):
        failures.append(f"the lower bound of its improvement, {difference.low}, is below minImprovementOverLive {over_live}")
    if over_live is None and float(difference.high) < 0:
        failures.append(f"it is provably worse than the live revision: the difference is at most {difference.high}")
    return failures


def _forgot(gate: Gate | None, found: Forgetting | None) -> list[str]:
    """Is what it forgot clearly more than the gate bears? What was not measured is not known to be less."""
    limit = gate.max_forgetting_percent if gate else None
    if limit is None:
        return []
    if found is None or found.low is None:
        why = found.unmeasured if found and found.unmeasured else WITHOUT
        return [f"what it forgot was not measured, but evaluation.gate.maxForgettingPercent is {limit}: {why}"]
    if float(found.low) > limit:
        return [f"the rise of general text's perplexity, at least {found.low} %, is above evaluation.gate.maxForgettingPercent {limit}"]
    return []


def diverged(gate: Gate | None, found: Fidelity | None) -> list[str]:
    """Is it as served farther from what was trained than the gate bears?"""
    limit = gate.max_serving_divergence if gate else None
    if limit is None:
        return []
    if found is None or found.kl is None:
        why = found.unmeasured if found and found.unmeasured else WITHOUT
        what = "how far it is as served from what was trained"
        return [f"{what} was not measured, but evaluation.gate.maxServingDivergence is {limit}: {why}"]
    if float(found.kl) > float(limit):
        return [f"its divergence as served from what was trained, {found.kl}, is above evaluation.gate.maxServingDivergence {limit}"]
    return []


def _unclear(gate: Gate | None, found: Forgetting | None) -> str:
    """What is said of a model that passes although it seems to have forgotten too much."""
    limit = gate.max_forgetting_percent if gate else None
    if limit is None or found is None or found.percent is None or float(found.percent) <= limit:
        return ""
    return f", but whether it forgot more than evaluation.gate.maxForgettingPercent {limit} is not clear"


def _sentence(gate: Gate | None, scored: Scored, base: Scored, against: str, failures: list[str]) -> str:
    who = "the base model" if against == BASE else f"live revision {against}"
    numbers = (
        f"{scored.metric}: tuned {scored.score.score} [{scored.score.low}, {scored.score.high}], {who} {base.score.score} "
        f"[{base.score.low}, {base.score.high}], n={scored.score.n}"
    )
    if scored.difference:
        numbers += f", difference {scored.difference.difference} [{scored.difference.low}, {scored.difference.high}]"
    if (found := scored.forgetting) and found.percent is not None:
        numbers += f", perplexity of general text {float(found.percent):+g} % [{found.low}, {found.high}]"
    if (served := scored.fidelity) and served.kl is not None:
        numbers += f", as served against as trained KL {served.kl}"
    if not failures:
        return f"gate passed{_unclear(gate, found)}: {numbers}"
    return f"gate failed: {'; '.join(failures)} ({numbers}). Lower the gate, or change data, method or training."
