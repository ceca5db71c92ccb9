"""What the chaos suite calls duplicate, lost and miscounted; a suite that finds nothing shows little if it cannot find these."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.lives import End, Verdict, compare, twice
from tests.chaos.proxy import Call
from tests.chaos.suite import Suite, table

CHARGES = {"error": 1, "outOfMemory": 0, "infrastructure": 0, "disruption": 0}
SNAPSHOT: dict[str, Any] = {
    "children": ["deployments/bot-a", "jobs/bot-r1-a1"],
    "status": {
        "phase": "Live",
        "revisions": [{"name": "r1", "charges": CHARGES}],
        "attempts": [{"revision": "r1", "number": 1}, {"revision": "r1", "number": 2}],
    },
}


BEGAN = {"r1 a1": [(0, 1)], "r1 a2": [(30, 1)]}


def end(change: Callable[[dict[str, Any]], Any] = lambda _: None, **other: Any) -> End:
    snapshot = copy.deepcopy(SNAPSHOT)
    change(snapshot)
    return End(snapshot, copy.deepcopy(SNAPSHOT), **{"left": ["persistentvolumeclaims/bot-work"], "began": BEGAN, **other})


FOUND: dict[str, tuple[End, dict[str, list[str]]]] = {
    "the same end": (end(), {}),
    "a child that is missing": (end(lambda s: s["children"].pop()), {"lost": ["live: jobs/bot-r1-a1 is missing"]}),
    "a child too many": (end(lambda s: s["children"].append("jobs/x")), {"duplicates": ["live: jobs/x is one too many"]}),
    "another charge": (
        end(lambda s: s["status"]["revisions"][0].update(charges={**CHARGES, "error": 2})),
        {
            "miscounted": [f"live: r1 was charged { ({**CHARGES, 'error': 2}) }, not {CHARGES}"],
            "problems": ["live: the status differs: .revisions[0].charges.error is 2, not 1"],
        },
    ),
    "a checkpoint that was not resumed from": (
        end(began={**BEGAN, "r1 a2": [(0, 1)]}),
        {"lost": ["attempt r1 a2 began at (step, part of the micro-batch) [(0, 1)], not [(30, 1)]"]},
    ),
    "an attempt that began twice": (
        end(began={**BEGAN, "r1 a1": [(0, 1), (0, 1)]}),
        {"lost": ["attempt r1 a1 began at (step, part of the micro-batch) [(0, 1), (0, 1)], not [(0, 1)]"]},
    ),
    "a micro-batch that was halved twice": (
        end(began={**BEGAN, "r1 a2": [(30, 4)]}),
        {"lost": ["attempt r1 a2 began at (step, part of the micro-batch) [(30, 4)], not [(30, 1)]"]},
    ),
    "another status": (
        end(lambda s: s["status"].update(phase="Baking")),
        {"problems": ['live: the status differs: .phase is "Baking", not "Live"']},
    ),
    "something that outlives the deletion": (end(left=["jobs/x"]), {"problems": ["left after deletion: ['jobs/x']"]}),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_differs_is_found(case: str) -> None:
    got, wanted = FOUND[case]
    verdict = Verdict(case)
    compare(got, end(), verdict)
    found = {what: getattr(verdict, what) for what in ("duplicates", "lost", "miscounted", "problems")}
    assert {what: lines for what, lines in found.items() if lines} == wanted
    assert verdict.converged == (not wanted)


def test_a_child_made_again_is_a_duplicate_and_an_event_or_a_refused_one_is_not() -> None:
    job = Call("POST", "jobs", "ns", "bot-a1", code=201)
    refused = Call("POST", "jobs", "ns", "bot-a2", code=409)
    event = Call("POST", "events", "ns", "e", code=201)
    assert twice([job, refused, refused, event, event]) == []
    assert twice([job, job]) == ["jobs/bot-a1 was made 2 times"]


def test_kills_count_one_by_one_and_every_other_scenario_once() -> None:
    suite = Suite(chaos=None)  # type: ignore[arg-type]
    suite.verdicts = [Verdict("killed after every write", disturbed=90), Verdict("410", disturbed=1, lost=["x"])]
    assert suite.report() == {"kills": 91, "converged": 90, "duplicates": 0, "lost": 1, "miscounted": 0}
    assert "410" in table(suite.verdicts)
