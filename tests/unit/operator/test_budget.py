"""What training has cost, and what happens when that is more than it may."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.status import Advice, Attempt, Cost, ScoringCost
from finetune_operator.build.jobs import Stage, stage_job
from finetune_operator.build.pods import Accelerator, Images, Owner
from finetune_operator.decide import attempts, budget
from finetune_operator.decide.attempts import settled
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.suspend import obsolete
from finetune_operator.decide.train import train
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Run, Waiting

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision

A1 = "bot-r1-a1"
GPU = {"accelerator": "h100", "nodes": 2, "gpusPerNode": 8}
PRICED = {"h100": Accelerator("h100", "nvidia.com/gpu", hourly_price=2.5)}
RUNS = {A1: Run(A1, "Running")}
TRAINS: dict[str, Any] = {"revision": "r1", "number": 1, "started": STAMP, "began": STAMP, "gpus": 16, "gpu_hour": "2.5"}


def seen(
    limits: dict[str, str] | None, *, hours: float = 0, attempt: dict[str, Any] | None = TRAINS, cost: Cost | None = None, **changes: Any
) -> Observed:
    known = [Attempt.model_validate(attempt)] if attempt else []
    given: dict[str, Any] = {"runs": RUNS if attempt else {}, "profiles": PRICED, **changes}
    spec = {"compute": given.pop("compute", GPU), **({"budget": limits} if limits else {})}
    return make_observed(
        make_revision(attempts=len(known)), changes=spec, now=NOW + timedelta(hours=hours),
        status={"attempts": known, **({"cost": cost} if cost else {})}, **given,
    )  # fmt: skip


HALF = Cost(hours="1.0000", gpu_hours="16.0000", amount="40.0000")
# limits, what is seen → reason (empty: it may go on), words
BUDGETS: dict[str, tuple[dict[str, str] | None, dict[str, Any], str, str]] = {
    "there is none": (None, {"hours": 900}, "", ""),
    "there is some left": ({"maxCost": "41", "maxDuration": "61m"}, {"hours": 1}, "", ""),
    "the time is spent": (
        {"maxDuration": "1h"},
        {"hours": 1},
        c.BUDGET_EXHAUSTED,
        "maxDuration 1h is spent: training has taken 1.00 hours",
    ),
    "the money is spent": (
        {"maxCost": "40", "currency": "USD"},
        {"hours": 1},
        c.BUDGET_EXHAUSTED,
        "maxCost 40 is spent: training has cost 40.00 USD for 16.00 GPU hours. Raise it",
    ),
    "scoring counts": (
        {"maxCost": "45", "currency": "USD"},
        {"hours": 1, "cost": Cost(scoring=ScoringCost(hours="0.2500", gpu_hours="2.0000", amount="5.0000"))},
        c.BUDGET_EXHAUSTED,
        "training and scoring have cost 45.00 USD for 18.00 GPU hours. Raise it",
    ),
    "the time of scoring does not": (
        {"maxDuration": "2h"},
        {"hours": 1, "cost": Cost(scoring=ScoringCost(hours="9", gpu_hours="9"))},
        "",
        "",
    ),
    "earlier attempts count": ({"maxCost": "79"}, {"hours": 1, "cost": HALF}, c.BUDGET_EXHAUSTED, "80.00"),
    "it is spent and nothing runs: nothing starts": (
        {"maxDuration": "1h"},
        {"attempt": None, "cost": HALF},
        c.BUDGET_EXHAUSTED,
        "Raise it",
    ),
    "the accelerator has no price": (
        {"maxCost": "40"},
        {"attempt": None, "profiles": {"h100": Accelerator("h100", "nvidia.com/gpu")}},
        c.PRICE_UNKNOWN,
        "profile h100 has no hourlyPrice",
    ),
    "CPUs have no price": ({"maxCost": "40"}, {"attempt": None, "compute": {"nodes": 2}}, c.PRICE_UNKNOWN, "Use budget.maxDuration"),
    "what ended is told first": ({"maxDuration": "1h"}, {"hours": 1, "runs": {A1: Run(A1, "Succeeded")}}, "", ""),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_budget(case: str) -> None:
    limits, given, reason, words = BUDGETS[case]
    o = seen(limits, **given)
    decided = budget.within(o, draft(o))
    assert (decided.phase, decided.reason) == ((c.FAILED, reason) if reason else (c.PENDING, ""))
    assert words in decided.message


BEGAN_UNPRICED = {k: v for k, v in TRAINS.items() if k != "gpu_hour"}
UNPRICED = {"h100": Accelerator("h100", "nvidia.com/gpu")}
# limits, what is seen → what is said of the attempt that runs; empty: nothing
UNCOUNTED: dict[str, tuple[dict[str, str] | None, dict[str, Any], str]] = {
    "it has a price": ({"maxCost": "40"}, {}, ""),
    "the profile has lost its price since": ({"maxCost": "40"}, {"profiles": UNPRICED}, ""),
    "no money is limited": ({"maxDuration": "9h"}, {"attempt": BEGAN_UNPRICED, "profiles": UNPRICED}, ""),
    "nothing is limited": (None, {"attempt": BEGAN_UNPRICED, "profiles": UNPRICED}, ""),
    "its accelerators have none": (
        {"maxCost": "40"}, {"attempt": BEGAN_UNPRICED, "profiles": UNPRICED},
        "; attempt 1 goes on, and budget.maxCost cannot be kept: the operator's profile h100 has no hourlyPrice. Use budget.maxDuration",
    ),
    "it waits for its pods": (
        {"maxCost": "40"}, {"attempt": {k: v for k, v in BEGAN_UNPRICED.items() if k != "began"}, "profiles": UNPRICED},
        "; attempt 1 goes on, and budget.maxCost cannot be kept: the operator's profile h100",
    ),
    "they have got one since": (
        {"maxCost": "40"}, {"attempt": BEGAN_UNPRICED}, "budget.maxCost does not count it: it began without a price. Set suspend",
    ),
    "CPUs": ({"maxCost": "40"}, {"attempt": BEGAN_UNPRICED, "compute": {"nodes": 2}}, "training without an accelerator has no price"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCOUNTED)
def test_an_attempt_whose_money_is_not_counted_says_so_while_it_runs(case: str) -> None:
    limits, given, words = UNCOUNTED[case]
    o = seen(limits, **given)
    decided = budget.uncounted(o, train(o, budget.within(o, draft(o))))
    assert (decided.phase, decided.status.attempts[0].outcome) == (c.TRAINING, "Running")
    assert (words in decided.message, "maxCost" in decided.message) == (True, bool(words))


ESTIMATE: dict[str, Any] = {"memory_bytes": 1, "seconds": 5400, "pass_tokens": 1, "longest": 1}


@pytest.mark.parametrize(
    ("changes", "profiles", "cost"),
    [({}, PRICED, "60.00"), ({"artifact": "/work/a"}, PRICED, None), ({}, {"h100": Accelerator("h100", "nvidia.com/gpu")}, None)],
    ids=["it is to come", "it is done", "there is no price"],
)
def test_what_training_will_cost_is_said_before_it_begins(changes: dict[str, Any], profiles: Any, cost: str | None) -> None:
    o = make_observed(make_revision(estimate=ESTIMATE, **changes), changes={"compute": GPU}, profiles=profiles)
    found = budget.expected(o, draft(o)).revision.estimate
    assert found is not None
    assert found.cost == cost


def test_what_is_spent_stops_the_attempt_uncharged_and_its_job_goes() -> None:
    o = seen({"maxDuration": "1h"}, hours=1)
    decided = obsolete(o, budget.within(o, draft(o)))
    attempt = decided.status.attempts[0]
    assert (attempt.outcome, attempt.began, attempt.finished) == ("OverBudget", None, "2026-01-01T13:00:00Z")
    assert (decided.status.totals.stopped, decided.revision.charges.error, decided.obsolete) == (1, 0, (A1,))
    assert decided.status.cost == HALF
    raised = Observed(**{**vars(seen({"maxDuration": "2h"}, attempt=None)), "status": decided.status, "runs": {}})
    assert train(raised, budget.within(raised, Draft(status=raised.status))).jobs[0].number == 2


def test_time_counts_from_when_all_pods_run_and_not_while_a_queue_holds_them() -> None:
    waits = {k: v for k, v in TRAINS.items() if k not in ("began", "gpus", "gpu_hour")}
    started = train(o := seen(None, attempt=waits), draft(o)).status.attempts[0]
    assert (started.began, started.gpus, started.gpu_hour) == (STAMP, 16, "2.5000")
    held = train(o := seen(None, hours=1, runs={A1: Run(A1, "Waiting", suspended=True)}), draft(o)).status
    assert (held.cost, held.attempts[0].began) == (HALF, None)
    assert settled(later := seen(None, hours=2), Draft(status=held), held.attempts[0])[0].status.cost == HALF
    assert later.now > NOW


@pytest.mark.parametrize("state", ["Succeeded", "Failed"])
def test_what_ended_while_nobody_looked_has_cost_no_more_than_until_then(state: Any) -> None:
    o = seen(None, hours=72, runs={A1: Run(A1, state, result={"artifact": "/a"}, ended=NOW + timedelta(hours=1))})
    assert train(o, draft(o)).status.cost == HALF


@pytest.mark.parametrize(("jobs", "seconds"), [(None, 86400), ("2d", 172800), ("1m", 3600), ("9999d9999d9999d", 2**31 - 1)])
def test_jobs_that_ended_are_kept_as_long_as_wanted_and_never_too_short_to_be_read(jobs: str | None, seconds: int) -> None:
    o = make_observed(make_revision(), changes={"retention": {"jobs": jobs}} if jobs else {})
    made = stage_job(Owner("ml", "bot", "u"), o.spec, Stage("train", "r1", 1), {}, Images("t:1", "r:1"), avoid=["bad"])
    assert made["spec"]["ttlSecondsAfterFinished"] == seconds
    preferred = made["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred[0]["preference"]["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}]


def test_a_node_that_failed_two_attempts_is_avoided_and_one_that_was_drained_is_not() -> None:
    def ended(node: str, outcome: str = "Failed", kind: str = "infrastructure") -> Attempt:
        return Attempt.model_validate(
            {"revision": "r1", "number": 1, "started": STAMP, "pod": "p", "node": node, "outcome": outcome, "failure_class": kind}
        )

    history = [ended("a"), ended("b"), ended("a"), *[ended("c", "Disrupted", "disruption")] * 3, *[ended("d", kind="outOfMemory")] * 2]
    assert attempts.avoided(history) == ["a"]


def test_a_gang_waits_ten_minutes_for_its_last_pod_then_lets_go_of_the_others_uncharged() -> None:
    words = Waiting(c.UNSCHEDULABLE, "pod bot-r1-a1-1 cannot be scheduled: 0/3 nodes")
    attempt = {"revision": "r1", "number": 1, "started": STAMP}

    def after(seconds: float, **compute: Any) -> Draft:
        o = seen(None, attempt=attempt, compute={**GPU, **compute}, runs={A1: Run(A1, "Waiting", waiting=words, held=seconds)})
        return obsolete(o, train(o, draft(o)))

    assert after(600).status.attempts[0].outcome == "Running"
    assert after(601, queueName="team").status.attempts[0].outcome == "Running", "a queue sees to that itself"
    taken = after(601)
    assert (taken.status.attempts[0].outcome, taken.obsolete, taken.reason) == ("Disrupted", (A1,), c.UNSCHEDULABLE)
    assert "held their machines for 10 minutes in vain: pod bot-r1-a1-1 cannot be scheduled" in taken.message
    assert (taken.revision.charges.disruption, (taken.requeue or 0) > 3) == (1, True)
    assert (taken.status.attempts[0].node, "ReadWriteMany" in taken.message) == (None, False), "nothing says that a node is too small"


BOTH = {"nodes": 2, "accelerator": "h100", "gpusPerNode": 4}


def test_a_gang_whose_node_has_no_room_for_all_of_it_tries_another_one_soon_and_uncharged() -> None:
    words = Waiting(c.UNSCHEDULABLE, "pod bot-r1-a1-1 cannot be scheduled: 1 Insufficient, 9 didn't match pod affinity rules")
    attempt = Attempt(revision="r1", number=1, started=STAMP)

    def after(seconds: float, mode: str = "ReadWriteOnce", **compute: Any) -> Draft:
        run = Run(A1, "Waiting", waiting=words, held=seconds, crowded="small")
        changes = {"compute": {**BOTH, **compute}, "storage": {"accessMode": mode}}
        o = make_observed(make_revision(attempts=1), changes=changes, status={"attempts": [attempt]}, runs={A1: run})
        return obsolete(o, train(o, draft(o)))

    assert after(30).status.attempts[0].outcome == "Running"
    assert after(31, queueName="team").status.attempts[0].outcome == "Running", "a queue sees to that itself"
    assert after(31, "ReadWriteMany").status.attempts[0].outcome == "Running", "it is the user's own affinity"
    taken = after(31)
    (ended,) = taken.status.attempts
    assert (ended.outcome, ended.node, taken.obsolete, taken.reason) == ("Disrupted", "small", (A1,), c.UNSCHEDULABLE)
    assert "node small has no room for all 2 pods, and the next attempt avoids it: pod bot-r1-a1-1 cannot be" in taken.message
    charges = taken.revision.charges
    assert (charges.disruption, charges.infrastructure, charges.error) == (1, 0, 0)
    assert attempts.avoided(taken.status.attempts) == ["small"]


def test_a_gang_that_meets_a_node_again_that_was_too_small_says_what_else_would_do() -> None:
    """No other has room for any of it: what it has it keeps for as long as any gang does, so that nothing is tried in a circle."""
    words = Waiting(c.UNSCHEDULABLE, "pod bot-r1-a3-1 cannot be scheduled: 0/2 nodes.")
    past = [{"revision": "r1", "number": n, "started": STAMP, "outcome": "Disrupted", "node": f"small-{n}"} for n in (1, 2)]
    now = {"revision": "r1", "number": 3, "started": STAMP}

    def after(seconds: float) -> Draft:
        run = Run("bot-r1-a3", "Waiting", waiting=words, held=seconds, crowded="small-1")
        changes = {"compute": BOTH}
        listed = [Attempt.model_validate(one) for one in (*past, now)]
        o = make_observed(make_revision(attempts=3), changes=changes, status={"attempts": listed}, runs={"bot-r1-a3": run})
        return train(o, draft(o))

    waits = after(600)
    assert waits.status.attempts[2].outcome == "Running"
    assert waits.message == (
        "pod bot-r1-a3-1 cannot be scheduled: 0/2 nodes. No node that was tried (small-1, small-2) had room for all 2 pods. Make the "
        "FineTune anew with storage.accessMode ReadWriteMany (on a storageClassName that has it), or ask for fewer compute.nodes"
    )
    taken = after(601)
    assert (taken.status.attempts[2].outcome, taken.status.attempts[2].node) == ("Disrupted", None)
    assert "held their machines for 10 minutes in vain" in taken.message
    assert "ReadWriteMany" in taken.message


TAKES = {"memoryBytes": 1, "seconds": 5400, "cost": "60.00", "passTokens": 1, "longest": 1}
# limits, what was spent, what is known of the revision → words of the advice (empty: none)
FORESEEN: dict[str, tuple[dict[str, str] | None, Cost, dict[str, Any], str]] = {
    "there is no budget": (None, HALF, {}, ""),
    "it is enough": ({"maxCost": "60", "maxDuration": "90m"}, Cost(), {}, ""),
    "the money is not": ({"maxCost": "59.99", "currency": "USD"}, Cost(), {}, "costs 60.00 USD, and of budget.maxCost 59.99 USD is left"),
    "what was spent counts": ({"maxCost": "99"}, HALF, {}, "costs 60.00, and of budget.maxCost 59.00 is left"),
    "scoring counts as well": (
        {"maxCost": "99"},
        HALF.model_copy(update={"scoring": ScoringCost(amount="9")}),
        {},
        "and of budget.maxCost 50.00 is left",
    ),
    "the time is not": ({"maxCost": "100", "maxDuration": "2h"}, HALF, {}, "takes 1.5 hours, and of budget.maxDuration 1.0 are left"),
    "nothing is estimated": ({"maxDuration": "1m"}, Cost(), {"estimate": None}, ""),
}


@pytest.mark.parametrize(("limits", "cost", "known", "words"), FORESEEN.values(), ids=FORESEEN)
def test_a_training_beyond_the_budget_is_foreseen_and_may_begin(
    limits: dict[str, str] | None, cost: Cost, known: dict[str, Any], words: str
) -> None:
    spec = {"budget": limits} if limits else {}
    early, late = (Advice(stage=stage, code=stage, message="m", fix="f") for stage in ("prepare", "baseline"))
    o = make_observed(make_revision(**{"estimate": TAKES, **known}), changes=spec, status={"cost": cost, "advice": [early, late]})
    then = budget.foreseen(o, draft(o))
    said = [item for item in then.status.advice or [] if item.code == "OverBudget"]
    assert (then.status.advice or [])[:1] + (then.status.advice or [])[-1:] == [early, late]
    assert [words in item.message for item in said] == ([True] if words else [])
    assert (len(then.notes), then.blocked) == (len(said), False)
    assert budget.foreseen(o, replace(then, notes=())).notes == (), "it is told once"


def test_what_is_left_of_the_budget_is_told_in_one_event_though_scoring_takes_more_of_it() -> None:
    item = Advice(stage="prepare", code="OverBudget", message="By prepare's estimate … 2.00 hours are left", fix="f")
    o = make_observed(make_revision(estimate=TAKES), changes={"budget": {"maxDuration": "1h"}}, status={"advice": [item]})
    then = budget.foreseen(o, draft(o))
    assert then.status.advice != [item]
    assert then.notes == ()


def test_a_larger_budget_takes_the_advice_back_until_it_trains() -> None:
    item = Advice(stage="prepare", code="OverBudget", message="m", fix="f")
    known = {"changes": {"budget": {"maxDuration": "2h"}}, "status": {"advice": [item]}}
    o = make_observed(make_revision(estimate=TAKES), **known)
    assert budget.foreseen(o, draft(o)).status.advice is None
    o = make_observed(make_revision(estimate=TAKES, attempts=1), **known)
    assert budget.foreseen(o, draft(o)).status.advice == [item]
