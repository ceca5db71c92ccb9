"""What Events alone tell: of a router that does not start, and of a gang that is not whole."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest
from finetune_operator import conditions as c
from finetune_operator import kinds, names
from finetune_operator.cache import Cache
from finetune_operator.cluster import Cluster
from finetune_operator.extras import Asked
from finetune_operator.observe import Observer
from finetune_operator.pods import PodClient
from finetune_operator.preflight import StorageClasses
from finetune_operator.prometheus import Prometheus
from finetune_operator.workloads.run import Run, Waited, Waiting

from tests.unit.operator.helpers import NOW

LACKING = 'MountVolume.SetUp failed for volume "keys" : secret "bot-keys" not found'
BACK_OFF = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, "image": "envoy:9"}


class Events:
    """An API server that has these Events of each pod, and remembers what was asked for."""

    def __init__(self, *messages: str, at: str | None = None, of: str = "", attach: str = "", attach_at: str = "") -> None:
        times = ((at or f"2026-01-01T10:00:0{n}Z") for n in range(len(messages)))
        self.events = [{"message": m, "lastTimestamp": t, "involvedObject": {"name": of}} for m, t in zip(messages, times, strict=True)]
        self.attach = [{"message": attach, "lastTimestamp": attach_at}] if attach else []
        self.asked: list[str] = []
        self.of = of

    async def list(self, kind: kinds.Kind, namespace: str, *, field_selector: str) -> list[dict[str, Any]]:
        assert (kind, namespace) == (kinds.EVENT, "ml")
        self.asked.append(field_selector)
        events = self.attach if field_selector.endswith("FailedAttachVolume") else self.events
        return [e for e in events if field_selector.startswith("reason=") or self.of in field_selector]


def observer(events: Events) -> Observer:
    return Observer(
        cast(Cluster, events), Cache(), cast(PodClient, None), "", {}, cast(StorageClasses, None), cast(Prometheus, None), cast(Asked, None)
    )  # fmt: skip


def pod(began: str, *containers: dict[str, Any], phase: str = "Pending") -> dict[str, Any]:
    status = {"phase": phase, "startTime": f"2026-01-01T{began}Z", "containerStatuses": list(containers)}
    return {"metadata": {"name": "bot-router-x", "namespace": "ml"}, "status": status}


WAITS: dict[str, tuple[dict[str, Any], list[str], Waiting | None]] = {
    "the Secret of the keys is not there": (
        pod("11:58:00"), ["older", LACKING],
        Waiting(c.SECRET_MISSING, f"pod bot-router-x: {LACKING}; it starts by itself once that is there"),
    ),
    "another volume": (
        pod("11:58:00"), ["no disk"], Waiting(c.MOUNT_FAILED, "pod bot-router-x: no disk; it starts by itself once that is there"),
    ),
    "nothing is said of it": (pod("11:58:00"), [], None),
    "it merely starts": (pod("11:59:30"), [LACKING], None),
    "it runs": (pod("11:58:00", phase="Running"), [LACKING], None),
    "its image says more": (
        pod("11:58:00", BACK_OFF), [LACKING],
        Waiting(c.IMAGE_UNAVAILABLE, "pod bot-router-x: image envoy:9 cannot be pulled: no such image"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITS)
async def test_what_a_router_waits_for(case: str) -> None:
    found, messages, expected = WAITS[case]
    events = Events(*messages)
    assert await observer(events)._router_waiting([pod("11:58:00", phase="Running"), found], NOW) == expected
    assert events.asked in ([], ["involvedObject.name=bot-router-x,reason=FailedMount"])


@pytest.mark.parametrize(("made", "reason"), [("11:59:49", c.REFUSED), ("11:59:51", None)])
async def test_a_gang_of_which_a_part_is_refused_says_why(made: str, reason: str | None) -> None:
    job = {"metadata": {"name": "bot-r1-a1", "namespace": "ml", "creationTimestamp": f"2026-01-01T{made}Z"}, "spec": {"completions": 2}}
    rank = {"metadata": {"name": "bot-r1-a1-0", "labels": {names.JOB_NAME: "bot-r1-a1"}, "annotations": {}}}
    events = Events("exceeded quota: pods")
    found = await observer(events)._with_events(Run("bot-r1-a1", "Waiting", unheard=True), job, {"bot-r1-a1-0": rank}, NOW)
    refused = Waiting(c.REFUSED, "the pods of Job bot-r1-a1 are refused: exceeded quota: pods")  # first before it began, says a clock
    assert (found.waiting, found.waited) == ((refused, Waited(schedule=11)) if reason else (None, Waited()))


async def test_pods_that_are_refused_are_waited_for_since_the_job_began() -> None:
    """A queue may have kept it before, and a pod that is only gone for a moment is not waited for since then."""
    job = {**GANG, "status": {"startTime": "2026-01-01T11:58:00Z"}}
    run = Run("bot-r1-a1", "Waiting", unheard=True)
    assert (await observer(Events("exceeded quota: pods"))._with_events(run, job, {}, NOW)).waited == Waited(schedule=120)
    assert await observer(Events())._with_events(run, job, {}, NOW) == run
    admitted = {**GANG, "status": {"conditions": [{"type": "Suspended", "status": "True"}]}}
    found = await observer(Events("exceeded quota: pods"))._with_events(run, admitted, {}, NOW)
    assert found.waited == Waited(schedule=0), "of the time before its queue took it back"


def said(first: str, last: str) -> dict[str, Any]:
    times = {"firstTimestamp": f"2026-01-01T{first}Z", "lastTimestamp": f"2026-01-01T{last}Z"}
    return {"message": f"exceeded quota at {last}", **times, "involvedObject": {"name": ""}}


# what was said of pods that are refused → for how long the other rank, there since 11:45, has held its machine in vain
REFUSALS: dict[str, tuple[list[dict[str, Any]], float]] = {
    "from the start": ([said("11:40:00", "11:59:50")], 900),
    "of one that is to take the place of another": ([said("11:59:00", "11:59:50")], 60),
    "of several, each for a while": ([said("11:50:00", "11:56:00"), said("11:56:30", "11:59:50"), said("11:51:00", "11:52:00")], 600),
    "at first, and then of one that is to take the place": ([said("11:30:00", "11:44:00"), said("11:59:30", "11:59:50")], 30),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_gang_holds_its_machines_in_vain_since_a_pod_of_it_is_refused(case: str) -> None:
    told, seconds = REFUSALS[case]
    events = Events()
    events.events = told
    job = {**GANG, "status": {"startTime": "2026-01-01T11:00:00Z"}}
    found = await observer(events)._with_events(Run("bot-r1-a1", "Waiting", unheard=True), job, {"bot-r1-a1-0": rank(0, "Running")}, NOW)
    assert (found.waiting and found.waiting.message) == "the pods of Job bot-r1-a1 are refused: exceeded quota at 11:59:50"
    assert found.held == seconds


GANG = {"metadata": {"name": "bot-r1-a1", "namespace": "ml", "creationTimestamp": "2026-01-01T11:00:00Z"}, "spec": {"completions": 2}}


def rank(number: int, phase: str, began: str = "11:45:00") -> dict[str, Any]:
    index = {names.JOB_INDEX: str(number)}
    meta = {
        "name": f"bot-r1-a1-{number}", "namespace": "ml", "labels": {names.JOB_NAME: "bot-r1-a1"}, "annotations": index,
        "creationTimestamp": f"2026-01-01T{began}Z",
    }  # fmt: skip
    return {"metadata": meta, "spec": {"nodeName": "node"}, "status": {"phase": phase, "startTime": f"2026-01-01T{began}Z"}}


VOLUME = "timed out waiting for the condition"
# the ranks, what the Event says and when → what is waited for, and for how many seconds the other rank's machine is held
UNMOUNTED: dict[str, tuple[list[dict[str, Any]], Events, Waiting | None, float]] = {
    "a volume is not there for a rank, and the other holds its machine": (
        [rank(0, "Running"), rank(1, "Pending")], Events(VOLUME, at="2026-01-01T11:58:30Z", of="bot-r1-a1-1"),
        Waiting(c.MOUNT_FAILED, f"pod bot-r1-a1-1: {VOLUME}; it starts by itself once that is there"), 900.0,
    ),
    "it was not there at first, and now a large image is pulled": (
        [rank(0, "Running"), rank(1, "Pending")], Events(VOLUME, at="2026-01-01T11:46:00Z", of="bot-r1-a1-1"),
        Waiting(c.MOUNT_FAILED, f"pod bot-r1-a1-1: {VOLUME}; it starts by itself once that is there"), 0.0,
    ),
    "another node has the volume": (
        [rank(0, "Running"), rank(1, "Pending")],
        Events(VOLUME, at="2026-01-01T11:59:30Z", of="bot-r1-a1-1", attach="Multi-Attach error", attach_at="2026-01-01T11:58:00Z"),
        Waiting(c.MOUNT_FAILED, "pod bot-r1-a1-1: Multi-Attach error; it starts by itself once that is there"), 900.0,
    ),
    "another node had it": (
        [rank(0, "Running"), rank(1, "Pending")],
        Events(VOLUME, at="2026-01-01T11:59:30Z", of="bot-r1-a1-1", attach="Multi-Attach error", attach_at="2026-01-01T11:46:00Z"),
        Waiting(c.MOUNT_FAILED, f"pod bot-r1-a1-1: {VOLUME}; it starts by itself once that is there"), 900.0,
    ),
    "a large image is pulled": ([rank(0, "Running"), rank(1, "Pending")], Events(), None, 0.0),
    "of two that start the second says why": (
        [rank(0, "Pending"), rank(1, "Pending")], Events('secret "hf" not found', at="2026-01-01T11:59:00Z", of="bot-r1-a1-1"),
        Waiting(c.SECRET_MISSING, 'pod bot-r1-a1-1: secret "hf" not found; it starts by itself once that is there'), 0.0,
    ),
    "a Secret was not there at first, and now a large image is pulled": (
        [rank(0, "Running"), rank(1, "Pending")], Events('secret "hf" not found', at="2026-01-01T11:46:00Z", of="bot-r1-a1-1"), None, 0.0,
    ),
    "a ConfigMap is not there": (
        [rank(0, "Running"), rank(1, "Pending")], Events('configmap "rows" not found', at="2026-01-01T11:59:00Z", of="bot-r1-a1-1"),
        Waiting(c.SOURCE_MISSING, 'pod bot-r1-a1-1: configmap "rows" not found; it starts by itself once that is there'), 900.0,
    ),
    "it merely starts": ([rank(0, "Running"), rank(1, "Pending", "11:59:30")], Events(VOLUME, of="bot-r1-a1-1"), None, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("case", UNMOUNTED)
async def test_a_rank_whose_volume_is_not_there_says_so_and_holds_the_others_in_vain(case: str) -> None:
    ranks, events, waits, seconds = UNMOUNTED[case]
    run = Run("bot-r1-a1", "Waiting", unheard=True)
    found = await observer(events)._with_events(run, GANG, {r["metadata"]["name"]: r for r in ranks}, NOW)
    assert (found.waiting, found.held) == (waits, seconds)


@pytest.mark.parametrize(
    ("of", "held"),
    [("bot-r1-a1-1-x2k4z", 0.0), ("bot-r1-a11-1-x2k4z", 601.0), ("other-a1-0-abcde", 601.0)],
)
async def test_a_gang_for_which_an_autoscaler_makes_room_is_not_held_in_vain(of: str, held: float) -> None:
    events = Events("pod triggered scale-up", of=of)
    found = await observer(events)._with_events(Run("bot-r1-a1", "Waiting", held=601.0), GANG, {}, NOW + timedelta(minutes=1))
    assert found.held == held
    assert events.asked[:2] == ["reason=TriggeredScaleUp", "reason=Nominated"]


async def test_no_event_is_read_of_an_autoscaler_before_ten_minutes_are_over() -> None:
    events = Events("pod triggered scale-up", of="bot-r1-a1-1-x2k4z")
    waits = Waiting(c.UNSCHEDULABLE, "no room")
    found = await observer(events)._with_events(Run("bot-r1-a1", "Waiting", held=600.0, waiting=waits), GANG, {}, NOW)
    assert (found.held, events.asked) == (600.0, [])
