"""What a running attempt tells, what of it is kept, and what an attempt that ended leaves."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.status import Attempt, Checkpoint, Rows, Stage, Training
from finetune_operator.decide import stages
from finetune_operator.decide.draft import Draft, JobWanted, Note, finite
from finetune_operator.decide.gate import gate
from finetune_operator.decide.patience import stalled
from finetune_operator.decide.train import train
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Failure, Run, Waiting

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision, make_scored

A1, FETCH = "bot-r1-a1", "bot-r1-fetch"
FOLDER = "/work/revisions/r1/a1-0123abcd"
BEGUN = [Stage(name="train", revision="r1", started=STAMP)]
ENDED = [Stage(name="train", revision="r1", started=STAMP, finished=STAMP)]


def attempt(number: int = 1, **changes: Any) -> Attempt:
    return Attempt.model_validate({"revision": "r1", "number": number, "started": STAMP, "began": STAMP, **changes})


def seen(
    run: Run | None = None, *, told: dict[str, Any] | None = None, known: Training | None = None, history: list[Attempt] | None = None,
    revision: dict[str, Any] | None = None, **more: Any,
) -> Observed:  # fmt: skip
    attempts = [attempt()] if history is None else history
    return make_observed(
        make_revision(**{"attempts": len(attempts), **(revision or {})}),
        status={"attempts": attempts, "training": known, "stages": BEGUN}, runs={run.name: run} if run else {},
        progress={A1: told} if told is not None else {}, **more,
    )  # fmt: skip


def trained(o: Observed) -> Draft:
    return train(o, draft(o))


TOLD = {
    "state": "training", "step": 20, "totalSteps": 50, "loss": 0.98765, "validationLoss": 1.23456, "tokensPerSecond": 123.46,
    "etaSeconds": 90.4, "resumedFromStep": 5, "checkpoint": {"step": 10, "time": STAMP},
}  # fmt: skip
TRAINING = Training(
    revision="r1", attempt=1, step=20, total_steps=50, percent=40, loss="0.9877", validation_loss="1.2346", tokens_per_second="123.5",
    eta_seconds=90, checkpoint=Checkpoint(step=10, time=STAMP), updated=STAMP,
)  # fmt: skip
RUNNING = Run(A1, "Running")


def test_everything_that_is_told_is_kept() -> None:
    found = trained(seen(RUNNING, told=TOLD))
    assert found.status.training == TRAINING
    assert found.status.attempts == [attempt(step=20, checkpoint=10, resumed_from_step=5)]
    assert found.message == f"attempt 1: step 20 of 50, loss 0.9877, about 90 s left; checkpoint at step 10, {STAMP} (as of {STAMP})"


@pytest.mark.parametrize("value", ["x", math.inf, -math.inf, math.nan, None, 10**400, 1e300, [], {"time": 3}, {"step": "x", "time": STAMP}])
def test_nonsense_of_any_kind_is_no_number_and_ends_no_cycle(value: Any) -> None:
    assert finite(value) is None
    nonsense = dict.fromkeys(TOLD, value)
    found = trained(seen(RUNNING, told={**nonsense, "totalSteps": 50, "quietSeconds": value, "secondsPerStep": value}))
    assert found.status.training == Training(revision="r1", attempt=1, step=0, total_steps=50, percent=0, updated=STAMP)
    assert found.message == f"attempt 1: step 0 of 50; no checkpoint yet (as of {STAMP})"
    assert stalled({"quietSeconds": 99999, "step": value, "state": value}, NOW)
    o = make_observed(make_revision(tries={"fetch": 1}), runs={FETCH: Run(FETCH, "Running")}, progress={FETCH: {"percent": value}})
    assert stages.fetch(o, draft(o)).message == "fetching the base model"


def test_numbers_are_those_that_json_holds_exactly() -> None:
    assert [finite(n) for n in (0, -3, 2.5, 2**53 - 1, 2**53, -(2**53))] == [0.0, -3.0, 2.5, 2.0**53 - 1, None, None]


KEPT: dict[str, tuple[dict[str, Any], bool]] = {  # what is told after `TRAINING` → is it written?
    "the same": ({}, False),
    "a step within the same five per cent": ({"step": 22}, False),
    "a step within the next five per cent": ({"step": 23}, True),
    "another checkpoint": ({"checkpoint": {"step": 15, "time": STAMP}}, True),
    "no checkpoint any more": ({"checkpoint": None}, False),
    "a checkpoint without a time": ({"checkpoint": {"step": 99}}, False),
    "beyond the end": ({"step": 70}, True),
}


@pytest.mark.parametrize("case", KEPT)
def test_progress_is_written_at_marks_and_checkpoints(case: str) -> None:
    changes, written = KEPT[case]
    later = NOW + timedelta(minutes=1)
    found = trained(seen(RUNNING, told={**TOLD, **changes}, known=TRAINING, history=[attempt(resumed_from_step=5)], now=later)).status
    assert (found.training != TRAINING) == written
    assert found.training
    assert found.training.percent <= 100
    assert found.attempts[0].began == ("2026-01-01T12:01:00Z" if written else STAMP), "what it cost until then is counted"


def test_what_was_not_written_is_not_said_either() -> None:
    known = TRAINING.model_copy(update={"step": 22, "percent": 44})
    found = trained(seen(RUNNING, told={**TOLD, "step": 21}, known=known, history=[attempt(resumed_from_step=5)]))
    assert found.status.training == known
    assert found.message.startswith("attempt 1: step 22 of 50")


@pytest.mark.parametrize(
    ("step", "total", "percent"), [(-7, 50, 0), (0, 50, 0), (99, 100, 99), (100, 100, 100), (101, 100, 100), (1, 3, 33), (199, 200, 99)]
)
def test_per_cent_are_whole_and_at_most_a_hundred(step: int, total: int, percent: int) -> None:
    found = trained(seen(RUNNING, told={"step": step, "totalSteps": total, "checkpoint": {"step": 3, "time": "t" * 90}})).status.training
    assert found
    assert (found.step, found.percent, found.checkpoint) == (max(0, step), percent, Checkpoint(step=3, time="t" * 64))


def test_a_checkpoint_of_an_earlier_attempt_is_not_this_ones() -> None:
    before = TRAINING.model_copy(update={"attempt": 0})
    found = trained(seen(RUNNING, told={**TOLD, "checkpoint": None}, known=before)).status.training
    assert found == TRAINING.model_copy(update={"checkpoint": None})


def test_where_it_resumed_is_learnt_once() -> None:
    def known(before: int | None, told: Any) -> int | None:
        o = seen(RUNNING, told={**TOLD, "resumedFromStep": told}, history=[attempt(resumed_from_step=before)])
        return trained(o).status.attempts[0].resumed_from_step

    assert [known(None, 5), known(3, 5), known(3, None), known(None, None), known(None, 0)] == [5, 3, 3, None, 0]


def test_a_poll_in_vain_says_what_was_told_last() -> None:
    assert trained(seen(RUNNING, told={}, known=TRAINING)).message.startswith("attempt 1: step 20 of 50")
    other = TRAINING.model_copy(update={"attempt": 9})
    assert trained(seen(RUNNING, known=other)).message == "attempt 1 is loading the model and the data"


# ---- how it ends


def test_an_attempt_that_succeeded_leaves_its_artifact_and_its_last_figures() -> None:
    result = {**TOLD, "artifact": "/a" * 200, "digest": "d" * 200, "step": 49}
    found = trained(seen(Run(A1, "Succeeded", result=result), revision={"retry_at": STAMP}))
    assert found.revision == make_revision(attempts=1, artifact=("/a" * 200)[:253], artifact_digest="d" * 128)
    assert found.status.attempts == [attempt(outcome="Succeeded", finished=STAMP, step=49, resumed_from_step=5, began=None)]
    assert found.status.training == TRAINING.model_copy(update={"step": 49, "percent": 100, "eta_seconds": 0})
    assert (found.status.totals.succeeded, found.status.stages, found.blocked) == (1, ENDED, False)


EARLY: dict[str, tuple[dict[str, Any], int | None, bool | None]] = {
    "it stopped early": ({"bestStep": 20, "stoppedEarly": True}, 20, True),
    "all steps were made": ({"bestStep": 49, "stoppedEarly": False}, 49, None),
    "without validation rows": ({"bestStep": None, "stoppedEarly": False}, None, None),
    "nonsense": ({"bestStep": "x", "stoppedEarly": "yes"}, None, None),
}


@pytest.mark.parametrize(("told", "best", "early"), EARLY.values(), ids=EARLY)
def test_the_step_that_was_kept_is_told_and_whether_patience_ran_out(told: dict[str, Any], best: int | None, early: bool | None) -> None:
    found = trained(seen(Run(A1, "Succeeded", result={"artifact": "/a", "step": 49, **told}))).status.training
    assert found
    assert (found.best_step, found.stopped_early) == (best, early)


@pytest.mark.parametrize(("told", "total"), [({"step": 7, "totalSteps": 9}, 9), ({"step": 7}, 7), ({}, 0)])
def test_the_total_is_the_last_step_where_none_is_told(told: dict[str, int], total: int) -> None:
    found = trained(seen(Run(A1, "Succeeded", result={"artifact": "/a", **told}))).status.training
    assert found
    assert (found.total_steps, found.step) == (total, told.get("step", 0))


# the run → outcome, class, reason, words
ENDS: dict[str, tuple[Run, str, str, str, str]] = {
    "it ended well and said nothing": (
        Run(A1, "Succeeded"), "Failed", "infrastructure", "NoResult", "all ranks ended well but rank 0's result message is gone",
    ),
    "it ended well without an artifact": (
        Run(A1, "Succeeded", result={"step": 3}), "Failed", "infrastructure", "NoResult", "result message is gone",
    ),
    "its Job failed, for what nobody knows": (Run(A1, "Failed"), "Failed", "error", "Failed", "its Job failed"),
    "it was disrupted": (
        Run(A1, "Failed", failure=Failure("disruption", "Preempted", "gone")), "Disrupted", "disruption", c.TRAINING, "gone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_an_attempt_that_ended_is_told(case: str) -> None:
    run, outcome, kind, reason, words = ENDS[case]
    found = trained(seen(run))
    ended = found.status.attempts[0]
    assert (ended.outcome, ended.failure_class, ended.finished, found.reason) == (outcome, kind, STAMP, reason)
    assert words in (ended.message or "")
    assert found.notes == (
        Note("Normal" if outcome == "Disrupted" else "Warning", "AttemptEnded", f"attempt 1 ended ({kind}: {ended.message})"),
    )


def test_a_job_that_was_deleted_is_a_disruption() -> None:
    found = trained(seen(history=[attempt(folder=FOLDER)]))
    ended = found.status.attempts[0]
    assert (ended.outcome, ended.message) == ("Disrupted", "Job bot-r1-a1 was deleted")
    assert found.revision.charges.disruption == 1


def test_a_failure_that_no_retry_mends_ends_the_stage_and_its_words_are_cut() -> None:
    found = trained(seen(Run(A1, "Failed", failure=Failure("nonFinite", "Nan", "w" * 3000, "pod", "node", {"step": 7}, 1))))
    ended = found.status.attempts[0]
    assert (len(ended.message or ""), ended.step, ended.rank, ended.pod, ended.node) == (1024, 7, 1, "pod", "node")
    assert found.status.stages == ENDED
    assert trained(seen(Run(A1, "Failed"))).status.stages == BEGUN


# ---- what is waited for

NEXT = {"retry_at": "2026-01-01T12:00:09Z"}
WAITS: dict[str, tuple[dict[str, Any], tuple[str, str, float | None]]] = {
    "its pods start": ({"run": Run(A1, "Waiting")}, ("the pods of attempt 1 are starting", c.TRAINING, None)),
    "its pods start, and a watch is behind": (
        {"run": Run(A1, "Waiting", unheard=True)}, ("the pods of attempt 1 are starting", c.TRAINING, 3.0),
    ),
    "some of its pods hold machines": (
        {"run": Run(A1, "Waiting", held=5.0, waiting=Waiting("X", "no room"))}, ("no room", "X", 3.0),
    ),
    "a queue of the user's": (
        {"run": Run(A1, "Waiting", suspended=True), "changes": {"compute": {"queueName": "team"}}},
        ("attempt 1 waits for admission to queue team", c.QUEUED, None),
    ),
    "its pods end": ({"run": Run(A1, "Ending")}, ("the pods of attempt 1 are ending", c.TRAINING, 3.0)),
    "the next try, after a failure with words": (
        {"history": [attempt(outcome="Failed", failure_class="error", message="words")], "revision": NEXT},
        ("attempt 1 ended (error: words); the next starts at 2026-01-01T12:00:09Z", c.TRAINING, 9.0),
    ),
    "the next try, after a failure without": (
        {"history": [attempt(outcome="Failed")], "revision": NEXT}, ("the next starts at 2026-01-01T12:00:09Z", c.TRAINING, 9.0),
    ),
    "the next try of a stage, before any attempt": (
        {"history": [], "revision": NEXT}, ("the next starts at 2026-01-01T12:00:09Z", c.TRAINING, 9.0),
    ),
    "an earlier gang waits": (
        {"history": [attempt(outcome="Suspended")], "run": Run(A1, "Waiting")},
        ("the next attempt starts once the pods of bot-r1-a1 have ended: they save a checkpoint", c.TRAINING, 3.0),
    ),
    "an earlier gang runs": (
        {"history": [attempt(outcome="Suspended")], "run": Run(A1, "Running")},
        ("the next attempt starts once the pods of bot-r1-a1 have ended: they save a checkpoint", c.TRAINING, 3.0),
    ),
}  # fmt: skip


def test_a_gang_of_another_revision_is_waited_for_too() -> None:
    """An edit is taken back in mid-run: what the spec asks for is prepared already, and the other gang still saves its checkpoint."""
    run = Run("bot-r0-a3", "Ending")
    found = trained(seen(run, history=[attempt(3, revision="r0", outcome="Superseded")]))
    assert (found.jobs, found.requeue) == ((), 3.0)
    assert "once the pods of bot-r0-a3 have ended" in found.message


@pytest.mark.parametrize("case", WAITS)
def test_what_is_waited_for(case: str) -> None:
    given, (message, reason, requeue) = WAITS[case]
    found = trained(seen(**given))
    assert (found.message, found.reason, found.requeue, found.jobs) == (message, reason, requeue, ())


def test_an_attempt_whose_folder_is_known_is_not_told_it_again() -> None:
    o = seen(Run(A1, "Waiting", leader_uid="0123abcd-ffff"), history=[attempt(folder=FOLDER, began=None)])
    assert trained(o).status == o.status


# ---- stages


def ends(stage: str, result: dict[str, Any], **known: Any) -> Draft:
    prepared = {"model_digest": "m", "data_digest": "d"}
    before = {"fetch": {}, "prepare": {"model_digest": "m"}, "baseline": prepared, "evaluate": prepared}[stage]
    name = f"bot-r1-{stage}"
    o = make_observed(make_revision(**{**before, **known}, tries={stage: 1}), runs={name: Run(name, "Succeeded", result=result)})
    rules = {"fetch": stages.fetch, "prepare": stages.prepare, "baseline": stages.baseline, "evaluate": stages.evaluate}
    return rules[stage](o, draft(o))


def test_what_fetch_and_prepare_found_out() -> None:
    assert ends("fetch", {"digest": "d" * 200}).revision.model_digest == "d" * 128
    rows = {"read": 9, "train": 7}
    told = {
        "digest": "d" * 200, "rows": rows, "warnings": ["few rows"], "invalid": [{"source": "x", "row": 3, "reason": "no answer"}],
        "estimate": {"accelerated": True, "memoryBytes": 5, "passTokens": 8, "longest": 4},
    }  # fmt: skip
    found = ends("prepare", told).revision
    assert (found.data_digest, found.rows, found.dropped) == ("d" * 128, Rows(read=9, train=7), "few rows; x row 3: no answer")
    assert found.estimate
    assert found.estimate.longest == 4
    plain = ends("prepare", {"digest": "d", "rows": rows, "estimate": {"accelerated": False}}).revision
    assert (plain.data_digest, plain.estimate, plain.dropped) == ("d", None, None)
    assert ends("prepare", {"digest": "d", "rows": rows}).revision.estimate is None
    assert len(ends("prepare", {**told, "warnings": ["w" * 2000]}).revision.dropped or "") == 900


SCORES = {"score": 0.5, "low": 0.25, "high": 1, "n": 40}
PAIRED = {"difference": 0.12345, "low": -0.1, "high": 0.0, "n": 39}


def test_what_an_evaluation_found_out() -> None:
    o = make_observed(make_revision(model_digest="m", data_digest="d"))
    key = stages.evaluation_key(o, draft(o))
    path = f"/work/evaluations/base-{key}"
    found = ends("baseline", {"metrics": {"ExactMatch": SCORES}, "paired": PAIRED, "path": path, "excluded": 2}).revision.baseline
    assert found
    assert found.to_dict() == {
        "key": key, "path": path, "metric": "ExactMatch", "score": {"score": "0.5", "low": "0.25", "high": "1", "n": 40},
        "difference": {"difference": "0.1235", "low": "-0.1", "high": "0", "n": 39}, "excluded": 2,
    }  # fmt: skip
    bare = ends("baseline", {"metrics": {"ExactMatch": SCORES}, "excluded": 0}).revision.baseline
    assert bare
    assert (bare.path, bare.difference, bare.excluded) == ("", None, None)
    tuned = ends("evaluate", {"metrics": {"ExactMatch": SCORES}}, baseline=bare).revision
    assert (tuned.evaluated, tuned.baseline) == (bare, bare)
    assert "it holds no metric" in ends("baseline", {"metrics": {}}).message


@pytest.mark.parametrize("score", [math.nan, math.inf, "many", None, 10**400])
def test_a_score_that_is_no_number_is_no_score(score: Any) -> None:
    """It once was one, and passed every gate: no comparison with it is true."""
    for result in ({"metrics": {"X": {**SCORES, "score": score}}}, {"metrics": {"X": SCORES}, "paired": {**PAIRED, "low": score}}):
        found = ends("baseline", result)
        assert (found.revision.baseline, found.reason) == (None, "BadResult")
        assert "no number" in found.message


def test_a_stage_that_says_too_much_of_why_is_cut() -> None:
    o = make_observed(make_revision(tries={"fetch": 1}), runs={FETCH: Run(FETCH, "Failed", failure=Failure("error", "X", "w" * 3000))})
    found = stages.fetch(o, draft(o))
    assert found.revision.trouble
    assert len(found.revision.trouble.message) == 1024
    bad = ends("prepare", {"digest": "d", "rows": {"read": "w" * 3000, "train": "x" * 3000, "test": "y" * 3000}})
    assert bad.revision.trouble
    assert len(bad.revision.trouble.message) == 400


def test_a_stage_that_failed_for_what_nobody_knows_is_an_error() -> None:
    o = make_observed(make_revision(tries={"fetch": 1}), runs={FETCH: Run(FETCH, "Failed")})
    found = stages.fetch(o, draft(o))
    assert (found.revision.charges.error, found.reason) == (1, "Failed")
    assert found.notes == (Note("Warning", "Failed", "fetching the base model, try 1: its Job failed"),)


# the run → message, reason, seconds until it is looked at again
UNDER_WAY: dict[str, tuple[Run, str, str, float | None]] = {
    "its pod starts": (Run(FETCH, "Waiting"), "fetching the base model", c.FETCHING, None),
    "its pod starts, and a watch is behind": (Run(FETCH, "Waiting", unheard=True), "fetching the base model", c.FETCHING, 5.0),
    "its pod waits": (Run(FETCH, "Waiting", waiting=Waiting("X", "no room")), "no room", "X", None),
    "its pod ends": (Run(FETCH, "Ending"), "fetching the base model: its pod is ending", c.FETCHING, 5.0),
    "its pod ends, and why": (
        Run(FETCH, "Ending", failure=Failure("error", "X", "why")), "fetching the base model: its pod is ending: why", c.FETCHING, 5.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDER_WAY)
def test_a_stage_under_way(case: str) -> None:
    run, message, reason, requeue = UNDER_WAY[case]
    o = make_observed(make_revision(tries={"fetch": 1}), runs={FETCH: run})
    found = stages.fetch(o, draft(o))
    assert (found.message, found.reason, found.requeue) == (message, reason, requeue)


# ---- evaluations that are asked again

KEY = stages.evaluation_key(make_observed(), draft(make_observed()))
SKIP = {"evaluation": {"metrics": [{"type": "ExactMatch"}], "skipTrainingIfBaselineAtLeast": "0.5"}}
DONE: dict[str, Any] = {"model_digest": "m", "data_digest": "d", "artifact": "/a", "tries": {"baseline": 1, "evaluate": 1}}


def test_an_evaluation_is_named_by_the_metrics_and_by_what_is_live() -> None:
    def key(live: str | None = None, **changes: Any) -> str:
        o = make_observed(status={"live_revision": live}, changes=changes)
        return stages.evaluation_key(o, draft(o))

    more = key(evaluation={"metrics": [{"type": "ExactMatch"}], "maxNewTokens": 7})
    assert len({KEY, key("r0"), more, key(evaluation=None)}) == 4
    assert key("base") == key(None) == key(None, training={"learningRate": "1e-3"}) == KEY
    assert KEY == "05e0d19d", "another name scores everything again that was ever scored"


def asked(rule: Any, runs: dict[str, Run] | None = None, status: dict[str, Any] | None = None, **known: Any) -> Draft:
    o = make_observed(make_revision(**{**DONE, **known}), runs=runs or {}, status=status or {})
    return rule(o, draft(o))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("rule", "stage", "field"), [(stages.baseline, "baseline", "baseline"), (stages.evaluate, "evaluate", "evaluated")]
)
def test_scores_of_another_question_are_asked_for_again(rule: Any, stage: str, field: str) -> None:
    old, fresh = make_scored("0.5", key="other"), make_scored("0.5", key=KEY)
    again = asked(rule, **{field: old}, gate="Failed")
    assert (again.jobs, getattr(again.revision, field), again.revision.gate) == ((JobWanted(stage, "r1", 2),), None, None)
    assert asked(rule, **{field: fresh}, gate="Failed") == Draft(status=asked(rule, **{field: fresh}, gate="Failed").status)
    assert asked(rule, **{field: old}, promoted=True).jobs == ()
    assert asked(rule, **{field: old}, tries={}).revision.tries == {stage: 1}
    unknown = {f"bot-r1-{stage}": Run(f"bot-r1-{stage}", "Succeeded", result={"metrics": {"X": SCORES}, "path": "/x-other"})}
    assert asked(rule, unknown, tries={}).jobs == (JobWanted(stage, "r1", 1),), "a Job that the status knows nothing of counts for nothing"
    missing = asked(rule, **{field: None}, tries={})
    assert missing.jobs == (JobWanted(stage, "r1", 1),)


def test_a_new_baseline_takes_the_tuned_score_with_it() -> None:
    again = asked(stages.baseline, baseline=make_scored("0.5", key="other"), evaluated=make_scored("0.6"))
    assert again.revision.evaluated is None


@pytest.mark.parametrize(("rule", "stage"), [(stages.baseline, "baseline"), (stages.evaluate, "evaluate")])
def test_an_answer_to_another_question_counts_for_nothing(rule: Any, stage: str) -> None:
    name = f"bot-r1-{stage}"

    def number(state: Any, path: str) -> int:
        result = {"metrics": {"ExactMatch": SCORES}, "path": path}
        return asked(rule, {name: Run(name, state, result=result)}).revision.tries[stage]

    other = {"baseline": {"evaluated": make_scored("0.5")}, "evaluate": {"baseline": make_scored("0.5")}}[stage]
    run = Run(name, "Succeeded", result={"metrics": {"ExactMatch": SCORES}, "path": "/x-other"})
    assert asked(rule, {name: run}, **other).revision.tries[stage] == 2, "whatever is known of the other score"
    assert [number("Succeeded", "/x-other"), number("Succeeded", f"/x-{KEY}"), number("Succeeded", ""), number("Running", "/x-other")] == [
        2,
        1,
        1,
        1,
    ]


def test_the_reference_is_not_scored_while_an_attempt_of_the_revision_trains() -> None:
    old = make_scored("0.5", key="other")
    assert asked(stages.baseline, baseline=old, status={"attempts": [attempt()]}).jobs == ()
    for other in (attempt(revision="r0"), attempt(outcome="Failed")):
        assert asked(stages.baseline, baseline=old, status={"attempts": [other]}).jobs != ()


# score of the reference, what else is known → is training not needed?
NEEDED: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    "the reference is as good as asked": ("0.5", {}, SKIP, True),
    "it is better": ("0.6", {}, SKIP, True),
    "it is worse": ("0.4999", {}, SKIP, False),
    "nothing is asked": ("0.9", {}, {}, False),
    "there is no evaluation": ("0.9", {}, {"evaluation": None}, False),
    "an attempt was made already": ("0.9", {"attempts": 1}, SKIP, False),
}


@pytest.mark.parametrize("case", NEEDED)
def test_training_is_not_needed(case: str) -> None:
    score, known, changes, spared = NEEDED[case]
    o = make_observed(make_revision(baseline=make_scored(score), **known), changes=changes)
    found = stages.not_needed(o, draft(o))
    assert (found.revision.gate, found.blocked) == (("NotNeeded", True) if spared else (None, False))
    if spared:
        assert (found.phase, found.reason) == (c.NOT_NEEDED, c.BASELINE_GOOD_ENOUGH)
        asked_for = "evaluation.skipTrainingIfBaselineAtLeast 0.5"
        assert found.message == f"the base model already scores {score} on 40 test rows, at least {asked_for}: training is not needed"


def test_what_was_not_needed_may_be_needed_after_an_edit() -> None:
    known = make_revision(baseline=make_scored("0.4"), gate="NotNeeded")
    o = make_observed(known, changes=SKIP)
    assert stages.not_needed(o, draft(o)).revision.gate is None
    o = make_observed(known.model_copy(update={"gate": "Passed"}), changes=SKIP)
    assert stages.not_needed(o, draft(o)).revision.gate == "Passed"
    o = make_observed(make_revision(gate="NotNeeded"), changes=SKIP)
    assert stages.not_needed(o, draft(o)) == draft(o), "nothing is scored yet"
    waits = draft(make_observed(make_revision(baseline=make_scored("0.9")), changes=SKIP)).block(c.FETCHING, "waits")
    assert stages.not_needed(o, waits) == waits


def test_a_live_revision_that_is_good_enough_is_named() -> None:
    o = make_observed(make_revision(baseline=make_scored("0.9")), changes=SKIP, status={"live_revision": "r0"})
    assert stages.not_needed(o, draft(o)).message.startswith("live revision r0 already scores 0.9")
    assert gate(o, draft(o)) == draft(o)
