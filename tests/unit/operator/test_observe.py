"""What Events alone tell: of a router that does not start, and of a gang that is not whole."""

from __future__ import annotations

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
from finetune_operator.workloads.run import Run, Waiting

from tests.unit.operator.helpers import NOW

LACKING = 'MountVolume.SetUp failed for volume "keys" : secret "bot-keys" not found'
BACK_OFF = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, "image": "envoy:9"}


class Events:
    """An API server that has these Events of each pod, and remembers what was asked for."""

    def __init__(self, *messages: str) -> None:
        self.events = [{"message": message, "lastTimestamp": str(n)} for n, message in enumerate(messages)]
        self.asked: list[str] = []

    async def list(self, kind: kinds.Kind, namespace: str, *, field_selector: str) -> list[dict[str, Any]]:
        assert (kind, namespace) == (kinds.EVENT, "ml")
        self.asked.append(field_selector)
        return self.events


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
    refused = Waiting(c.REFUSED, "the pods of Job bot-r1-a1 are refused: exceeded quota: pods")
    assert found.waiting == (refused if reason else None)
