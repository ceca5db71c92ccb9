"""How long a Job's pods are waited for, and how long a stage may take: what is told when that is over, and who pays."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.status import Attempt, Charges
from finetune_operator.build.jobs import Stage, asked, stage_job
from finetune_operator.build.pods import ANY_GPU, Accelerator, Images, Owner
from finetune_operator.decide import decide
from finetune_operator.decide.draft import Draft, JobWanted
from finetune_operator.decide.patience import until_heard
from finetune_operator.decide.stages import baseline, evaluate, fetch
from finetune_operator.decide.suspend import obsolete
from finetune_operator.decide.train import train
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Failure, Run, Waited, Waiting

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision

FETCH, A1 = "bot-r1-fetch", "bot-r1-a1"
HOUR = 3600.0
NO_ROOM = Waiting(c.UNSCHEDULABLE, "pod bot-r1-a1-0 cannot be scheduled: 0/300 nodes are available")
QUOTA = Waiting(c.REFUSED, "the pods of Job bot-r1-a1 are refused: exceeded quota")
NO_IMAGE = Waiting(c.IMAGE_UNAVAILABLE, "pod bot-r1-a1-0: image trainer:9 cannot be pulled: trainer:9: not found")
OWN_IMAGE = Waiting(c.IMAGE_UNAVAILABLE, "pod bot-r1-a1-0: image mine:2 cannot be pulled: mine:2: not found")
AWAY = Waiting(c.IMAGE_UNAVAILABLE, "pod bot-r1-a1-0: image mine:2 cannot be pulled: dial tcp: i/o timeout")
NO_VOLUME = Waiting(c.MOUNT_FAILED, "pod bot-r1-a1-1: timed out waiting for the condition")
NO_SECRET = Waiting(c.SECRET_MISSING, 'pod bot-r1-a1-0: secret "hf" not found')
SIX = {"schedule": "6h"}
# waited for, why, deadlines and the server's image → is it over? class, reason, words of the message
WAITS: dict[str, tuple[Waited, Waiting | None, dict[str, Any], tuple[str, str, str] | None]] = {
    "a cluster may be full for ever": (Waited(schedule=900 * HOUR), NO_ROOM, {}, None),
    "and so may a quota": (Waited(schedule=900 * HOUR), QUOTA, {}, None),
    "unless it may not: no machine for 6 hours": (Waited(schedule=6 * HOUR), NO_ROOM, SIX, (
        "infrastructure", c.UNSCHEDULABLE,
        "pods of Job bot-r1-a1 have no machine after 6h: pod bot-r1-a1-0 cannot be scheduled: 0/300 nodes are available. Ask for less",
    )),
    "not quite yet": (Waited(schedule=6 * HOUR - 1), NO_ROOM, SIX, None),
    "not yet, for the user is patient": (Waited(schedule=6 * HOUR), NO_ROOM, {"schedule": "3d"}, None),
    "a quota lets none of it be made": (Waited(schedule=7 * HOUR), QUOTA, SIX, ("infrastructure", c.REFUSED, "Make room for it")),
    "the operator's image is not there": (Waited(start=2 * HOUR), NO_IMAGE, {}, (
        "infrastructure", c.IMAGE_UNAVAILABLE, "do not start on their machines after 2h: pod bot-r1-a1-0: image trainer:9",
    )),
    "the user's image is not there": (Waited(start=2 * HOUR), OWN_IMAGE, {}, ("user", c.IMAGE_UNAVAILABLE, "Correct the image's name")),
    "its registry is away": (Waited(start=2 * HOUR), AWAY, {}, ("infrastructure", c.IMAGE_UNAVAILABLE, "raise deadlines.start")),
    "its volume is not there": (Waited(start=2 * HOUR), NO_VOLUME, {}, ("infrastructure", c.MOUNT_FAILED, "Mend the volume")),
    "nobody has made its Secret": (Waited(start=2 * HOUR), NO_SECRET, {}, ("user", c.SECRET_MISSING, "Make it.")),
    "nobody has made it, but there is no machine either": (
        Waited(schedule=6 * HOUR), NO_SECRET, SIX, ("infrastructure", c.SECRET_MISSING, "have no machine after 6h"),
    ),
    "nothing says why": (Waited(start=601), None, {"start": "10m"}, (
        "infrastructure", c.NOT_STARTED, "nothing says why (`kubectl describe pods -l batch.kubernetes.io/job-name=bot-r1-a1`)",
    )),
    "a queue may take for ever": (Waited(admission=900 * HOUR), None, {}, None),
    "unless it may not": (Waited(admission=25 * HOUR), None, {"admission": "1d"}, (
        "user", c.NOT_ADMITTED, "its queue has not admitted Job bot-r1-a1 within 1d. Ask for less, or raise deadlines.admission",
    )),
}  # fmt: skip


def seen(run: Run, *, deadlines: dict[str, Any] | None = None, compute: dict[str, Any] | None = None, **more: Any) -> Observed:
    changes = {"deadlines": deadlines or {}, "serving": {"image": "mine:2"}, "compute": {"nodes": 2, **(compute or {})}}
    trains = run.name == A1
    known = make_revision(attempts=1) if trains else make_revision(tries={"fetch": 1})
    attempts = [Attempt(revision="r1", number=1, started=STAMP)] if trains else []
    return make_observed(known, changes=changes, status={"attempts": attempts}, runs={run.name: run}, **more)


def trained(run: Run, **how: Any) -> Draft:
    o = seen(run, **how)
    return obsolete(o, train(o, draft(o)))


@pytest.mark.parametrize("case", WAITS)
def test_a_gang_that_does_not_start_is_ended_with_its_reason(case: str) -> None:
    waited, why, deadlines, ends = WAITS[case]
    found = trained(Run(A1, "Waiting", waiting=why, waited=waited, suspended=waited.admission is not None), deadlines=deadlines)
    attempt = found.status.attempts[0]
    assert (attempt.outcome, found.obsolete) == (("Failed", (A1,)) if ends else ("Running", ()))
    if ends is None:
        assert not why or found.message == why.message, "what it waits for is said all the while"
        return
    kind, reason, words = ends
    assert (attempt.failure_class, found.reason) == (kind, reason)
    assert words in (attempt.message or "")
    assert words in found.message
    charged = found.revision.charges
    assert (charged.infrastructure, charged.error, charged.disruption) == ((1, 0, 0) if kind == "infrastructure" else (0, 0, 0))
    assert (found.revision.stopped is not None) == (kind == "user"), "no retry mends what the user has to"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("mine:2: not found", "user"), ("manifest unknown", "user"), ("pull access denied", "user"), ("401 Unauthorized", "user"),
        ("invalid reference format", "user"), ("503 from the registry", "infrastructure"),
        ("x509: certificate signed by unknown authority", "infrastructure"),
    ],
)  # fmt: skip
def test_an_image_that_there_is_none_of_is_for_the_user_to_correct(said: str, kind: str) -> None:
    def after(image: str) -> str | None:
        why = Waiting(c.IMAGE_UNAVAILABLE, f"pod bot-r1-a1-0: image {image} cannot be pulled: {said}")
        return trained(Run(A1, "Waiting", waiting=why, waited=Waited(start=2 * HOUR))).status.attempts[0].failure_class

    assert (after("mine:2"), after("mine:22")) == (kind, "infrastructure")


def test_what_it_is_called_does_not_say_that_there_is_none_of_an_image() -> None:
    image = "reg.example.com/unknown/invalid-not-found:2"
    for said, kind in ((f'failed to pull "{image}": i/o timeout', "infrastructure"), (f"{image}: not found", "user")):
        why = Waiting(c.IMAGE_UNAVAILABLE, f"pod denied-r1-a1-0: image {image} cannot be pulled: {said}")
        run = Run(A1, "Waiting", waiting=why, waited=Waited(start=2 * HOUR))
        o = replace(seen(run), spec=make_observed(changes={"serving": {"image": image}}).spec)
        assert train(o, draft(o)).status.attempts[0].failure_class == kind, said


def test_without_serving_every_image_is_the_operators() -> None:
    run = Run(A1, "Waiting", waiting=NO_IMAGE, waited=Waited(start=2 * HOUR))
    attempts = [Attempt(revision="r1", number=1, started=STAMP)]
    o = make_observed(make_revision(attempts=1), changes={"serving": None}, status={"attempts": attempts}, runs={A1: run})
    assert train(o, draft(o)).status.attempts[0].failure_class == "infrastructure"


def test_what_is_waited_for_is_looked_at_when_its_time_is_over() -> None:
    def requeue(**run: Any) -> float | None:
        return trained(Run(A1, "Waiting", **run), deadlines={"admission": "1h", **SIX}).requeue

    assert requeue(waited=Waited(schedule=6 * HOUR - 70), waiting=NO_ROOM) == 70
    assert requeue(waited=Waited(admission=HOUR - 9), suspended=True) == 9
    assert requeue(waited=Waited(start=2 * HOUR - 70), unheard=True) == 3
    assert requeue(waited=Waited(schedule=0)) == 6 * HOUR, "the API server's clock may be ahead"
    assert requeue() is None


def test_a_queue_that_has_admitted_a_gang_does_not_see_to_its_pods() -> None:
    run = Run(A1, "Waiting", waiting=NO_ROOM, waited=Waited(schedule=6 * HOUR), held=700)
    assert trained(run, compute={"queueName": "team"}, deadlines=SIX).status.attempts[0].failure_class == "infrastructure"


def test_a_stage_that_does_not_start_is_tried_again_once_its_pod_is_gone() -> None:
    words = Waiting(c.UNSCHEDULABLE, "pod bot-r1-fetch-0 cannot be scheduled: 0/3 nodes")
    o = seen(Run(FETCH, "Waiting", waiting=words, waited=Waited(schedule=6 * HOUR)), deadlines=SIX)
    given_up = obsolete(o, fetch(o, draft(o)))
    assert (given_up.reason, given_up.revision.tries, given_up.obsolete) == (c.UNSCHEDULABLE, {"fetch": 2}, (FETCH,))
    assert given_up.revision.charges.infrastructure == 1
    assert "failed: pods of Job bot-r1-fetch have no machine after 6h: pod bot-r1-fetch-0 cannot be scheduled" in given_up.message

    def later(*runs: Run) -> Draft:
        then = make_observed(given_up.revision, now=NOW + timedelta(minutes=1), runs={run.name: run for run in runs})
        return fetch(then, draft(then))

    assert (later(Run(FETCH, "Ending")).jobs, later(Run(FETCH, "Ending")).requeue) == ((), 5.0)
    assert later().jobs == (JobWanted("fetch", "r1", 2),)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(
    ("stage", "borne", "field"),
    [("fetch", 24, "fetch"), ("prepare", 24, "prepare"), ("baseline", 6, "scoring"), ("evaluate", 6, "scoring")],
)
def test_a_stage_that_hangs_is_ended_and_tried_again(stage: str, borne: int, field: str, past: bool) -> None:
    name, known = f"bot-r1-{stage}", {"model_digest": "m", "data_digest": "d"}
    before: dict[str, Any] = {"fetch": {}, "prepare": {"model_digest": "m"}, "baseline": known, "evaluate": {**known, "artifact": "/a"}}[
        stage
    ]
    run = Run(name, "Running", since=NOW - timedelta(hours=borne, seconds=past))
    o = make_observed(make_revision(**before, tries={stage: 1}), runs={name: run}, progress={name: {"percent": 41.2}})
    found = obsolete(o, evaluate(o, draft(o))) if stage == "evaluate" else decide(o)
    assert (found.revision.tries[stage], found.revision.charges.error, found.obsolete) == ((2, 1, (name,)) if past else (1, 0, ()))
    if past:
        assert found.reason == c.DEADLINE_EXCEEDED
        assert (
            f"Job {name} has not ended within {borne}h, and was at 41 %. Raise deadlines.{field} if it only needs longer" in found.message
        )


def test_a_stage_that_hangs_says_what_it_was_seen_to_wait_for() -> None:
    why = Waiting("CrashLoopBackOff", "pod bot-r1-fetch-0: it ends again and again: exit code 1: no such option.")
    o = seen(Run(FETCH, "Waiting", waiting=why, since=NOW - timedelta(hours=25)))
    words = "has not ended within 24h: pod bot-r1-fetch-0: it ends again and again: exit code 1: no such option. Raise deadlines.fetch"
    assert words in fetch(o, draft(o)).message


def test_a_job_that_ended_itself_says_what_to_raise() -> None:
    itself = Failure("stalled", c.DEADLINE_EXCEEDED, "it did not end within its deadline: Job was active longer than specified deadline")
    o = seen(Run(FETCH, "Failed", failure=itself))
    assert "longer than specified deadline. Raise deadlines.fetch if it only needs longer" in fetch(o, draft(o)).message


def test_a_longer_deadline_holds_for_a_job_that_runs_already() -> None:
    o = seen(Run(FETCH, "Running", since=NOW - timedelta(hours=30)), deadlines={"fetch": "2d"})
    assert fetch(o, draft(o)).revision.tries == {"fetch": 1}


def test_an_evaluation_whose_probe_hangs_goes_on_without_it_uncharged() -> None:
    run = Run("bot-r1-evaluate", "Waiting", probing=True, since=NOW - timedelta(hours=7))
    o = make_observed(make_revision(model_digest="m", data_digest="d", artifact="/a", tries={"evaluate": 1}), runs={run.name: run})
    found = evaluate(o, draft(o)).revision
    assert (found.tries, found.charges.error) == ({"evaluate": 2}, 0)
    assert "the probe failed: Job bot-r1-evaluate has not ended within 6h" in (found.unprobed or "")


def test_an_image_of_the_users_that_does_not_end_is_for_the_user_to_mend() -> None:
    metric = {"type": "Custom", "custom": {"image": "icd:3", "timeout": "90s"}}

    def seen(judged: int) -> Draft:
        run = Run("bot-r1-evaluate", "Running", since=NOW, judged_since=NOW - timedelta(seconds=judged))
        known = make_revision(model_digest="m", data_digest="d", artifact="/a", tries={"evaluate": 1})
        o = make_observed(known, runs={run.name: run}, changes={"evaluation": {"metrics": [metric]}})
        return evaluate(o, draft(o))

    assert "image icd:3 scores the answers" in seen(90).message
    revision = seen(91).revision
    assert revision.stopped is not None
    stopped = revision.stopped
    assert (stopped.reason, revision.charges.error) == (c.METRIC_TOO_SLOW, 0)
    assert "image icd:3 of metric Custom has not scored the answers within 90s. Mend it, or raise" in stopped.message


def test_a_job_ends_by_itself_where_the_operator_is_away() -> None:
    def deadline(stage: str, **deadlines: str) -> int | None:
        spec = make_observed(changes={"deadlines": deadlines}).spec
        made: dict[str, Any] = stage_job(Owner("ml", "bot", "u"), spec, Stage(stage, "r1", 1), {}, Images("t:1", "r:1"))["spec"]
        return made.get("activeDeadlineSeconds")

    stages = ("fetch", "prepare", "baseline", "evaluate", "train", "clean")
    found = {stage: deadline(stage) for stage in stages}
    assert found == {**dict.fromkeys(stages), "clean": 3600}, "waiting for a machine counts, and may take for ever"
    found = {stage: deadline(stage, **SIX) for stage in stages[:-1]}
    assert found == {"fetch": 32 * 3600, "prepare": 32 * 3600, "baseline": 14 * 3600, "evaluate": 14 * 3600, "train": None}
    assert deadline("fetch", schedule="1m", start="1ms", fetch="9d") == 60 + 9 * 86400 + 1
    assert deadline("evaluate", **SIX, scoring="9999d9999d9999d9999d9999d") == 2**31 - 1


# the Job's pods, what is edited → is it made anew?
EDITS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[bool, bool]]] = {
    "another accelerator": ({}, {"compute": {"nodes": 2, "accelerator": "h200"}}, (True, True)),
    "another node pool": ({}, {"pods": {"nodeSelector": {"pool": "b"}}}, (True, True)),
    "what its server asks for": ({}, {"serving": {"image": "mine:2", "resources": {"limits": {"nvidia.com/gpu": "1"}}}}, (False, True)),
    "an accelerator that the operator does not know": ({}, {"compute": {"nodes": 2, "accelerator": "x100"}}, (False, False)),
    "how it is retried": ({}, {"retries": {"error": 9}}, (False, False)),
    "it has a machine": ({"since": NOW}, {"compute": {"nodes": 3}}, (False, False)),
    "it is of an older operator": ({"asked": ""}, {"compute": {"nodes": 3}}, (False, False)),
    "it runs": ({"state": "Running"}, {"compute": {"nodes": 3}}, (False, False)),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_waits_for_a_machine_is_made_anew_when_another_one_is_asked_for(case: str) -> None:
    """Else nobody would hear of the edit: it may wait for ever."""
    of_run, edit, (gang_anew, stage_anew) = EDITS[case]
    before = seen(Run(A1, "Waiting")).spec

    def waits(name: str, stage: str) -> Run:
        return Run(name, **{"state": "Waiting", "waiting": NO_ROOM, "asked": asked(before, stage, ANY_GPU), **of_run})

    def edited(run: Run) -> Observed:
        o = seen(run, profiles={"h200": Accelerator("h200", "nvidia.com/gpu")})
        wanted = make_observed(changes={"serving": {"image": "mine:2"}, "compute": {"nodes": 2}, **edit}).spec
        return replace(o, spec=wanted)

    o = edited(waits(A1, "train"))
    gang = obsolete(o, train(o, draft(o)))
    assert (gang.status.attempts[0].outcome, gang.obsolete) == (("Superseded", (A1,)) if gang_anew else ("Running", ()))
    o = edited(waits(FETCH, "fetch"))
    stage = obsolete(o, fetch(o, draft(o)))
    assert (stage.revision.tries, stage.obsolete) == (({"fetch": 2}, (FETCH,)) if stage_anew else ({"fetch": 1}, ()))
    for found in (gang, stage):
        assert (found.revision.charges, found.revision.stopped) == (Charges(), None)


@pytest.mark.parametrize(
    ("changes", "anew"),
    [({"node_labels": {"nvidia.com/gpu.product": ["NVIDIA-H100-NVL"]}}, True), ({"tolerations": ()}, True), ({"hourly_price": 3.5}, False)],
)
def test_what_waits_for_a_machine_is_made_anew_when_its_accelerators_profile_is_corrected(changes: dict[str, Any], anew: bool) -> None:
    before = Accelerator("h100", "nvidia.com/gpu", {"nvidia.com/gpu.product": ["NVIDIA-H100"]})
    on = {"nodes": 2, "accelerator": "h100"}
    spec = seen(Run(A1, "Waiting"), compute=on).spec
    run = Run(A1, "Waiting", waiting=NO_ROOM, asked=asked(spec, "train", before))
    assert trained(run, compute=on, profiles={"h100": before}).obsolete == ()
    assert trained(run, compute=on, profiles={"h100": replace(before, **changes)}).obsolete == ((A1,) if anew else ())


# What is waited for, and what the spec came to ask for meanwhile: it is heard, for nothing is trained yet.
HEARD: dict[str, tuple[Run, dict[str, Any]]] = {
    "fewer nodes, while a part of the gang holds a machine in vain": (
        Run(A1, "Waiting", waiting=NO_ROOM, held=20, crowded="A", since=NOW), {"compute": {"nodes": 1}},
    ),
    "a Secret for the image": (Run(A1, "Waiting", waiting=NO_IMAGE, since=NOW), {"pods": {"imagePullSecrets": ["x"]}}),
}  # fmt: skip


@pytest.mark.parametrize("case", HEARD)
def test_an_edit_is_heard_while_nothing_is_trained(case: str) -> None:
    run, edit = HEARD[case]
    run = replace(run, asked=asked(seen(run).spec, "train", ANY_GPU))
    o = seen(run)
    assert train(o, draft(o)).status.attempts[0].outcome == "Running", "nothing was edited"
    o = replace(o, spec=make_observed(changes={"serving": {"image": "mine:2"}, "compute": {"nodes": 2}, **edit}).spec)
    assert train(o, draft(o)).status.attempts[0].outcome == "Superseded"


def test_a_scorer_that_waits_for_accelerators_hears_that_no_answers_are_asked_for() -> None:
    run = Run("bot-r1-baseline", "Waiting", waiting=NO_ROOM)
    made = replace(run, asked=asked(make_observed().spec, "baseline", ANY_GPU))
    o = make_observed(make_revision(tries={"baseline": 1}), changes={"evaluation": {"metrics": []}}, runs={run.name: made})
    assert baseline(o, draft(o)).revision.tries == {"baseline": 2}


def test_ranks_that_gave_up_waiting_for_others_without_a_machine_are_charged_to_nobody() -> None:
    said = "another rank went away: Timed out after 3601 seconds waiting for clients. 1/2 clients joined."
    failure = Failure("infrastructure", "PeerLost", said, pod="bot-r1-a1-0", rank=0)
    found = trained(Run(A1, "Failed", failure=failure), compute={"queueName": "team"}).revision
    assert (found.charges.infrastructure, found.charges.disruption) == (0, 1)
    begun = trained(Run(A1, "Failed", failure=replace(failure, result={"step": 3})), compute={"queueName": "team"}).revision
    assert (begun.charges.infrastructure, begun.charges.disruption) == (1, 0), "it had trained"


def test_what_is_refused_for_long_is_asked_for_each_minute() -> None:
    refused = Waiting(c.REFUSED, "exceeded quota")

    def again(seconds: float, **known: Any) -> float | None:
        return until_heard(Run(A1, "Waiting", waiting=refused, unheard=True, waited=Waited(schedule=seconds), **known), 3.0)

    assert (again(600), again(601), again(601, held=5.0)) == (3.0, 60.0, 3.0), "what is held is looked after"
    assert until_heard(Run(A1, "Waiting", waiting=NO_ROOM), 3.0) is None, "its watch tells"


def custom(image: str) -> dict[str, Any]:
    return {"evaluation": {"metrics": [{"type": "Custom", "custom": {"image": image}}]}}


@pytest.mark.parametrize(
    "run",
    [
        Run("bot-r1-evaluate", "Running", key="old", since=NOW, judged_since=NOW - timedelta(hours=1)),
        Run("bot-r1-evaluate", "Waiting", key="old", since=NOW, waiting=OWN_IMAGE, waited=Waited(start=3 * HOUR)),
        Run("bot-r1-evaluate", "Failed", key="old", failure=Failure("user", c.METRIC_FAILED, "image mine:2 ended with exit code 1")),
    ],
    ids=lambda run: run.state,
)
def test_an_image_that_was_corrected_meanwhile_stops_nothing(run: Run) -> None:
    known = make_revision(model_digest="m", data_digest="d", artifact="/a", tries={"evaluate": 1})
    o = make_observed(known, runs={run.name: run}, changes=custom("mine:3"))
    revision = evaluate(o, draft(o)).revision
    assert (revision.stopped, revision.tries) == (None, {"evaluate": 2})
    assert (revision.charges.error, revision.charges.infrastructure) == (0, 0)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("container metric: failed to generate spec: no command specified", "user"),
        ("container server: failed to generate spec: no command specified", "infrastructure"),
        ("container metric: failed to reserve container name", "infrastructure"),
    ],
)
def test_an_image_that_says_nothing_to_start_is_for_the_user_to_correct(said: str, kind: str) -> None:
    why = Waiting("CreateContainerError", f"pod bot-r1-evaluate-0, {said}")
    run = Run("bot-r1-evaluate", "Waiting", since=NOW, waiting=why, waited=Waited(start=3 * HOUR))
    known = make_revision(model_digest="m", data_digest="d", artifact="/a", tries={"evaluate": 1})
    o = make_observed(known, runs={run.name: run}, changes=custom("mine:2"))
    revision = evaluate(o, draft(o)).revision
    assert (revision.stopped is not None, revision.charges.infrastructure) == (kind == "user", int(kind != "user"))


def test_an_image_that_does_not_end_holds_no_machine_while_suspended() -> None:
    run = Run("bot-r1-baseline", "Running", since=NOW, judged_since=NOW - timedelta(hours=1))
    known = make_revision(model_digest="m", data_digest="d", tries={"baseline": 1})
    o = make_observed(known, runs={run.name: run}, changes={**custom("mine:2"), "suspend": True})
    found = decide(o)
    assert found.obsolete == ("bot-r1-baseline",)
    assert found.revision.stopped is None
