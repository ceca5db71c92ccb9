"""Failure budgets: what each class is charged to, up to which failure it is tried again, when, and in which words it is given up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.status import Charges, Fidelity, Forgetting, Stopped
from finetune_operator.decide.draft import Note, stamp
from finetune_operator.decide.retry import after_failure, backoff, reopen, stop, trouble, wait
from finetune_operator.workloads.run import Failure, FailureClass

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision, make_scored, tried

FIX = "Change the spec, or annotate finetune.dev/retry with a new value, to try again."
RETRIES = {"retries": {"error": 2, "outOfMemory": 1, "infrastructure": 3}}
# class, charged before → (charged after, seconds until the next try; None: given up), words
FAILURES: dict[str, tuple[FailureClass, Charges, Charges, int | None, str]] = {
    "a first error": ("error", Charges(), Charges(error=1), 5, ""),
    "the last error that is borne": ("error", Charges(error=1), Charges(error=2), 10, ""),
    "one error too many": ("error", Charges(error=2), Charges(error=3), None, "3 failures of class error, retries.error allows 2 retries"),
    "a stall is an error": ("stalled", Charges(error=2), Charges(error=3), None, "3 failures of class stalled, retries.error allows 2"),
    "the memory that is borne": ("outOfMemory", Charges(error=2), Charges(error=2, out_of_memory=1), 5, ""),
    "memory once too often": (
        "outOfMemory", Charges(out_of_memory=1), Charges(out_of_memory=2), None, "2 failures of class outOfMemory, retries.outOfMemory",
    ),
    "the infrastructure that is borne": ("infrastructure", Charges(infrastructure=2), Charges(infrastructure=3), 18, ""),
    "infrastructure once too often": (
        "infrastructure", Charges(infrastructure=3), Charges(infrastructure=4), None, "retries.infrastructure allows 3 retries",
    ),
    "a disruption": ("disruption", Charges(), Charges(disruption=1), 1, ""),
    "the fifth disruption is tried again at once": ("disruption", Charges(disruption=4), Charges(disruption=5), 1, ""),
    "the sixth waits": ("disruption", Charges(disruption=5), Charges(disruption=6), 5, ""),
    "the seventh waits longer": ("disruption", Charges(disruption=6), Charges(disruption=7), 10, ""),
    "the hundredth is not given up either": ("disruption", Charges(disruption=99), Charges(disruption=100), 249, ""),
    "the two thousandth neither": ("disruption", Charges(disruption=1999), Charges(disruption=2000), 351, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_failure(case: str) -> None:
    kind, before, charges, seconds, words = FAILURES[case]
    o = make_observed(make_revision(charges=before), changes=RETRIES)
    found = after_failure(o, draft(o), "fetch", Failure(kind, "Reason", "words", "pod-0", "node-1", rank=3))
    assert found.revision.charges == charges
    if seconds is None:
        assert (found.phase, found.reason, found.revision.retry_at) == (c.FAILED, c.RETRIES_EXHAUSTED, None)
        assert found.message.startswith("fetch: pod pod-0 (rank 3) on node node-1: words (")
        assert words in found.message
    else:
        minutes, rest = divmod(seconds, 60)
        assert (found.blocked, found.revision.stopped) == (False, None)
        assert found.revision.retry_at == f"2026-01-01T12:{minutes:02d}:{rest:02d}Z"


def test_a_disruption_after_vain_waiting_is_not_free_of_delay_and_says_its_reason() -> None:
    waited = Failure("disruption", c.UNSCHEDULABLE, "no room", waited=True)
    o = make_observed(make_revision())
    assert after_failure(o, draft(o), "fetch", waited).revision.retry_at == "2026-01-01T12:00:05Z"
    assert (trouble(waited), trouble(Failure("disruption", "Gone", "")), trouble(Failure("error", "Broken", ""))) == (
        c.UNSCHEDULABLE,
        "",
        "Broken",
    )


@pytest.mark.parametrize(
    ("kind", "reason", "shown"),
    [("user", "NoSuchModel", "NoSuchModel"), ("user", "", c.DATA_INVALID), ("nonFinite", "", c.NON_FINITE), ("nonFinite", "Nan", "Nan")],
)
def test_what_no_retry_mends_is_given_up_uncharged_with_its_own_reason(kind: FailureClass, reason: str, shown: str) -> None:
    o = make_observed(make_revision(retry_at=STAMP))
    found = after_failure(o, draft(o), "prepare", Failure(kind, reason, "row 3 is bad. ", "pod-0"))
    text = f"prepare: pod pod-0: row 3 is bad. {FIX}"
    assert found.revision == make_revision(stopped=Stopped(reason=shown, message=text, time=STAMP, tried=tried("t1")))
    assert (found.phase, found.reason, found.message, found.notes) == (c.FAILED, shown, text, (Note("Warning", shown, text),))


def test_a_failure_without_a_pod_is_told_without_a_place() -> None:
    o = make_observed(make_revision())
    told = after_failure(o, draft(o), "fetch", Failure("user", "X", "words", node="node-1", rank=0)).message
    assert told == f"fetch: words. {FIX}"


def test_words_without_end_leave_room_for_the_fix() -> None:
    o = make_observed(make_revision())
    found = stop(o, draft(o), "X", "w" * 5000)
    assert len(found.message) == 1024
    assert found.message.endswith(f"www. {FIX}")


DELAYS = [4.058, 10.151, 23.771, 32.889, 327.463, 355.291]


def test_the_delays_are_the_same_tomorrow_as_today() -> None:
    assert [round(backoff("uid/r1/fetch", n), 3) for n in (1, 2, 3, 4, 7, 8)] == DELAYS


SPENT = {"charges": Charges(error=3), "retry_at": "2026-01-01T13:00:00Z", "tries": {"fetch": 4}}


@pytest.mark.parametrize(("gate", "then"), [("Failed", None), ("Passed", "Passed"), (None, None)])
def test_another_try_forgives_everything_and_judges_a_failed_gate_anew(gate: str | None, then: str | None) -> None:
    stopped = Stopped(reason="X", message="given up", time=STAMP, tried=tried("t0"))
    o = make_observed(make_revision(stopped=stopped, gate=gate, **SPENT))
    assert reopen(o, draft(o)).revision == make_revision(gate=then, tries={"fetch": 4})
    same = make_observed(make_revision(stopped=stopped, gate=gate, **SPENT), retry="t0")
    assert reopen(same, draft(same)) == draft(same)


MEASURED, UNMEASURED = Forgetting(percent="1", low="0", high="2"), Forgetting(unmeasured="no room")
LIMITED = {"evaluation": {"gate": {"maxForgettingPercent": 5}}}
FAITHFUL = {"evaluation": {"gate": {"maxServingDivergence": "0.01"}}}


@pytest.mark.parametrize(
    ("found", "asked", "anew"),
    [
        pytest.param({"forgetting": UNMEASURED, "fidelity": Fidelity(kl="0")}, LIMITED, True, id="it could not be measured"),
        pytest.param({"fidelity": Fidelity(kl="0")}, LIMITED, True, id="it was not looked for"),
        pytest.param({"forgetting": MEASURED}, LIMITED, False, id="it was measured"),
        pytest.param({"forgetting": UNMEASURED, "fidelity": Fidelity(unmeasured="no room")}, {}, False, id="nobody asks"),
        pytest.param({"fidelity": Fidelity(unmeasured="no room")}, FAITHFUL, True, id="serving could not be measured"),
        pytest.param({"forgetting": MEASURED}, FAITHFUL, True, id="how it is served was not looked for"),
        pytest.param({"fidelity": Fidelity(kl="0")}, FAITHFUL, False, id="how it is served was measured"),
    ],
)
def test_another_try_evaluates_again_where_the_gate_asks_for_figures_and_there_are_none(
    found: dict[str, Any], asked: dict[str, Any], anew: bool
) -> None:
    scored = make_scored("0.5", "0.1", "0.2").model_copy(update=found)
    stopped = Stopped(reason=c.GATE_FAILED, message="not measured", time=STAMP, tried=tried("t0"))
    o = make_observed(
        make_revision(stopped=stopped, gate="Failed", unprobed="it failed", evaluated=scored, tries={"evaluate": 1}), changes=asked
    )
    then = {"tries": {"evaluate": 2}} if anew else {"tries": {"evaluate": 1}, "evaluated": scored}
    assert reopen(o, draft(o)).revision == make_revision(**then)
    waits = make_observed(o.status.revisions[0], changes=asked, retry="t0")
    assert reopen(waits, draft(waits)) == draft(waits)


@pytest.mark.parametrize(("ahead", "seconds"), [(0, 0), (1, 1), (361, 361), (362, 0), (3600, 0)])
def test_a_try_is_waited_for_no_longer_than_any_is_put_off(ahead: int, seconds: int) -> None:
    """After the clock was ahead by an hour, the next try does not wait for that hour."""
    o = make_observed(make_revision(retry_at=stamp(NOW + timedelta(seconds=ahead))))
    assert wait(o, draft(o)) == seconds
