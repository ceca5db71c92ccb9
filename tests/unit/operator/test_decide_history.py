"""What is kept of revisions, attempts and stages, and what an edit, a suspension or a spent budget leaves of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.fields import digest
from finetune_operator.api.status import Attempt, Cost, Evaluation, Revision, Rollout, Stage, Stopped
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import attempts, budget, patience, suspend
from finetune_operator.decide.draft import Draft, Note
from finetune_operator.decide.revision import current
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Failure, Run

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision, tried

EARLIER = "2026-01-01T11:00:00Z"
OTHER = {"training": {"learningRate": "1e-3"}}


def attempt(number: int = 1, **changes: Any) -> Attempt:
    return Attempt.model_validate({"revision": "r1", "number": number, "started": STAMP, **changes})


def stage(name: str, finished: str | None = None, revision: str = "r1") -> Stage:
    return Stage(name=name, revision=revision, started=EARLIER, finished=finished)


# ---- revisions

EVALUATION = Evaluation(metric="ExactMatch", reference="base")
WAY = [stage("fetch", EARLIER), stage("train"), stage("deploy"), stage("rollout"), stage("bake")]


def test_an_edit_ends_what_is_on_the_way_and_leaves_the_rollout_alone() -> None:
    ended, another = attempt(1, outcome="Failed"), attempt(3, revision="r9", outcome="Suspended")
    status = {"attempts": [ended, attempt(2), another], "stages": WAY, "evaluation": EVALUATION}
    o = make_observed(make_revision("r1"), changes=OTHER, status=status, revisions={"r1": {"fields": {"model": {}}}})
    found = current(o, draft(o))
    name = digest(dict(o.retrain))
    assert found.status.revision == name
    assert found.status.attempts == [ended, attempt(2, outcome="Superseded", finished=STAMP), another]
    assert found.status.stages == [stage("fetch", EARLIER), stage("train", STAMP), *WAY[2:]]
    assert found.status.evaluation is None
    assert found.status.revisions == [make_revision("r1"), Revision(name=name, created=STAMP)]


def test_nothing_ends_while_the_same_revision_is_asked_for() -> None:
    o = make_observed(make_revision("r1"), make_revision("r0"), status={"attempts": [attempt()], "stages": WAY, "evaluation": EVALUATION})
    assert current(o, draft(o)) == draft(o)


def test_a_revert_leaves_the_attempt_of_the_revision_that_is_asked_for_alone() -> None:
    status = {"revision": "r2", "attempts": [attempt(1), attempt(1, revision="r2")]}
    o = make_observed(make_revision("r1"), make_revision("r2"), status=status)
    assert [a.outcome for a in current(o, draft(o)).status.attempts] == ["Running", "Superseded"]


def test_a_revision_whose_entry_was_forgotten_goes_on_counting_its_attempts() -> None:
    o = make_observed(changes=OTHER, revisions={})
    name = digest(dict(o.retrain))
    many = [attempt(4, revision=name, outcome="Failed"), attempt(7, outcome="Failed")]
    o = make_observed(changes=OTHER, revisions={}, status={"attempts": many})
    assert current(o, draft(o)).revision.attempts == 4
    fresh = make_observed(changes=OTHER, revisions={})
    assert current(fresh, draft(fresh)).revision.attempts == 0


def test_of_eleven_revisions_neither_the_live_one_nor_the_one_that_rolls_out_goes() -> None:
    stored = [make_revision(f"r{n}", artifact="/a") for n in range(10)]
    rolls = Rollout(arm="x", revision="r1", stable="y", state="Holding", weight=10)
    o = make_observed(*stored, status={"live_revision": "r0", "rollout": rolls})
    kept = draft(o).with_revision(make_revision("new")).status.revisions
    assert [r.name for r in kept] == ["r0", "r1", *(f"r{n}" for n in range(3, 10)), "new"]
    without = make_observed(*(r.model_copy(update={"artifact": None}) for r in stored), status={"live_revision": "r0"})
    kept = draft(without).with_revision(make_revision("new")).status.revisions
    assert [r.name for r in kept] == ["r0", *(f"r{n}" for n in range(2, 10)), "new"]


def test_an_entry_is_changed_in_place_and_the_others_stay() -> None:
    o = make_observed(make_revision("r1"), make_revision("r2"))
    assert [(r.name, r.attempts) for r in draft(o).update(attempts=3).status.revisions] == [("r1", 3), ("r2", 0)]


# ---- stages


def test_a_stage_begins_once_and_ends_alone() -> None:
    d = draft(make_observed(status={"stages": [stage("train", EARLIER), stage("train", revision="r2"), stage("deploy")]}))
    begun = d.begin("train", NOW)
    assert begun.status.stages == [*d.status.stages, Stage(name="train", revision="r1", started=STAMP)]
    assert begun.begin("train", NOW + timedelta(hours=1)) == begun
    ended = begun.end("train", NOW)
    assert ended.status.stages == [*d.status.stages, Stage(name="train", revision="r1", started=STAMP, finished=STAMP)]
    assert d.begin("train", NOW, "r2") == d


def test_twenty_stages_are_kept() -> None:
    d = draft(make_observed(status={"stages": [stage(f"s{n}") for n in range(20)]}))
    assert [s.name for s in d.begin("new", NOW).status.stages] == [*(f"s{n}" for n in range(1, 20)), "new"]


def test_words_without_end_are_cut_to_a_kibibyte() -> None:
    d = draft(make_observed())
    assert len(d.block(c.TRAINING, "w" * 5000).message) == 1024
    assert len(d.note("Normal", "X", "w" * 5000).notes[0].message) == 1024


# ---- suspension

GOES_ON = "Set it to false to go on"
A1 = "bot-r1-a1"


@pytest.mark.parametrize(
    ("known", "live", "message"),
    [
        ({}, None, "suspend is true: set it to false to go on from the last checkpoint"),
        ({}, "r0", "suspend is true: set it to false to go on from the last checkpoint"),
        ({"artifact": "/a"}, None, f"suspend is true: nothing new starts. {GOES_ON}"),
        ({"artifact": "/a"}, "r0", f"suspend is true: nothing new starts; revision r0 goes on serving. {GOES_ON}"),
    ],
)
def test_what_suspension_says(known: dict[str, Any], live: str | None, message: str) -> None:
    o = make_observed(make_revision(**known), changes={"suspend": True}, status={"live_revision": live})
    found = suspend.suspended(o, draft(o))
    assert (found.blocked, found.phase, found.message, found.notes) == (True, c.SUSPENDED, message, ())


@pytest.mark.parametrize("state", ["Running", "Absent"])
def test_suspension_stops_an_attempt(state: Any) -> None:
    runs = {A1: Run(A1, state)} if state != "Absent" else {}
    o = make_observed(changes={"suspend": True}, status={"attempts": [attempt(revision="r0"), attempt()]}, runs=runs)
    found = suspend.suspended(o, draft(o))
    assert found.status.attempts == [attempt(revision="r0"), attempt(outcome="Suspended", finished=STAMP)]
    assert found.notes == (Note("Normal", c.SUSPENDED, "attempt 1 is stopped"),)
    assert found.status.totals.stopped == 1


def test_what_ended_by_itself_before_it_was_suspended_is_told_while_its_job_is_there() -> None:
    """It may be suspended for longer than the Job is kept."""
    for run, outcome, artifact, errors in (
        (Run(A1, "Succeeded", result={"artifact": "/a", "step": 7}), "Succeeded", "/a", 0),
        (Run(A1, "Failed", failure=Failure("error", "Error", "words")), "Failed", None, 1),
    ):
        o = make_observed(make_revision(attempts=1), changes={"suspend": True}, status={"attempts": [attempt()]}, runs={A1: run})
        found = suspend.suspended(o, draft(o))
        assert (found.phase, found.status.attempts[0].outcome) == (c.SUSPENDED, outcome)
        assert (found.revision.artifact, found.revision.charges.error, found.status.totals.stopped) == (artifact, errors, 0)


def test_jobs_of_ended_attempts_and_of_stages_that_nobody_asks_for_go() -> None:
    known = [make_revision(tries={"fetch": 1, "prepare": 2}), make_revision("r0", tries={"fetch": 1, "prepare": 2, "evaluate": 1})]
    history = [attempt(1, outcome="Suspended"), attempt(2, outcome="Failed"), attempt(3)]
    runs = {
        name: Run(name, state, stopped=stopped)  # type: ignore[arg-type]
        for name, state, stopped in (
            (A1, "Waiting", False), ("bot-r1-a2", "Ending", True), ("bot-r1-a3", "Running", False), ("bot-r1-fetch", "Running", False),
            ("bot-r0-fetch", "Succeeded", False), ("bot-r0-prepare-2", "Running", False), ("bot-r0-evaluate", "Ending", False),
        )
    }  # fmt: skip
    o = make_observed(*known, status={"attempts": history}, runs=runs)
    assert suspend.obsolete(o, draft(o)).obsolete == (A1, "bot-r1-a2", "bot-r0-prepare-2")


def test_a_revision_that_was_given_up_says_so_unless_its_gate_is_to_be_judged_again() -> None:
    cause = Stopped(reason="X", message="given up", time=STAMP, tried=tried("t1"))

    def said(**known: Any) -> tuple[bool, str]:
        o = make_observed(make_revision(**known))
        found = suspend.stopped(o, draft(o))
        return found.blocked, found.message

    assert said(stopped=cause) == (True, "given up")
    assert said() == said(stopped=cause, gate="Failed") == (False, "")


# ---- attempts


def test_what_is_known_of_attempts() -> None:
    history = [attempt(1, folder="/1", micro_batch_divisor=2), attempt(2), attempt(3, folder="/3"), attempt(9, revision="r0", folder="/9")]
    d = draft(make_observed(status={"attempts": history}))
    assert attempts.last(d) == history[2]
    assert attempts.folders(history, "r1", 3) == ["/work/revisions/r1/a2", "/1"]
    assert [attempts.divisor(history, "r1", n) for n in (1, 2, 8)] == [2, 1, 1]
    changed, new = attempts.change(d, history[1], step=7)
    assert changed.status.attempts == [history[0], new, history[2], history[3]]


def test_nodes_of_each_kind_of_failure_that_may_be_theirs_are_avoided() -> None:
    def twice(node: str, kind: str) -> list[Attempt]:
        return [attempt(n, node=node, outcome="Failed", failure_class=kind) for n in (1, 2)]

    history = [*twice("c", "infrastructure"), *twice("b", "stalled"), *twice("a", "error"), *twice("d", "user"), attempt(outcome="Failed")]
    assert attempts.avoided(history) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("compute", "number"),
    [
        ({}, 0),
        ({"nodes": 3}, 0),
        ({"nodes": 3, "accelerator": "h100"}, 3),
        ({"nodes": 3, "accelerator": "h100", "gpusPerNode": 4}, 12),
        ({"nodes": 2, "accelerator": "h100", "gpusPerNode": 0}, 2),
    ],
)
def test_accelerators_of_the_gang(compute: dict[str, Any], number: int) -> None:
    assert attempts.gpus(make_observed(changes={"compute": compute}).spec) == number


def test_what_training_has_cost_so_far() -> None:
    def spent(known: Attempt | None, before: Cost, currency: str | None = None, hours: float = 2) -> Cost:
        budget = {"budget": {"maxCost": "1", "currency": currency}} if currency else {}
        o = make_observed(changes=budget, now=NOW + timedelta(hours=hours), status={"cost": before})
        return attempts.spent(o, draft(o), known)

    some = Cost(hours="1.0000", gpu_hours="8.0000", amount="4.0000", currency="EUR")
    priced, unpriced = attempt(began=STAMP, gpus=8, gpu_hour="2.5"), attempt(began=STAMP)
    assert spent(priced, some) == Cost(hours="3.0000", gpu_hours="24.0000", amount="44.0000", currency="EUR")
    assert spent(priced, Cost(), "USD") == Cost(hours="2.0000", gpu_hours="16.0000", amount="40.0000", currency="USD")
    assert spent(unpriced, some) == some.model_copy(update={"hours": "3.0000"})
    assert spent(unpriced, Cost()) == Cost(hours="2.0000", gpu_hours="0.0000")
    assert spent(None, some) == spent(attempt(), some) == some
    assert spent(priced, some, hours=-1) == some, "a clock that went back takes nothing off"


def test_time_that_never_began_is_not_counted() -> None:
    o = make_observed(status={"attempts": [attempt()], "cost": Cost(hours="1")})
    assert attempts.settled(o, draft(o), o.status.attempts[0]) == (draft(o), o.status.attempts[0])


# ---- budget and patience

H100 = {"h100": Accelerator("h100", "nvidia.com/gpu", hourly_price=2.5)}


def training(limits: dict[str, str], seconds: float, state: str = "Running", **compute: Any) -> Observed:
    known = attempt(began=STAMP, gpus=8, gpu_hour="2.5")
    return make_observed(
        changes={"budget": limits, "compute": {"accelerator": "h100", **compute}}, now=NOW + timedelta(seconds=seconds), profiles=H100,
        status={"attempts": [known], "stages": [stage("train")]}, runs={A1: Run(A1, state)},  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_spent_budget_is_told_once_and_ends_the_stage() -> None:
    o = training({"maxDuration": "1h"}, 3600)
    found = budget.within(o, draft(o))
    text = "budget.maxDuration 1h is spent: training has taken 1.00 hours. Raise it: training goes on from the last checkpoint."
    assert (found.phase, found.reason, found.message) == (c.FAILED, c.BUDGET_EXHAUSTED, text)
    assert found.notes == (Note("Warning", c.BUDGET_EXHAUSTED, text),)
    assert found.status.stages == [stage("train", "2026-01-01T13:00:00Z")]


def test_the_last_second_of_a_budget_is_there_to_be_spent() -> None:
    o = training({"maxDuration": "10h", "maxCost": "200"}, 35_999)
    assert budget.within(o, draft(o)) == draft(o)


@pytest.mark.parametrize("state", ["Succeeded", "Failed"])
def test_an_attempt_that_has_ended_is_told_before_the_budget(state: str) -> None:
    o = training({"maxDuration": "1h"}, 7200, state)
    assert budget.within(o, draft(o)) == draft(o)


def test_money_without_a_currency_and_a_price_without_an_accelerator() -> None:
    o = training({"maxCost": "20"}, 3600)
    assert "training has cost 20.00 for 8.00 GPU hours. Raise it" in budget.within(o, draft(o)).message
    o = make_observed(changes={"budget": {"maxCost": "20"}, "compute": {"gpusPerNode": 2}})
    assert "training without an accelerator has no price" in budget.within(o, draft(o)).message
    o = make_observed(changes={"budget": {"maxCost": "20"}, "compute": {"accelerator": "h100", "gpusPerNode": 0}})
    assert "profile h100 has no hourlyPrice" in budget.within(o, draft(o)).message


@pytest.mark.parametrize(
    ("state", "step_seconds", "limit"), [("training", 3, 900), ("training", 60, 1200), ("loading", 3, 7200), ("validating", 400, 8000)]
)
def test_patience_ends_a_second_after_its_limit(state: str, step_seconds: float, limit: int) -> None:
    def found(quiet: float) -> Any:
        return patience.stalled({"state": state, "quietSeconds": quiet, "secondsPerStep": step_seconds, "step": 12}, NOW)

    assert found(limit) is None
    assert found(limit + 0.5).message.endswith(f"(step 12, {state}); {limit} s are borne")


def test_nonsense_is_no_stall_and_a_long_state_is_cut() -> None:
    assert patience.stalled({"quietSeconds": "long", "secondsPerStep": None}, NOW) is None
    found = patience.stalled({"state": "s" * 200, "quietSeconds": 9999, "step": "?"}, NOW)
    assert found
    assert f"(step 0, {'s' * 72}); 7200 s are borne" in found.message


def test_a_draft_names_the_revision_that_is_asked_for() -> None:
    o = make_observed(make_revision("r1"), make_revision("r2"), status={"revision": "r2"})
    assert Draft(status=o.status).revision.name == "r2"
