"""What retention chooses, when it acts on it, and how it follows what it began."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.status import Attempt, Cleaning, Fidelity, Revision, Rollout, Rows
from finetune_operator.decide import retention
from finetune_operator.decide.arms import _promoted, _wanted
from finetune_operator.decide.draft import ArmWanted, Draft, Note
from finetune_operator.decide.revision import current
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Failure, Run

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision, make_scored

LATER = "2026-01-01T12:01:00Z"


def trained(name: str, **changes: Any) -> Revision:
    """A revision with an artifact whose checkpoints are gone already."""
    return make_revision(name, **{"artifact": f"/work/{name}", "attempts": 1, "checkpoints_kept": 0, **changes})


def observed(*revisions: Revision, retention: dict[str, Any] | None = None, cleaning: Cleaning | None = None, **seen: Any) -> Observed:
    """The spec asks for the last of these revisions, which is live."""
    last = revisions[-1].name
    status = {"revision": last, "live_revision": last, "revisions": list(revisions), "cleaning": cleaning, **seen.pop("status", {})}
    return make_observed(revisions[-1], changes={"retention": retention or {}}, status=status, **seen)


def resting(o: Observed, phase: str = c.LIVE, **changes: Any) -> Draft:
    return Draft(status=o.status, phase=phase, **changes)


def cleaned(o: Observed, phase: str = c.LIVE, **changes: Any) -> Draft:
    return retention.clean(o, resting(o, phase, **changes))


FIVE = [trained(f"r{n}") for n in range(1, 6)]
# revisions (the last one is live), retention, what else the status says → whose everything goes, whose checkpoints, who keeps how many
CHOICES: dict[str, tuple[list[Revision], dict[str, Any], dict[str, Any], tuple[list[str], list[str]]]] = {
    "five artifacts are kept": (FIVE, {}, {}, ([], [])),
    "the sixth is not": ([trained("r0"), *FIVE], {}, {}, (["r0"], [])),
    "one that was trained again last is the newest": (FIVE[:2], {"revisions": 1}, {}, (["r1"], [])),
    "what served before is kept besides": (FIVE, {"revisions": 1}, {"previous_revision": "r2"}, (["r1", "r3", "r4"], [])),
    "what is live is kept besides": (FIVE, {"revisions": 1}, {"live_revision": "r3"}, (["r1", "r2", "r4"], [])),
    "what the spec asks for is kept besides": (FIVE, {"revisions": 1}, {"revision": "r1"}, (["r2", "r3", "r4"], [])),
    "one without an artifact is not counted and stays": (
        [make_revision("r0"), trained("r1"), make_revision("r2", attempts=3), trained("r3")], {"revisions": 2}, {}, ([], []),
    ),
    "checkpoints go": ([trained("r1", checkpoints_kept=None)], {}, {}, ([], ["r1"])),
    "not of one without an artifact": ([make_revision("r1", attempts=3)], {}, {}, ([], [])),
    "of as many attempts as are kept none go": ([trained("r1", attempts=2, checkpoints_kept=None)], {"checkpoints": 2}, {}, ([], [])),
    "of more attempts than are kept some go": ([trained("r1", attempts=3, checkpoints_kept=None)], {"checkpoints": 2}, {}, ([], ["r1"])),
    "fewer are to be kept than were": ([trained("r1", attempts=3, checkpoints_kept=2)], {"checkpoints": 1}, {}, ([], ["r1"])),
    "more are to be kept than were": ([trained("r1", attempts=3, checkpoints_kept=1)], {"checkpoints": 2}, {}, ([], [])),
    "nothing was trained: there is nothing": ([trained("r1", attempts=0, checkpoints_kept=None)], {}, {}, ([], [])),
    "of what goes as a whole no checkpoints besides": (
        [trained("r1", checkpoints_kept=None), trained("r2", checkpoints_kept=None)], {"revisions": 1}, {}, (["r1"], ["r2"]),
    ),
    "what was forgotten goes": (FIVE[:1], {}, {"cleaning": Cleaning(number=4, forgotten=["r0"])}, (["r0"], [])),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_of_the_artifacts(case: str) -> None:
    revisions, policy, status, (whole, checkpoints) = CHOICES[case]
    o = observed(*revisions, retention=policy, status=status)
    found = cleaned(o)
    if not (whole or checkpoints):
        assert found == resting(o)
        return
    number = (o.status.cleaning or Cleaning()).number + 1
    wanted = Cleaning(number=number, revisions=whole, checkpoints=checkpoints, keep=policy.get("checkpoints", 0))
    assert found.status.cleaning == wanted
    assert found.clean
    for revision in found.status.revisions:
        assert revision.removed == (STAMP if revision.name in whole else None)
        assert revision.name not in checkpoints or revision.checkpoints_kept == wanted.keep


@pytest.mark.parametrize(
    ("method", "limit", "found", "promoted", "kept"),
    [
        pytest.param("Full", "0.005", Fidelity(unmeasured="no room"), False, True, id="it could not be measured"),
        pytest.param("Full", "0.005", None, False, True, id="it was not looked for"),
        pytest.param("Full", "0.005", Fidelity(kl="0.02"), False, True, id="it is too far with this server"),
        pytest.param("Full", "0.005", Fidelity(kl="0.001"), False, False, id="it is near enough"),
        pytest.param("Full", None, Fidelity(unmeasured="no room"), False, False, id="nobody asks"),
        pytest.param("Full", "0.005", Fidelity(unmeasured="no room"), True, False, id="it was promoted before"),
        pytest.param("LoRA", "0.005", Fidelity(unmeasured="no room"), False, False, id="an adapter is kept whole"),
    ],
)
def test_what_rounding_took_of_all_weights_is_kept_while_the_gate_misses_its_figure(
    method: str, limit: str | None, found: Fidelity | None, promoted: bool, kept: bool
) -> None:
    scored = make_scored("0.5", "0.1", "0.2").model_copy(update={"fidelity": found})
    changes = {"method": {"type": method}, "evaluation": {"gate": {"maxServingDivergence": limit} if limit else {}}}
    before = trained("r0", checkpoints_kept=None, evaluated=scored)
    asked = trained("r1", checkpoints_kept=None, evaluated=scored, promoted=promoted)
    o = make_observed(asked, changes=changes, status={"revisions": [before, asked]})
    cleaning = cleaned(o, c.REJECTED).status.cleaning
    assert cleaning is not None
    assert cleaning.checkpoints == (["r0"] if kept else ["r0", "r1"]), "of what the spec does not ask for nothing is measured again"


def test_where_nothing_is_evaluated_any_more_nothing_is_kept_to_be_measured_again() -> None:
    scored = make_scored("0.5").model_copy(update={"fidelity": Fidelity(unmeasured="no room")})
    asked = trained("r1", checkpoints_kept=None, evaluated=scored)
    o = make_observed(asked, changes={"method": {"type": "Full"}, "evaluation": None}, status={"revisions": [asked]})
    cleaning = cleaned(o, c.REJECTED).status.cleaning
    assert cleaning is not None
    assert cleaning.checkpoints == ["r1"]


def test_an_arm_keeps_its_revision() -> None:
    o = observed(*FIVE, retention={"revisions": 1})
    found = cleaned(o, arms=(ArmWanted("old", "r2"), ArmWanted("new", "r5")))
    assert found.status.cleaning == Cleaning(number=1, revisions=["r1", "r3", "r4"])


@pytest.mark.parametrize("state", ["Waiting", "Running", "Ending"])
@pytest.mark.parametrize("job", ["bot-r1-a3", "bot-r1-evaluate-2"])
def test_a_revision_whose_pods_still_run_is_left_for_later(job: str, state: Any) -> None:
    o = observed(*FIVE[:3], retention={"revisions": 1}, runs={job: Run(job, state)}, cleaning=Cleaning(number=1, forgotten=["r0"]))
    assert cleaned(o).status.cleaning == Cleaning(number=2, revisions=["r0", "r2"])
    forgotten = observed(FIVE[4], runs={job: Run(job, state)}, cleaning=Cleaning(number=1, forgotten=["r1"]))
    assert cleaned(forgotten) == resting(forgotten)
    both = observed(FIVE[4], runs={job: Run(job, state)}, cleaning=Cleaning(number=1, forgotten=["r1", "r0"]))
    assert cleaned(both).status.cleaning == Cleaning(number=2, revisions=["r0"], forgotten=["r1"])


def test_of_a_removed_revision_nothing_is_known_but_its_numbers() -> None:
    known = trained(
        "r1", tries={"fetch": 1, "prepare": 2, "baseline": 1, "evaluate": 3}, model_digest="m", data_digest="d", artifact_digest="a",
        rows=Rows(read=1), baseline=make_scored("0.1"), evaluated=make_scored("0.2"), attempts=4, gate="Passed", promoted=True,
        dropped="a row", charges={"error": 2},
    )  # fmt: skip
    found = cleaned(observed(known, trained("r2"), retention={"revisions": 1})).status.revisions[0]
    assert found == make_revision(
        "r1", removed=STAMP, model_digest="m", attempts=4, tries={"fetch": 1, "prepare": 3, "baseline": 2, "evaluate": 4}
    )


WHEN: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "live": ({}, {"phase": c.LIVE}, True),
    "trained": ({}, {"phase": c.TRAINED_ONLY}, True),
    "rejected": ({}, {"phase": c.REJECTED}, True),
    "failed": ({}, {"phase": c.FAILED}, True),
    "not needed": ({}, {"phase": c.NOT_NEEDED}, True),
    "suspended": ({}, {"phase": c.SUSPENDED}, False),
    "training": ({}, {"phase": c.TRAINING}, False),
    "baking": ({}, {"phase": c.BAKING}, False),
    "the last rollout is settled": ({"memory": {"settled": True}}, {"phase": c.LIVE}, True),
    "routers still know the last rollout": ({"memory": {}}, {"phase": c.LIVE}, False),
    "another one still rolls out": ({"state": "Holding", "memory": {"created": STAMP}}, {"phase": c.FAILED}, False),
}


@pytest.mark.parametrize("case", WHEN)
def test_it_begins_only_at_rest(case: str) -> None:
    rollout, how, begins = WHEN[case]
    rolls = Rollout.model_validate({"arm": "a", "revision": "r2", "stable": "b", "state": "Promoted", "weight": 100, **rollout})
    o = observed(*FIVE[:2], retention={"revisions": 1}, status={"rollout": rolls if rollout else None})
    found = cleaned(o, **how)
    assert found.clean is begins
    assert (found.status.cleaning is not None) is begins
    listed = observed(*FIVE[:2], status={"rollout": rolls if rollout else None}, cleaning=Cleaning(number=3, revisions=["r0"]))
    assert cleaned(listed, **how).clean is begins, "nor is a Job made that was not made yet"


IN_FORCE = Cleaning(number=3, revisions=["r0"], checkpoints=["r1"], failures=1, retry_at=STAMP, forgotten=["r9"])
BROKEN = Failure("infrastructure", "VolumeReadOnly", "the volume is read-only")


def seen(state: Any, number: int = 3, **more: Any) -> dict[str, Run]:
    job = f"bot-clean-{number}"
    return {job: Run(job, state, **more)}


@pytest.mark.parametrize(
    ("result", "freed"), [({"bytes": 3 * 2**30}, "; 3,072.0 MiB are free again"), ({}, ""), ({"bytes": "x"}, ""), ({"bytes": 1e400}, "")]
)
def test_a_job_that_succeeded_is_told_and_over(result: dict[str, Any], freed: str) -> None:
    o = observed(trained("r1"), cleaning=IN_FORCE, runs=seen("Succeeded", result=result))
    found = cleaned(o, phase=c.TRAINING)
    assert found.status.cleaning == Cleaning(number=3, forgotten=["r9"])
    text = f"removed from the work volume: all of revision r0 and checkpoints of revision r1{freed}"
    assert found.notes == (Note("Normal", "Cleaned", text),)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 60), (1, 240), (2, 960), (3, 3840), (4, 15360), (5, 61440), (6, 86400), (600, 86400)]
)
def test_a_job_that_failed_is_tried_again_later_each_time(failures: int, seconds: int) -> None:
    cleaning = IN_FORCE.model_copy(update={"failures": failures, "forgotten": []})
    o = observed(trained("r1"), cleaning=cleaning, runs=seen("Failed", failure=BROKEN))
    found = cleaned(o)
    at = (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found.status.cleaning == cleaning.model_copy(update={"number": 4, "failures": failures + 1, "retry_at": at})
    words = "all of revision r0 and checkpoints of revision r1 could not be removed from the work volume: the volume is read-only"
    assert found.notes == (Note("Warning", c.CLEANING_FAILED, f"{words}; tried again at {at}"),)
    assert (found.clean, found.requeue, found.phase, found.blocked) == (False, seconds, c.LIVE, False)
    assert cleaned(o, requeue=7.0).requeue == 7.0
    assert cleaned(o, requeue=1e9).requeue == seconds


@pytest.mark.parametrize(
    ("cleaning", "words"),
    [
        (Cleaning(number=3, revisions=["r0", "r5"]), "all of revision r0, r5"),
        (Cleaning(number=3, checkpoints=["r1", "r2"]), "checkpoints of revision r1, r2"),
    ],
)
def test_what_was_removed_is_told(cleaning: Cleaning, words: str) -> None:
    o = observed(trained("r1"), cleaning=cleaning, runs=seen("Succeeded"))
    assert cleaned(o).notes[0].message == f"removed from the work volume: {words}"


def test_a_job_that_failed_without_a_cause_is_tried_again_too() -> None:
    found = cleaned(observed(trained("r1"), cleaning=Cleaning(number=3, revisions=["r0"]), runs=seen("Failed")))
    assert "all of revision r0 could not be removed from the work volume: its Job failed; tried again at " in found.notes[0].message


@pytest.mark.parametrize(
    ("retry_at", "begins"),
    [(None, True), (STAMP, True), (LATER, False), ("2026-01-02T12:00:00Z", False), ("2026-01-02T12:00:01Z", True)],
)
def test_it_is_tried_again_at_its_time_and_not_never_because_a_clock_was_ahead(retry_at: str | None, begins: bool) -> None:
    cleaning = Cleaning(number=3, revisions=["r0"], failures=1, retry_at=retry_at)
    assert cleaned(observed(trained("r1"), cleaning=cleaning)).clean is begins


@pytest.mark.parametrize("state", ["Waiting", "Running", "Ending"])
def test_while_a_job_runs_no_other_is_chosen(state: Any) -> None:
    o = observed(*FIVE[:3], retention={"revisions": 1}, cleaning=IN_FORCE, runs=seen(state))
    assert cleaned(o) == resting(o)


def test_what_may_go_meanwhile_joins_what_could_not_be_removed() -> None:
    """But of a revision that the status has forgotten meanwhile not the checkpoints alone."""
    listed = {"revisions": ["r0"], "checkpoints": ["r1", "r3", "r9"], "forgotten": ["r0", "r9"]}
    cleaning = Cleaning(number=4, failures=3, retry_at=LATER, **listed)
    o = observed(trained("r1"), trained("r2"), trained("r3", attempts=5, checkpoints_kept=3), retention={"revisions": 2}, cleaning=cleaning)
    found = cleaned(o)
    assert found.status.cleaning == Cleaning(number=5, revisions=["r0", "r9", "r1"], checkpoints=["r3"])
    assert found.clean, "and at once"


def test_the_list_is_bounded() -> None:
    many = [f"x{n}" for n in range(32)]
    o = observed(trained("r1"), cleaning=Cleaning(number=1, revisions=many, forgotten=["r0"]))
    found = cleaned(o).status.cleaning
    assert found
    assert found.revisions == [*many[1:], "r0"]


@pytest.mark.parametrize(("state", "deleted"), [("Waiting", True), ("Running", True), ("Ending", False), ("Succeeded", False)])
def test_a_job_that_is_not_in_force_is_deleted(state: Any, deleted: bool) -> None:
    for cleaning in (IN_FORCE, Cleaning(number=2), None):
        o = observed(trained("r1"), cleaning=cleaning, runs=seen(state, 2))
        assert cleaned(o, c.TRAINING, obsolete=("bot-r0-fetch",)).obsolete == (
            ("bot-r0-fetch", "bot-clean-2") if deleted else ("bot-r0-fetch",)
        )
    o = observed(trained("r1"), cleaning=IN_FORCE, runs=seen(state))
    assert cleaned(o, c.TRAINING).obsolete == ()


# ---- a revert


def recalled(*revisions: Revision, cleaning: Cleaning | None, runs: dict[str, Run] | None = None) -> tuple[Draft, Draft]:
    o = observed(*revisions, cleaning=cleaning, runs=runs or {})
    return draft(o), retention.recalled(o, draft(o))


def test_a_revision_that_is_kept_is_none_of_its_business() -> None:
    before, after = recalled(make_revision("r2"), cleaning=IN_FORCE, runs=seen("Running"))
    assert after == before
    before, after = recalled(make_revision("r2"), cleaning=None)
    assert after == before


def test_what_a_finetune_of_that_name_began_to_remove_before_it_was_deleted_is_waited_for() -> None:
    _, after = recalled(make_revision("r2"), cleaning=None, runs=seen("Ending"))
    assert after.blocked


@pytest.mark.parametrize("name", ["r0", "r9"])
def test_what_the_spec_asks_for_is_on_no_list_any_more(name: str) -> None:
    listed = IN_FORCE.model_copy(update={"revisions": ["r7", "r0"], "forgotten": ["r9", "r8"]})
    _, after = recalled(trained("r1"), make_revision(name), cleaning=listed)
    called_off = {"number": 4, "revisions": ["r7"]} if name == "r0" else {"forgotten": ["r8"]}
    assert after.status.cleaning == listed.model_copy(update=called_off)
    assert not after.blocked


def test_one_that_was_removed_is_the_newest_again_and_trained_again() -> None:
    first = make_revision("r0", removed="2025-12-01T00:00:00Z", created="2025-11-01T00:00:00Z", attempts=2)
    o = observed(first, trained("r1"), cleaning=Cleaning(number=3), status={"revision": "r0"})
    after = retention.recalled(o, draft(o))
    assert after.status.revisions == [trained("r1"), make_revision("r0", attempts=2)]
    assert after.notes == (Note("Normal", "TrainedAgain", "revision r0 was not kept (retention.revisions): it is trained again"),)


@pytest.mark.parametrize("state", ["Waiting", "Running", "Ending"])
def test_it_begins_once_no_pod_removes_it_any_more(state: Any) -> None:
    _, after = recalled(make_revision("r0"), cleaning=IN_FORCE, runs=seen(state))
    assert (after.blocked, after.phase, after.requeue) == (True, c.PENDING, 5.0)
    assert after.message == "what was left of revision r0 was being removed: it begins anew once the pod that did so has ended"
    _, other = recalled(make_revision("r0", data_digest="d"), cleaning=IN_FORCE, runs=seen(state))
    assert not other.blocked, "its data are there: they were made after that"


@pytest.mark.parametrize("state", ["Succeeded", "Failed", "Absent"])
def test_it_begins_at_once_when_none_does(state: Any) -> None:
    _, after = recalled(make_revision("r0"), cleaning=IN_FORCE, runs=seen(state))
    assert not after.blocked


# ---- what is forgotten


def full(**changes: Any) -> Observed:
    """Ten revisions, r0 to r9, and a spec that asks for another one."""
    known = [trained(f"r{n}") if n != 4 else make_revision("r4") for n in range(10)]
    status = {"revisions": known, "live_revision": "r0", **changes.pop("status", {})}
    return make_observed(known[9], changes={"training": {"learningRate": "7e-3"}}, status=status, revisions={}, **changes)


def test_what_there_is_no_room_for_is_to_be_removed() -> None:
    o = full(status={"cleaning": Cleaning(number=2, forgotten=["r4", "x"])})
    found = current(o, draft(o))
    assert "r4" not in {r.name for r in found.status.revisions}
    assert found.status.cleaning == Cleaning(number=2, forgotten=["x", "r4"])


def test_what_served_before_is_not_forgotten() -> None:
    rolls = Rollout(arm="a", revision="r2", stable="b", state="Promoted", weight=100)
    kept = {"previous_revision": "r1", "rollout": rolls, "revisions": [trained(f"r{n}") for n in range(10)]}
    found = current(full(status=kept), draft(full(status=kept)))
    assert found.status.cleaning == Cleaning(forgotten=["r3"])


def test_what_is_forgotten_is_bounded() -> None:
    o = full(status={"cleaning": Cleaning(forgotten=[f"x{n}" for n in range(32)])})
    found = current(o, draft(o)).status.cleaning
    assert found
    assert found.forgotten == [*(f"x{n}" for n in range(1, 32)), "r4"]


def test_jobs_of_a_revision_that_was_forgotten_count_for_nothing() -> None:
    o = full()
    name = current(o, draft(o)).status.revision
    jobs = [f"bot-{name}-{tail}" for tail in ("fetch", "prepare", "prepare-2", "evaluate", "a1", "a3")]
    others = ["bot-r1-fetch-7", f"bot-{name}x-fetch-9", "bot-clean-4"]
    found = current(*_with_runs(o, [*jobs, *others])).revision
    assert (found.tries, found.attempts) == ({"fetch": 2, "prepare": 3, "evaluate": 2}, 3)
    more = current(*_with_runs(full(status={"attempts": [Attempt(revision=str(name), number=5, started=STAMP)]}), jobs)).revision
    assert more.attempts == 5
    first = make_observed(changes={"training": {"learningRate": "7e-3"}}, status={"revisions": []}, revisions={}, runs=_runs(jobs))
    assert (current(first, draft(first)).revision.tries, current(first, draft(first)).revision.attempts) == ({}, 0), (
        "made anew: they are its own"
    )


def _runs(jobs: list[str]) -> dict[str, Run]:
    return {job: Run(job, "Succeeded") for job in jobs}


def _with_runs(o: Observed, jobs: list[str]) -> tuple[Observed, Draft]:
    return full(status={"attempts": o.status.attempts}, runs=_runs(jobs)), draft(o)


# ---- what served before, and by which name it serves again


@pytest.mark.parametrize(
    ("live", "before", "wanted"), [("r1", None, "r1"), ("r1", "r0", "r1"), ("base", "r0", "r0"), (None, "r0", "r0"), ("r2", "r0", "r0")]
)
def test_a_promotion_remembers_what_served_before(live: str | None, before: str | None, wanted: str) -> None:
    o = observed(trained("r1"), trained("r2"), status={"live_revision": live, "previous_revision": before})
    done = Rollout(arm="a2", revision="r2", stable="a1", state="Promoted", weight=100)
    assert _promoted(draft(o), done).status.previous_revision == wanted


def test_an_arm_of_another_artifact_has_another_name() -> None:
    def named(**kept: Any) -> str:
        o = observed(trained("r1", gate="Passed", artifact="/work/new"), templates={first: {"revision": "r1", **kept}} if first else {})
        wanted = _wanted(o, draft(o))
        assert wanted
        return wanted.name

    first = ""
    first = named()
    assert named() == first, "it was kept before the artifact was noted"
    assert named(artifact="/work/new") == first
    assert named(artifact="/work/old") != first
