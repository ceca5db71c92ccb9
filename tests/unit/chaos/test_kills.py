"""What a round of kills is said to have cost, from what was seen."""

from __future__ import annotations

import pytest

from tests.chaos.kills import Kill, Sample, lost, not_in_flight
from tests.e2e.world import Call

STEPS = [Sample(at=float(second), folder="a1", step=10 * second) for second in range(10)]


@pytest.mark.parametrize(
    ("attempts", "seconds"),
    [
        pytest.param([{"folder": "a1"}], 0.0, id="nothing is lost where one attempt did it all"),
        pytest.param([{"folder": "a1"}, {"resumedFromStep": 60}], 3.0, id="what came after the checkpoint is done again"),
        pytest.param([{"folder": "a1"}, {}], 9.0, id="without a checkpoint all is done again"),
        pytest.param([{"folder": "a1"}, {"resumedFromStep": 90}], 0.0, id="a checkpoint at the last step loses nothing"),
        pytest.param([{}, {"folder": "a2"}], 0.0, id="an attempt that never trained loses nothing"),
    ],
)
def test_lost_training(attempts: list[dict[str, object]], seconds: float) -> None:
    assert lost(attempts, STEPS) == seconds


def call(sent: float, answered: float, *, ok: bool = False) -> Call:
    return Call("user", "" if not ok else "arm", ok, sent, answered, "" if ok else "connection reset")


@pytest.mark.parametrize(
    ("kind", "at_once", "failed", "stray", "window"),
    [
        pytest.param("model server", True, call(9.5, 10.2), 0, 0.0, id="what was in flight is explained"),
        pytest.param("model server", True, call(12.0, 12.1), 1, 0.0, id="what was sent afterwards is not"),
        pytest.param("model server", True, call(8.0, 9.0), 1, 0.0, id="what failed before is not"),
        pytest.param("router", True, call(12.0, 12.5), 0, 2.5, id="a router killed at once is given out for a while: reported"),
        pytest.param("router", False, call(12.0, 12.5), 1, 0.0, id="one that was asked to go is not"),
        pytest.param("router", True, call(12.0, 12.5, ok=True), 0, 0.0, id="a good answer is no failure"),
    ],
)
def test_failures_that_no_kill_explains(kind: str, at_once: bool, failed: Call, stray: int, window: float) -> None:
    found, seconds = not_in_flight([failed], [Kill(kind, "pod", at_once, 10.0, 10.5)])
    assert (len(found), seconds) == (stray, window)
