"""Stages and attempts: what starts, what waits, what is tried again, and what is given up."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.status import Attempt, Charges, Fidelity, Stopped, Totals
from finetune_operator.build import arm
from finetune_operator.decide import decide
from finetune_operator.decide.attempts import bounded, folders, fruitless, next_divisor
from finetune_operator.decide.draft import Draft, JobWanted
from finetune_operator.decide.retry import FREE_DISRUPTIONS, backoff
from finetune_operator.decide.revision import current
from finetune_operator.decide.stages import evaluate, evaluation_key, fetch
from finetune_operator.decide.suspend import obsolete
from finetune_operator.decide.train import train
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Failure, Run, Waiting

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision, make_scored, tried

FETCH, A1 = "bot-r1-fetch", "bot-r1-a1"
DONE = Run(FETCH, "Succeeded", result={"digest": "abc"})
BROKEN = Failure("error", "Error", "exit code 1", "bot-r1-fetch-0", "node")


def ran(run: Run) -> dict[str, Run]:
    return {run.name: run}


def failed(kind: Any, reason: str = "Reason", message: str = "words") -> Run:
    return Run(FETCH, "Failed", failure=Failure(kind, reason, message, "pod", "node"))


WAITS = Waiting(c.UNSCHEDULABLE, "pod bot-r1-fetch-0 cannot be scheduled: 0/1 nodes: insufficient memory")
TRIED_ONCE = {"tries": {"fetch": 1}}
# What is known of the revision, what is seen → (phase, reason, Jobs wanted, words of the message).
STAGES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str, tuple[JobWanted, ...], str]]] = {
    "a new revision's first stage starts": ({}, {}, (c.FETCHING, c.FETCHING, (JobWanted("fetch", "r1", 1),), "fetching the base model")),
    "its Job was never made, for the operator was killed: it is made": (
        TRIED_ONCE,
        {},
        (c.FETCHING, c.FETCHING, (JobWanted("fetch", "r1", 1),), "fetching"),
    ),
    "what it needs is not there: it says so and waits": (
        {},
        {"missing": {"fetch": Waiting(c.SOURCE_MISSING, "ConfigMap rows does not exist")}},
        (c.PENDING, c.SOURCE_MISSING, (), "ConfigMap rows does not exist"),
    ),
    "its pod cannot be scheduled: the scheduler's words": (
        TRIED_ONCE,
        {"runs": ran(Run(FETCH, "Waiting", waiting=WAITS))},
        (c.FETCHING, c.UNSCHEDULABLE, (), "insufficient memory"),
    ),
    "a queue holds its Job: it says so": (
        TRIED_ONCE,
        {"runs": ran(Run(FETCH, "Waiting", suspended=True))},
        (c.QUEUED, c.QUEUED, (), "its Job waits for admission to its queue"),
    ),
    "it runs and tells how far it is": (
        TRIED_ONCE,
        {"runs": ran(Run(FETCH, "Running")), "progress": {FETCH: {"percent": 37}}},
        (c.FETCHING, c.FETCHING, (), "(30 %)"),
    ),
    "it tells nonsense: no matter": (
        TRIED_ONCE,
        {"runs": ran(Run(FETCH, "Running")), "progress": {FETCH: {"percent": "many"}}},
        (c.FETCHING, c.FETCHING, (), "fetching"),
    ),
    "somebody deleted its Job and the pod still ends: it waits for that": (
        TRIED_ONCE,
        {"runs": ran(Run(FETCH, "Ending"))},
        (c.FETCHING, c.FETCHING, (), "its pod is ending"),
    ),
    "it failed: tried again later, with the cause": (
        TRIED_ONCE,
        {"runs": ran(failed("error", "Broken", "the disk says no"))},
        (c.FETCHING, "Broken", (), "the disk says no; tried again at"),
    ),
    "it was disrupted: tried again, and nothing is wrong": (
        TRIED_ONCE,
        {"runs": ran(failed("disruption"))},
        (c.FETCHING, c.FETCHING, (), "tried again at"),
    ),
    "it failed for what no retry mends: given up, and no later stage begins": (
        TRIED_ONCE,
        {"runs": ran(failed("user", "ModelUnknown", "no such model"))},
        (c.FAILED, "ModelUnknown", (), "no such model"),
    ),
    "it failed more often than its budget allows: given up": (
        {**TRIED_ONCE, "charges": {"error": 2}},
        {"runs": ran(failed("error"))},
        (c.FAILED, c.RETRIES_EXHAUSTED, (), "retries.error allows 2"),
    ),
    "its message is not as agreed: a failure like any other": (
        TRIED_ONCE,
        {"runs": ran(Run(FETCH, "Succeeded", result={"hello": 1}))},
        (c.FETCHING, "BadResult", (), "not as agreed"),
    ),
    "it ended well and its pod is gone: done again": (
        TRIED_ONCE,
        {"runs": ran(Run(FETCH, "Succeeded"))},
        (c.FETCHING, "NoResult", (), "tried again at"),
    ),
    "it waits for its next try, and goes on saying why": (
        {"tries": {"fetch": 2}, "retry_at": "2026-01-01T12:00:09Z", "trouble": {"reason": "DownloadFailed", "message": "no route."}},
        {},
        (c.FETCHING, "DownloadFailed", (), "no route; tried again at 2026-01-01T12:00:09Z"),
    ),
    "it waits for its next try": (
        {"tries": {"fetch": 2}, "retry_at": "2026-01-01T12:00:09Z"},
        {},
        (c.FETCHING, c.FETCHING, (), "tried again at 2026-01-01T12:00:09Z"),
    ),
    "the time of its next try has come": (
        {"tries": {"fetch": 2}, "retry_at": STAMP},
        {},
        (c.FETCHING, c.FETCHING, (JobWanted("fetch", "r1", 2),), "fetching"),
    ),
    "it ended well: the next stage starts in the same cycle": (
        TRIED_ONCE,
        {"runs": ran(DONE)},
        (c.PREPARING, c.PREPARING, (JobWanted("prepare", "r1", 1),), "preparing"),
    ),
}


@pytest.mark.parametrize("case", STAGES)
def test_stage(case: str) -> None:
    known, seen, (phase, reason, wanted, words) = STAGES[case]
    decided = decide(make_observed(make_revision(**known), **seen))
    assert (decided.phase, decided.reason, decided.jobs) == (phase, reason, wanted)
    assert words in decided.message


def test_a_failed_stage_gets_another_number_and_is_charged() -> None:
    o = make_observed(make_revision(tries={"fetch": 1}), runs=ran(failed("infrastructure")))
    revision = fetch(o, draft(o)).revision
    assert (revision.tries, revision.charges) == ({"fetch": 2}, Charges(infrastructure=1))


PROBE = Failure("outOfMemory", "OOMKilled", "it used more memory than its limit", "bot-r1-evaluate-0", container="probe")


@pytest.mark.parametrize(
    ("kind", "reason"), [("outOfMemory", "OOMKilled"), ("error", "Error"), ("infrastructure", "Killed"), ("stalled", "X"), ("user", "Y")]
)
def test_a_probe_that_fails_is_left_out_uncharged_and_stays_so(kind: Any, reason: str) -> None:
    failure = replace(PROBE, failure_class=kind, reason=reason)
    known = {**READY, "artifact": "/a", "tries": {"evaluate": 1}}
    o = make_observed(make_revision(**known), runs=ran(Run("bot-r1-evaluate", "Failed", failure=failure)))
    found = evaluate(o, draft(o)).revision
    assert (found.charges, found.tries, found.stopped) == (Charges(), {"evaluate": 2}, None)
    assert (found.unprobed, found.retry_at) == ("the probe failed: it used more memory than its limit", "2026-01-01T12:00:01Z")
    evicted = Failure("disruption", "EvictionByEvictionAPI", "evicted", container="trainer")
    o = make_observed(found.model_copy(update={"retry_at": None}), runs=ran(Run("bot-r1-evaluate-2", "Failed", failure=evicted)))
    assert evaluate(o, draft(o)).revision.unprobed == found.unprobed


def test_of_a_probe_that_says_much_the_beginning_is_remembered() -> None:
    failed_so = Run("bot-r1-evaluate", "Failed", failure=replace(PROBE, message="w" * 1000))
    o = make_observed(make_revision(**{**READY, "artifact": "/a", "tries": {"evaluate": 1}}), runs=ran(failed_so))
    assert evaluate(o, draft(o)).revision.unprobed == f"the probe failed: {'w' * 382}", "400 characters: a status has little room"


@pytest.mark.parametrize("failure", [replace(PROBE, container="server"), replace(PROBE, failure_class="disruption")])
def test_what_is_not_the_probes_own_failure_leaves_it_in(failure: Failure) -> None:
    known = {**READY, "artifact": "/a", "tries": {"evaluate": 1}}
    o = make_observed(make_revision(**known), runs=ran(Run("bot-r1-evaluate", "Failed", failure=failure)))
    found = evaluate(o, draft(o)).revision
    assert found.unprobed is None
    assert found.charges != Charges()


def test_the_next_try_comes_later_each_time_and_the_same_after_a_restart() -> None:
    delays = [backoff("uid/r1/fetch", n) for n in range(1, 12)]
    assert delays == [backoff("uid/r1/fetch", n) for n in range(1, 12)]
    assert 4 <= delays[0] <= 6
    assert all(a < b for a, b in pairwise(delays[:6]))
    assert 240 <= delays[-1] <= 360


STOPPED = Stopped(reason="X", message="given up", time=STAMP, tried=tried("t1"))


def test_a_given_up_revision_stays_so_until_spec_or_annotation_changes() -> None:
    spent = make_revision(stopped=STOPPED, charges=Charges(error=3), tries={"fetch": 4})
    same, changed = decide(make_observed(spent)), decide(make_observed(spent, retry="t2"))
    assert (same.phase, same.jobs, same.message) == (c.FAILED, (), "given up")
    assert (changed.phase, changed.jobs) == (c.FETCHING, (JobWanted("fetch", "r1", 4),)), "a number that was never used"
    assert changed.revision.charges == Charges()


def test_a_revision_whose_fields_are_kept_is_found_again_under_its_name() -> None:
    o = make_observed(make_revision("other"), make_revision("r1"))
    o = Observed(**{**vars(o), "revisions": {"r1": {"fields": o.retrain}, "other": {"fields": {"model": {}}}}})
    assert current(o, draft(o)).revision.name == "r1"


def test_another_revision_supersedes_what_trains_and_keeps_its_folder() -> None:
    training = Attempt(revision="old", number=3, started=STAMP, folder="/work/revisions/old/a3-x")
    o = make_observed(make_revision("old"), status={"attempts": [training]})
    o = Observed(**{**vars(o), "revisions": {}, "runs": {"bot-old-a3": Run("bot-old-a3", "Running")}})
    decided = decide(o)
    assert decided.status.attempts == [training.model_copy(update={"outcome": "Superseded", "finished": STAMP})]
    assert decided.obsolete == ("bot-old-a3",)
    again = decide(Observed(**{**vars(o), "status": decided.status}))
    assert again.obsolete == ("bot-old-a3",), "the operator was killed before it deleted the Job"


def test_of_eleven_revisions_the_oldest_idle_one_without_an_artifact_goes() -> None:
    stored = [make_revision(f"r{n}", artifact="/a" if n != 4 else None) for n in range(1, 11)]
    o = make_observed(*stored, status={"live_revision": "r1"})
    kept = Draft(status=o.status).with_revision(make_revision("r11")).status.revisions
    assert [r.name for r in kept] == ["r1", "r2", "r3", "r5", "r6", "r7", "r8", "r9", "r10", "r11"]


# ---- training

READY = {"model_digest": "m", "data_digest": "d", "gate": None, "tries": {"fetch": 1, "prepare": 1, "baseline": 1}}


def trains(*, run: Run | None = None, attempt: dict[str, Any] | None = None, revision: dict[str, Any] | None = None, **seen: Any) -> Draft:
    """`train` alone, over attempt 1 of r1."""
    attempts = [Attempt.model_validate({"revision": "r1", "number": 1, "started": STAMP, **attempt})] if attempt is not None else []
    known = make_revision(**{**READY, "attempts": len(attempts), **(revision or {})})
    o = make_observed(known, status={"attempts": attempts, **seen.pop("status", {})}, runs=ran(run) if run else {}, **seen)
    return train(o, draft(o))


FOLDER = "/work/revisions/r1/a1-0123abcd"
LEADER = {"leader_uid": "0123abcd-ffff"}
OOM = Failure("outOfMemory", "OOMKilled", "more memory than its limit", "bot-r1-a1-1", "node-7", {"step": 12}, 1)
TRAINS: dict[str, tuple[dict[str, Any], str, str, str]] = {  # → phase, reason, words
    "the first attempt starts": ({}, c.TRAINING, c.TRAINING, "attempt 1 is starting"),
    "its Job was never made: it is made": ({"attempt": {}}, c.TRAINING, c.TRAINING, "attempt 1 is starting"),
    "its Job waits in a queue": (
        {"attempt": {}, "run": Run(A1, "Waiting", suspended=True)},
        c.QUEUED,
        c.QUEUED,
        "attempt 1 waits for admission to its queue",
    ),
    "its queue took its machines back": (
        {"attempt": {"folder": FOLDER}, "run": Run(A1, "Waiting", suspended=True)},
        c.QUEUED,
        c.QUEUED,
        "which stopped it: it goes on from its last checkpoint",
    ),
    "ranks stopped, and no queue is behind it": (
        {"attempt": {}, "run": Run(A1, "Ending", failure=Failure("disruption", "Interrupted", "stopped by SIGTERM"), stopped=True)},
        c.TRAINING,
        c.TRAINING,
        "attempt 1 ended (disruption: stopped by SIGTERM); the next starts at",
    ),
    "its pods cannot be scheduled": (
        {"attempt": {}, "run": Run(A1, "Waiting", waiting=WAITS)},
        c.TRAINING,
        c.UNSCHEDULABLE,
        "insufficient",
    ),
    "it loads": ({"attempt": {}, "run": Run(A1, "Running")}, c.TRAINING, c.TRAINING, "loading the model"),
    "it trains: step, loss, time left, checkpoint": (
        {
            "attempt": {},
            "run": Run(A1, "Running"),
            "progress": {
                A1: {"step": 20, "totalSteps": 50, "loss": 0.98765, "etaSeconds": 90.4, "checkpoint": {"step": 10, "time": STAMP}}
            },
        },
        c.TRAINING,
        c.TRAINING,
        f"attempt 1: step 20 of 50, loss 0.9877, about 90 s left; checkpoint at step 10, {STAMP}",
    ),
    "one rank failed and the others still end": (
        {"attempt": {}, "run": Run(A1, "Ending", failure=OOM)},
        c.TRAINING,
        c.TRAINING,
        "are ending: pod bot-r1-a1-1 (rank 1) on node node-7: more memory than its limit",
    ),
    "it ran out of memory: charged, and tried again": (
        {"attempt": {}, "run": Run(A1, "Failed", failure=OOM)},
        c.TRAINING,
        "OOMKilled",
        "attempt 1 ended (outOfMemory: pod bot-r1-a1-1 (rank 1) on node node-7: more memory",
    ),
    "out of memory more often than allowed": (
        {"attempt": {}, "revision": {"charges": {"outOfMemory": 2}}, "run": Run(A1, "Failed", failure=OOM)},
        c.FAILED,
        c.RETRIES_EXHAUSTED,
        "pod bot-r1-a1-1 (rank 1) on node node-7: more memory",
    ),
    "non-finite numbers stop the revision": (
        {"attempt": {}, "run": Run(A1, "Failed", failure=Failure("nonFinite", "NonFiniteLoss", "loss is nan at step 3"))},
        c.FAILED,
        "NonFiniteLoss",
        "loss is nan at step 3",
    ),
    "its Job was deleted: another one, at once": (
        {"attempt": {"folder": FOLDER}},
        c.TRAINING,
        c.TRAINING,
        "Job bot-r1-a1 was deleted",
    ),
    "an earlier gang has not ended: the next one waits": (
        {"attempt": {"outcome": "Suspended"}, "run": Run(A1, "Ending")},
        c.TRAINING,
        c.TRAINING,
        "once the pods of bot-r1-a1 have ended",
    ),
}


@pytest.mark.parametrize("case", TRAINS)
def test_training(case: str) -> None:
    given, phase, reason, words = TRAINS[case]
    decided = trains(**given)
    assert (decided.phase, decided.reason) == (phase, reason)
    assert words in decided.message


def test_an_attempt_that_ended_says_who_where_and_why() -> None:
    attempt = trains(attempt={"folder": FOLDER}, run=Run(A1, "Failed", failure=OOM)).status.attempts[0]
    assert attempt == Attempt(
        revision="r1", number=1, started=STAMP, finished=STAMP, outcome="Failed", failure_class="outOfMemory",
        message="more memory than its limit", pod="bot-r1-a1-1", rank=1, node="node-7", step=12, folder=FOLDER,
    )  # fmt: skip


MOVES: dict[str, tuple[dict[str, Any], bool]] = {  # what a poll says → is the attempt ended?
    "a step was finished a moment ago": ({"quietSeconds": 2.0}, False),
    "no step for a quarter of an hour": ({"quietSeconds": 901.0, "secondsPerStep": 3}, True),
    "steps take minutes": ({"quietSeconds": 901.0, "secondsPerStep": 60}, False),
    "not even twenty such steps": ({"quietSeconds": 1201.0, "secondsPerStep": 60}, True),
    "it scores the validation rows": ({"state": "validating", "quietSeconds": 7000.0}, False),
    "it has scored them for hours": ({"state": "validating", "quietSeconds": 7201.0}, True),
    "it has loaded for hours": ({"state": "loading", "totalSteps": None, "quietSeconds": 7201.0}, True),
    "it tells nonsense": ({"quietSeconds": "long"}, False),
}


@pytest.mark.parametrize("case", MOVES)
def test_an_attempt_that_makes_no_progress_is_ended(case: str) -> None:
    told, ends = MOVES[case]
    progress = {A1: {"state": "training", "step": 12, "totalSteps": 50, **told}}
    o = make_observed(
        make_revision(**READY, attempts=1), status={"attempts": [Attempt(revision="r1", number=1, started=STAMP)]},
        runs=ran(Run(A1, "Running")), progress=progress,
    )  # fmt: skip
    decided = obsolete(o, train(o, draft(o)))
    attempt = decided.status.attempts[0]
    assert (attempt.outcome, decided.obsolete) == (("Failed", (A1,)) if ends else ("Running", ()))
    if ends:
        assert (attempt.failure_class, decided.revision.charges.error, decided.reason) == ("stalled", 1, "Stalled")
        assert "no progress since 2026-01-01T" in decided.message


def test_each_time_memory_runs_out_the_next_attempt_has_half_the_micro_batch() -> None:
    def after(kind: str | None, before: int | None) -> int | None:
        return next_divisor(Attempt(revision="r1", number=1, started=STAMP, failure_class=kind, micro_batch_divisor=before))

    assert [after("outOfMemory", n) for n in (None, 2, 64)] == [2, 4, 64]
    assert (after("infrastructure", 4), after(None, None), next_divisor(None)) == (4, None, None)
    out = trains(attempt={"folder": FOLDER}, run=Run(A1, "Failed", failure=OOM))
    assert out.message.endswith("with half the micro-batch")
    o = make_observed(out.revision, status={"attempts": out.status.attempts}, now=NOW + timedelta(minutes=1))
    again = train(o, draft(o))
    assert [a.micro_batch_divisor for a in again.status.attempts] == [None, 2]
    assert "attempt 2 is starting with a micro-batch 2 times smaller" in again.message


def disrupted(*saved: tuple[int | None, int | None]) -> list[Attempt]:
    """Attempts of r1 that were disrupted: from which step each went on, and the step of its newest checkpoint."""
    ended = {"revision": "r1", "started": STAMP, "outcome": "Disrupted"}
    return [
        Attempt.model_validate({**ended, "number": number, "resumedFromStep": resumed, "checkpoint": checkpoint})
        for number, (resumed, checkpoint) in enumerate(saved, 1)
    ]


@pytest.mark.parametrize(
    ("saved", "vain"),
    [
        ([], 0),
        ([(None, None)], 1),
        ([(None, None)] * 7, 7),
        ([(None, 10)], 0),
        ([(None, 1)], 0),
        ([(None, 10), (10, None), (10, 10)], 2),
        ([(None, 10), (10, None), (10, 20)], 0),
        ([(None, 10), (15, None)], 0),  # the one before had saved as it was stopped, unseen
        ([(None, 10), (None, None)], 1),
    ],
)
def test_an_attempt_that_saved_something_new_was_not_in_vain(saved: list[tuple[int | None, int | None]], vain: int) -> None:
    assert fruitless(disrupted(*saved), "r1") == vain
    assert fruitless(disrupted(*saved), "r2") == 0


def test_disruptions_are_never_charged_but_those_in_vain_wait_longer_each_time() -> None:
    def after(*saved: tuple[int | None, int | None]) -> Draft:
        before, number = disrupted(*saved), len(saved) + 1
        now = Attempt.model_validate({"revision": "r1", "number": number, "started": STAMP})
        gone = Run(f"bot-r1-a{number}", "Failed", failure=Failure("disruption", "Preempted", "the node went"))
        known = make_revision(**{**READY, "attempts": number, "charges": {"disruption": number - 1}})
        o = make_observed(known, status={"attempts": [*before, now]}, runs=ran(gone))
        return train(o, draft(o))

    at_once = "2026-01-01T12:00:01Z"
    assert after().revision.retry_at == at_once
    assert after(*[(None, None)] * (FREE_DISRUPTIONS - 1)).revision.retry_at == at_once
    assert after(*[(None, None)] * FREE_DISRUPTIONS).revision.retry_at != at_once
    many = after(*[(None, None)] * 18)
    assert many.revision.stopped is None
    assert many.revision.charges.disruption == 19
    assert (many.requeue or 0) > 200
    assert after(*[(10 * n, 10 * n + 10) for n in range(18)]).revision.retry_at == at_once, "it gets on, however often it is disrupted"


def test_an_artifact_ends_training() -> None:
    result = {"artifact": f"{FOLDER}/artifact", "digest": "abc", "step": 50, "totalSteps": 50, "loss": 0.4}
    decided = trains(attempt={}, run=Run(A1, "Succeeded", result=result, leader_uid="0123abcd-f"))
    assert (decided.revision.artifact, decided.revision.artifact_digest) == (f"{FOLDER}/artifact", "abc")
    assert decided.status.training is not None
    assert (decided.status.training.percent, decided.status.attempts[0].outcome) == (100, "Succeeded")


def test_the_folder_is_that_of_the_rank_0_that_is_there_now() -> None:
    first = trains(attempt={}, run=Run(A1, "Running", **LEADER)).status.attempts[0]
    other = trains(attempt={"folder": FOLDER}, run=Run(A1, "Running", leader_uid="99999999-f")).status.attempts[0]
    assert (first.folder, other.folder) == (FOLDER, "/work/revisions/r1/a1-99999999")


def test_an_attempt_resumes_from_the_folders_of_its_own_revision_newest_first() -> None:
    made = [Attempt(revision=r, number=n, started=STAMP, folder=f"/{r}/{n}") for r, n in (("r1", 1), ("r0", 2), ("r1", 2), ("r1", 3))]
    made.append(Attempt(revision="r1", number=4, started=STAMP))
    assert folders(made, "r1", 4) == ["/r1/3", "/r1/2", "/r1/1"]
    assert folders(made, "r1", 5)[0] == "/work/revisions/r1/a4", "its rank 0 was never seen"


def test_of_too_many_attempts_those_without_a_checkpoint_are_forgotten_first() -> None:
    made = [Attempt(revision="r1", number=n, started=STAMP, checkpoint=40 if n in (1, 2) else None) for n in range(1, 24)]
    assert [a.number for a in bounded(made)] == [1, 2, *range(6, 24)]
    saved = [a.model_copy(update={"checkpoint": a.number}) for a in made]
    assert [a.number for a in bounded(saved)] == list(range(4, 24))


def test_totals_outlive_the_history_and_a_fresh_budget() -> None:
    before = trains(attempt={}, run=Run(A1, "Failed", failure=OOM), status={"totals": Totals(error=4, succeeded=1)})
    assert before.status.totals == Totals(error=4, succeeded=1, out_of_memory=1)
    spent = make_revision(stopped=STOPPED, charges=Charges(error=3))
    assert decide(make_observed(spent, retry="t2", status={"totals": Totals(error=3)})).status.totals == Totals(error=3)


def test_a_revision_that_was_forgotten_goes_on_counting_its_attempts() -> None:
    made = [Attempt(revision="r1", number=n, started=STAMP, outcome="Superseded") for n in (1, 2)]
    o = make_observed(make_revision("r0"), status={"attempts": made})
    o = Observed(**{**vars(o), "revisions": {"r1": {"fields": o.retrain}}})
    assert current(o, draft(o)).revision.attempts == 2


def test_status_is_written_at_marks_and_checkpoints_and_a_lost_poll_changes_nothing() -> None:
    def at(step: int, saved: int, last: Draft) -> Draft:
        progress = {A1: {"step": step, "totalSteps": 100, "checkpoint": {"step": saved, "time": STAMP}}}
        o = make_observed(
            make_revision(**READY, attempts=1), runs=ran(Run(A1, "Running")), progress=progress, now=NOW + timedelta(seconds=step)
        )
        o = Observed(**{**vars(o), "status": last.status})
        return train(o, draft(o))

    one = at(10, 0, trains(attempt={}, run=Run(A1, "Running")))
    assert at(14, 0, one).status == one.status, "no mark, no checkpoint: nothing is written"
    assert at(15, 0, one).status != one.status
    assert at(11, 11, one).status != one.status
    silent = make_observed(make_revision(**READY, attempts=1), runs=ran(Run(A1, "Running")))
    silent = Observed(**{**vars(silent), "status": one.status})
    assert train(silent, draft(silent)).message == one.message


# ---- evaluation


def with_key(o: Observed) -> str:
    return evaluation_key(o, draft(o))


def test_an_evaluation_that_was_asked_otherwise_counts_for_nothing() -> None:
    known = make_revision(model_digest="m", data_digest="d", tries={"baseline": 1})
    old = Run(
        "bot-r1-baseline", "Succeeded", result={"path": "/work/x/baseline-0ld", "metrics": {"M": {"score": 1, "low": 1, "high": 1, "n": 9}}}
    )
    decided = decide(make_observed(known, runs=ran(old)))
    assert (decided.revision.baseline, decided.jobs) == (None, (JobWanted("baseline", "r1", 2),))


def test_edited_metrics_score_both_again_and_train_nothing() -> None:
    o = make_observed(make_revision())
    scored = make_scored("0.1", key="other")
    known = make_revision(**{**READY, "artifact": "/a", "attempts": 1, "baseline": scored, "evaluated": scored, "gate": "Passed"})
    decided = decide(Observed(**{**vars(o), "status": o.status.model_copy(update={"revisions": [known]})}))
    assert decided.jobs == (JobWanted("baseline", "r1", 2),)
    assert (decided.revision.evaluated, decided.revision.gate, decided.revision.artifact) == (None, None, "/a")


@pytest.mark.parametrize(
    ("runtime", "found", "anew"),
    [
        ("Transformers", Fidelity(kl="0.02", merged=False), True),
        ("vLLM", Fidelity(kl="0", merged=True), True),
        ("vLLM", Fidelity(kl="0", merged=False), False),
        ("Transformers", Fidelity(kl="0", merged=True), False),
        ("vLLM", Fidelity(kl="0"), False),
        ("vLLM", Fidelity(unmeasured="no room"), False),
        ("vLLM", None, False),
    ],
)
@pytest.mark.parametrize("promoted", [False, True])
def test_how_far_it_is_as_served_is_measured_anew_for_another_server_and_what_was_scored_is_not(
    runtime: str, found: Fidelity | None, anew: bool, promoted: bool
) -> None:
    o = make_observed(make_revision(), changes={"serving": {"runtime": runtime}})
    scored = make_scored("0.5", "0.1", "0.2", key=with_key(o)).model_copy(update={"fidelity": found})
    base, wanted = make_scored("0.1", key=with_key(o)), {**READY, "artifact": "/a", "attempts": 1, "gate": "Passed"}
    known = make_revision(**{**wanted, "evaluated": scored, "baseline": base, "promoted": promoted})
    again = make_observed(known, changes={"serving": {"runtime": runtime}})
    then = evaluate(again, draft(again)).revision
    if not anew or promoted:
        assert then == known
    else:
        assert (then.evaluated, then.gate, then.tries, then.baseline) == (None, None, {**READY["tries"], "evaluate": 1}, base)


def test_while_nothing_serves_the_figure_stays_that_of_the_server_that_answered() -> None:
    nothing, later = {"serving": None}, {"serving": {"runtime": "vLLM"}}
    for changes, anew in ((nothing, False), (later, True)):
        o = make_observed(make_revision(), changes=changes)
        scored = make_scored("0.5", "0.1", "0.2", key=with_key(o)).model_copy(update={"fidelity": Fidelity(kl="0", merged=True)})
        other = replace(o, spec=o.spec.model_copy(update={"compute": o.spec.compute.model_copy(update={"accelerator": "nvidia-l4"})}))
        known = other.status.model_copy(update={"revisions": [make_revision(**{**READY, "artifact": "/a", "evaluated": scored})]})
        again = replace(other, status=known)
        assert arm.uses_vllm(again.spec)
        assert (evaluate(again, draft(again)).revision.evaluated is None) is anew


def test_a_revision_that_one_server_had_rejected_is_measured_with_the_one_that_is_asked_for_then() -> None:
    changes = {"serving": {"runtime": "Transformers"}, "evaluation": {"gate": {"maxServingDivergence": "0.005"}}}
    o = make_observed(make_revision(), changes=changes)
    base, scored = make_scored("0.1", key=with_key(o)), make_scored("0.5", "0.1", "0.2", key=with_key(o))
    far = scored.model_copy(update={"fidelity": Fidelity(kl="0.02", merged=False)})
    stopped = Stopped(reason=c.GATE_FAILED, message="it is too far", time=STAMP, tried=tried("t0"))
    judged = {"baseline": base, "evaluated": far, "gate": "Failed", "stopped": stopped}
    known = make_revision(**{**READY, "tries": {"evaluate": 1}, "artifact": "/a", "attempts": 1, **judged})
    decided = decide(make_observed(known, changes=changes))
    assert (decided.phase, decided.jobs) == (c.EVALUATING, (JobWanted("evaluate", "r1", 2),))
    assert decided.revision.stopped is None


def test_what_is_live_may_change_while_another_revision_trains_and_the_gang_goes_on() -> None:
    running = Attempt(revision="r1", number=1, started=STAMP)
    known = make_revision(**READY, attempts=1, baseline=make_scored("0.1", key="against the base"))
    o = make_observed(known, status={"attempts": [running], "live_revision": "r0", "live_arm": "arm"}, runs=ran(Run(A1, "Running")))
    assert decide(o).phase == c.TRAINING


def test_a_limit_that_is_taken_away_lets_the_training_begin() -> None:
    o = make_observed(make_revision())
    known = make_revision(**{**READY, "gate": "NotNeeded", "baseline": make_scored("0.9", key=with_key(o))})
    decided = decide(make_observed(known))
    assert (decided.phase, decided.revision.gate) == (c.TRAINING, None)


def test_suspension_ends_the_attempt_uncharged_and_starts_nothing() -> None:
    running = Attempt(revision="r1", number=1, started=STAMP, folder=FOLDER)
    o = make_observed(
        make_revision(**READY, attempts=1),
        changes={"suspend": True},
        status={"attempts": [running]},
        runs=ran(Run(A1, "Running", **LEADER)),
    )
    decided = decide(o)
    assert (decided.phase, decided.jobs, decided.obsolete) == (c.SUSPENDED, (), (A1,))
    assert decided.status.attempts == [running.model_copy(update={"outcome": "Suspended", "finished": STAMP})]
    assert decided.revision.charges == Charges()


def test_an_attempt_that_has_just_ended_well_is_not_taken_for_suspended() -> None:
    running = Attempt(revision="r1", number=1, started=STAMP, folder=FOLDER)
    ended = Run(A1, "Succeeded", result={"artifact": "/a"}, **LEADER)
    o = make_observed(make_revision(**READY, attempts=1), changes={"suspend": True}, status={"attempts": [running]}, runs=ran(ended))
    decided = decide(o)
    assert (decided.phase, decided.status.attempts[0].outcome, decided.revision.artifact) == (c.SUSPENDED, "Succeeded", "/a")


def test_what_is_not_there_before_a_pod_is_made_is_waited_for_for_ever_and_looked_for_less_often() -> None:
    lacks = Waiting(c.SOURCE_MISSING, "ConfigMap rows does not exist")

    def after(**lasted: float) -> Draft:
        known = {"reason": c.SOURCE_MISSING, "phase_since": STAMP}
        o = make_observed(make_revision(), status=known, missing={"fetch": lacks}, now=NOW + timedelta(**lasted))
        return fetch(o, draft(o))

    assert [after(seconds=s).requeue for s in (0, 600, 601)] == [5.0, 5.0, 60.0]
    late = after(days=400)
    assert (late.reason, late.message, late.jobs, late.revision.charges) == (lacks.reason, lacks.message, (), Charges())
    o = make_observed(
        make_revision(), status={"reason": "Other", "phase_since": STAMP}, missing={"fetch": lacks}, now=NOW + timedelta(days=1)
    )
    assert fetch(o, draft(o)).requeue == 5.0, "it only begins to lack"
