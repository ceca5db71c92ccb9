"""Decisions, whole: everything that each case of the tables decides, as the reader of `decisions.yaml` last approved it.

    python3 tools/env.py dev python -m tests.unit.operator.recorded     write it anew; read the difference before you commit it

The tables' own tests say what a case is about; this says that nothing else moved with it: messages, Events, when to look again,
what is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from finetune_operator import conditions as c
from finetune_operator.api.status import Arm, Rollout, Stage
from finetune_operator.decide import decide
from finetune_operator.decide.arms import rollout as arms
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.rollout import states
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.decide.rollout.scene import Step
from finetune_operator.observed import ArmHealth, Observed
from finetune_operator.workloads.run import Waiting

from tests.unit.operator.helpers import STAMP, draft, make_observed, make_revision
from tests.unit.operator.test_rollout import (
    BAD,
    BOTH_BAD,
    CHOICES,
    EMPTY,
    FINE,
    HEALTHY,
    LIVE,
    MOVES,
    NEW,
    OTHER,
    PASSED,
    PLAN,
    PROMOTED,
    READY,
    REJECTED,
    SETTLED,
    UNSEEN,
    UNSETTLED,
    WITH_OTHER,
    router,
)  # fmt: skip
from tests.unit.operator.test_stages import STAGES, TRAINS, trains

FILE = Path(__file__).with_name("decisions.yaml")
BASE_LIVE: dict[str, Any] = {
    "live_arm": "0ld",
    "live_revision": "base",
    "arms": [Arm(name="0ld", revision="base"), Arm(name=NEW, revision="r1")],
}
COUNTS = "router-0@2026-01-01T11:00:00Z"
BOTH = {"0ld": READY, NEW: READY}
TEMPLATE = {"template": {"spec": {"containers": [{"readinessProbe": {"httpGet": {"path": "/up"}}}, {}]}}}
TEMPLATES = {"0ld": {"revision": "base", **TEMPLATE}, NEW: {"revision": "r1", **TEMPLATE}}
LATER = "2026-01-01T12:00:04Z"
OLD = Waiting(c.IMAGE_UNAVAILABLE, "image x cannot be pulled")
DEPLOYING = Stage(name="deploy", revision="r1", started=STAMP)


def changed(before: Any, after: Any) -> Any:
    """What is new or other in `after`; None for what is gone. Entries of lists are told apart by what they are of."""
    if isinstance(after, list) and after and isinstance(after[0], dict):
        before, after = ({_of(x): x for x in entries or []} for entries in (before, after))
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    found = {k: changed(before.get(k), v) for k, v in after.items() if v != before.get(k)}
    return {**found, **{k: None for k in before if k not in after}}


def _of(entry: dict[str, Any]) -> str:
    return " of ".join(str(entry[k]) for k in ("number", "name", "revision") if k in entry)


def of_step(rolls: Rollout, step: Step) -> dict[str, Any]:
    moved = changed(rolls.model_dump(by_alias=True, exclude_defaults=True), step.rollout.model_dump(by_alias=True, exclude_defaults=True))
    return _said({"message": step.message, "reason": step.reason, "pushes": dict(step.pushes), "rollout": moved})


def of_draft(o: Observed, d: Draft) -> dict[str, Any]:
    routing = d.routing and {"structure": d.routing.structure.version, "weight": d.routing.weight, "pushes": dict(d.routing.pushes)}
    moved = changed(o.status.model_dump(by_alias=True, exclude_defaults=True), d.status.model_dump(by_alias=True, exclude_defaults=True))
    return _said(
        {
            "phase": d.phase,
            "reason": d.reason,
            "message": d.message,
            "requeue": d.requeue,
            "blocked": d.blocked,
            "jobs": [f"{j.stage} {j.number} of {j.revision}" for j in d.jobs],
            "obsolete": list(d.obsolete),
            "arms": [f"{a.name} of {a.revision}" for a in d.arms],
            "routing": routing,
            "serving": d.serving and repr(d.serving),
            "events": [f"{n.type} {n.reason}: {n.message}" for n in d.notes],
            "status": moved,
        }
    )


def _said(block: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in block.items() if v not in (None, "", {}, [], ())}


# ---- which arm: what the table of choices leaves out


def rolls(state: str, weight: int = 0, *, step: int = 0, **changes: Any) -> dict[str, Any]:
    """A status in which r1's arm rolls out against the base model."""
    memory = {"created": STAMP, "since": STAMP, "began": STAMP, "seconds": 4.0, "counted": {COUNTS: {}}, **changes.pop("memory", {})}
    running = Rollout(arm=NEW, revision="r1", stable="0ld", state=state, weight=weight, step=step, steps=3, memory=memory)
    return {**BASE_LIVE, "rollout": running.model_copy(update=changes.pop("rollout", {})), **changes}


def seen(*routers: Any, **changes: Any) -> dict[str, Any]:
    return {"arms": BOTH, "templates": TEMPLATES, "routers_wanted": 2, "routers": routers, **changes}


def version(o: Observed) -> str:
    """Of the structure with both arms (or of the steady one, where nothing rolls out)."""
    running = o.status.rollout
    if running and running.state in states.ACTIVE:
        o = replace(o, status=o.status.model_copy(update={"rollout": running.model_copy(update={"state": states.CONNECTING})}))
        routing = arms(o, draft(o)).routing
    else:
        routing = _busy(o).routing
    assert routing
    return routing.structure.version


def in_force(o: Observed, weight: int, canary: dict[str, Any] = FINE, *others: str) -> Observed:
    """The same, with a router that serves the structure with that weight; `others` serve other versions, the last one not yet ready."""
    totals = {"0ld": canary["totals"]["old"], NEW: canary["totals"]["new"]}
    one = router(version=version(o), weight=weight, totals=totals)
    more = tuple(replace(one, pod=f"router-{n}", version=v, ready=v != "starting") for n, v in enumerate(others, 1))
    return replace(o, routers=(one, *more))


DECIDED, AT_REST = {"last_decision": "then: step 1", "next_step_at": LATER}, {"settled": True}
BAKED = {"rollout": {"next_step_at": STAMP}}
SCENES: dict[str, Callable[[], Observed]] = {
    "train only: the artifact is the end": lambda: make_observed(PASSED, changes={"serving": None}),
    "train only, and nothing is trained yet": lambda: make_observed(make_revision(), changes={"serving": None}),
    "serving was removed": lambda: make_observed(PROMOTED, status={**LIVE, **SETTLED}, changes={"serving": None}, **HEALTHY),
    "training was not needed: the base model is to serve": lambda: make_observed(make_revision(gate="NotNeeded")),
    "training was not needed: a tuned revision goes on serving": lambda: make_observed(
        make_revision(gate="NotNeeded"), status={**LIVE, **SETTLED}, **HEALTHY
    ),
    "training was not needed: the base model serves already, and its server was changed": lambda: make_observed(
        make_revision(gate="NotNeeded"), status={**BASE_LIVE, **UNSETTLED}, arms=BOTH, changes=WITH_OTHER
    ),
    "a base arm that never got ready is made as the spec is now": lambda: make_observed(PASSED, status=BASE_LIVE, arms={"0ld": EMPTY}),
    "a base arm that is ready stays": lambda: make_observed(PASSED, status={**BASE_LIVE, **SETTLED}, arms={"0ld": ArmHealth(1, 1, 1)}),
    "a base arm that was promoted stays though it is down": lambda: make_observed(
        PASSED, status={**BASE_LIVE, **SETTLED, "arms": [Arm(name="0ld", revision="base", promoted=True)]}, arms={"0ld": EMPTY}
    ),
    "nothing may serve yet": lambda: make_observed(make_revision(artifact="/a")),
    "it rolls out without steps and identity in the spec": lambda: make_observed(PASSED, changes={"rollout": {}}),
    "headers and body fields tell the users": lambda: make_observed(
        PASSED, changes={"rollout": {"identity": [{"header": "x-tenant"}, {"bodyField": "user"}]}}
    ),
    "it serves with vLLM": lambda: make_observed(PASSED, changes={"compute": {"accelerator": "h100"}}),
    "it serves an image of the user's with vLLM": lambda: make_observed(
        PASSED, changes={"compute": {"accelerator": "h100"}, "serving": {"image": "mine:1"}}
    ),
    "many arms were refused: the live one and the last eight are remembered": lambda: make_observed(
        PROMOTED, status={**LIVE, **SETTLED, "arms": [*(Arm(name=f"a{n}", revision="r0") for n in range(9)), *LIVE["arms"]]},
        changes=WITH_OTHER, **HEALTHY,
    ),
    "an arm that was refused is tried again": lambda: make_observed(
        PROMOTED, status={**LIVE, **SETTLED, "arms": [Arm(name=OTHER, revision="r1", stopped=REJECTED), *LIVE["arms"]]},
        changes=WITH_OTHER, retry="t2", **HEALTHY,
    ),
    "an arm that was promoted before takes all users at once": lambda: in_force(
        make_observed(PASSED, status={**rolls("Connecting"), "arms": [Arm(name=NEW, revision="r1", promoted=True)]}, **seen()), 0
    ),
    "another server, the wanted arm was refused": lambda: make_observed(
        PROMOTED, status={**LIVE, **SETTLED, "arms": [*LIVE["arms"], Arm(name=OTHER, revision="r1", stopped=REJECTED)]},
        changes=WITH_OTHER, **HEALTHY,
    ),
    "both arms are ready": lambda: make_observed(PASSED, status=rolls("Deploying", stages=[DEPLOYING]), **seen(UNSEEN)),
    "its pods do not start": lambda: make_observed(
        PASSED, status=rolls("Deploying"), **seen(arms={"0ld": READY, NEW: replace(EMPTY, waiting=OLD)})
    ),
    "its pods do not start while another revision trains": lambda: make_observed(
        make_revision("r2"), PASSED, status=rolls("Deploying"), **seen(arms={"0ld": READY, NEW: replace(EMPTY, waiting=OLD)})
    ),
    "every router knows both": lambda: in_force(make_observed(PASSED, status=rolls("Connecting", stages=[DEPLOYING]), **seen()), 0),
    "ten per cent are on it": lambda: in_force(make_observed(PASSED, status=rolls("Shifting", 10, step=1), **seen()), 10),
    "suspended on the way": lambda: in_force(
        make_observed(PASSED, status=rolls("Holding", 10, step=1, **BAKED), changes={"suspend": True}, **seen()), 10
    ),
    "both arms fail: held": lambda: in_force(make_observed(PASSED, status=rolls("Holding", 10, step=1, **BAKED), **seen()), 10, BOTH_BAD),
    "it fails: everybody back": lambda: in_force(make_observed(PASSED, status=rolls("Holding", 10, step=1), **seen()), 10, BAD),
    "all are on it": lambda: in_force(make_observed(PASSED, status=rolls("Shifting", 100, step=3), **seen()), 100),
    "baked": lambda: in_force(make_observed(PASSED, status=rolls("Baking", 100, step=3, **BAKED), **seen()), 100),
    "baked, and its revision was forgotten meanwhile": lambda: in_force(
        make_observed(make_revision("r2"), status=rolls("Baking", 100, step=3, **BAKED), **seen()), 100
    ),
    "another revision passed its gate": lambda: in_force(
        make_observed(make_revision("r2", gate="Passed", artifact="/b"), PASSED, status=rolls("Holding", 10, step=1), **seen()), 10
    ),
    "another revision did not pass": lambda: in_force(
        make_observed(make_revision("r2", gate="Failed"), PASSED, status=rolls("Holding", 10, step=1), **seen()), 10
    ),
    "its server was changed": lambda: in_force(
        make_observed(PASSED, status=rolls("Holding", 10, step=1), changes=WITH_OTHER, **seen()), 10
    ),
    "it does not pass the gate any more": lambda: in_force(
        make_observed(make_revision(gate="Failed", artifact="/a"), status=rolls("Holding", 10, step=1), **seen()), 10
    ),
    "everybody is back": lambda: in_force(
        make_observed(PASSED, status=rolls("RollingBack", memory={"reason": "GuardFailed", "cause": "errors."}), **seen()), 0
    ),
    "everybody is back, for no reason that is known": lambda: in_force(make_observed(PASSED, status=rolls("RollingBack"), **seen()), 0),
    "everybody is back, for another arm": lambda: in_force(
        make_observed(PASSED, status=rolls("RollingBack", memory={"reason": "Superseded", "cause": "r2"}), changes=WITH_OTHER, **seen()), 0
    ),
    "what is live for long is down, and the new arm is ready": lambda: make_observed(
        PASSED, status=rolls("Deploying", memory={"dark": "2026-01-01T11:59:20Z"}, arms=[Arm(name="0ld", revision="base", promoted=True)]),
        **seen(arms={"0ld": EMPTY, NEW: READY}),
    ),
    "what never served is down": lambda: make_observed(
        PASSED, status=rolls("Deploying", memory={"dark": "2026-01-01T11:59:20Z"}), **seen(arms={"0ld": EMPTY, NEW: READY})
    ),
    "it is live and no router knows": lambda: make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, **HEALTHY),
    "it is live, and the one that it replaced still runs": lambda: make_observed(
        PROMOTED, status={**LIVE, **UNSETTLED}, arms=BOTH, templates=TEMPLATES, routers=(UNSEEN, router("router-1", ready=False))
    ),
    "it is live and down": lambda: make_observed(PROMOTED, status={**LIVE, **SETTLED}, arms={NEW: EMPTY}),
    "it is live and its pods wait": lambda: make_observed(PROMOTED, status={**LIVE, **SETTLED}, arms={NEW: replace(EMPTY, waiting=OLD)}),
    "the steps of a spec without any: the first": lambda: in_force(
        make_observed(PASSED, status=rolls("Connecting"), changes={"rollout": {}}, **seen()), 0
    ),
    "the steps of a spec without any: the second": lambda: in_force(
        make_observed(PASSED, status=rolls("Holding", 10, step=1, **BAKED), changes={"rollout": {}}, **seen()), 10
    ),
    "the steps of a spec without any: the last": lambda: in_force(
        make_observed(PASSED, status=rolls("Holding", 50, step=2, **BAKED), changes={"rollout": {}}, **seen()), 50
    ),
    "what was decided before is told once": lambda: in_force(
        make_observed(PASSED, status=rolls("Holding", 10, step=1, rollout=DECIDED), **seen()), 10
    ),
    "it is live, a router knows and another one starts": lambda: in_force(
        make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, arms=BOTH, templates=TEMPLATES), 0, FINE, "starting"
    ),
    "it is live, one router knows and another does not": lambda: in_force(
        make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, arms=BOTH, templates=TEMPLATES), 0, FINE, "another"
    ),
    "it is live with one pod, and the routers know": lambda: in_force(
        make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, arms={NEW: ArmHealth(2, 1, 2)}), 0
    ),
    "it is live and down, and the routers know": lambda: in_force(
        make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, arms={NEW: EMPTY}), 0
    ),
    "it is live for long, and a router that is asked knows": lambda: in_force(
        make_observed(PROMOTED, status={**LIVE, **SETTLED}, **HEALTHY), 0
    ),
    "the first arm is live, and its routers know": lambda: make_observed(
        PROMOTED, status={**LIVE, "rollout": Rollout(arm=NEW, revision="r1", stable=NEW, state="Promoted", weight=0, memory=AT_REST)},
        **HEALTHY,
    ),
    "another server, and one router does not know what is live": lambda: in_force(
        make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, changes=WITH_OTHER, **HEALTHY), 0, FINE, "another"
    ),
    "another server, the routers know, and it was never said to be settled": lambda: in_force(
        make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, changes=WITH_OTHER, **HEALTHY), 0
    ),
    "baked, after it was refused once": lambda: in_force(
        make_observed(
            make_revision(artifact="/a", gate="Failed", stopped=REJECTED),
            status=rolls("Baking", 100, step=3, **BAKED, arms=[Arm(name=NEW, revision="r1", stopped=REJECTED)]), **seen(),
        ), 100,
    ),
    "baked, while its revision is scored again": lambda: in_force(
        make_observed(
            make_revision(artifact="/a", stopped=REJECTED),
            status=rolls("Baking", 100, step=3, **BAKED, arms=[Arm(name=NEW, revision="r1", stopped=REJECTED)]), **seen(),
        ), 100,
    ),
    "another server, all is settled, and a router is behind": lambda: make_observed(
        PROMOTED, status={**LIVE, **SETTLED}, changes=WITH_OTHER, routers=(UNSEEN,), **HEALTHY
    ),
    "everybody is back, for a long story": lambda: in_force(
        make_observed(PASSED, status=rolls("RollingBack", memory={"reason": "GuardFailed", "cause": "w" * 2000}), **seen()), 0
    ),
    "train only, and nothing ever served": lambda: make_observed(
        PASSED, status={"rollout": SETTLED["rollout"]}, changes={"serving": None}
    ),
    "the first arm is not ready yet": lambda: make_observed(PROMOTED, status=LIVE, arms={NEW: EMPTY}),
    "the first arm is ready and its routers are not": lambda: make_observed(PROMOTED, status=LIVE, **HEALTHY),
    "the first arm is ready and its routers wait": lambda: make_observed(PROMOTED, status=LIVE, router_waiting=OLD, **HEALTHY),
}  # fmt: skip


BUSY = (
    "train only, and nothing is trained yet", "serving was removed", "nothing may serve yet", "its pods do not start",
    "ten per cent are on it", "both arms fail: held", "baked", "everybody is back", "everybody is back, for another arm",
    "it is live and down", "training was not needed: the base model is to serve",
    "another server, all is settled, and a router is behind",
)  # fmt: skip


HELD = (
    "it is live and down", "another server, and one router does not know what is live", "another server, the wanted arm was refused",
    "baked", "everybody is back", "its server was changed",
)  # fmt: skip
LONG = "attempt 1 is starting " * 46


def decisions() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(case, what it decides)."""
    for case, (rolling, scene, _) in MOVES.items():
        yield f"rollout: {case}", lambda r=rolling, s=scene: of_step(r, advance(PLAN, s, r))  # type: ignore[misc]
    for case, (known, given, _) in STAGES.items():
        yield f"stage: {case}", lambda k=known, g=given: _decided(make_observed(make_revision(**k), **g), decide)  # type: ignore[misc]
    for case, (given, *_) in TRAINS.items():
        yield f"training: {case}", lambda g=given: _trained(g)  # type: ignore[misc]
    for case, (status, given, spec, _) in CHOICES.items():
        yield (
            f"arms: {case}",
            lambda s=status, g=given, x=spec: _decided(make_observed(PROMOTED, status=s, changes=x, **g), _arms),  # type: ignore[misc]
        )
    for case, scene_of in SCENES.items():
        yield f"arms: {case}", lambda s=scene_of: _decided(s(), _arms)  # type: ignore[misc]
    for case in HELD:
        yield f"arms: suspended: {case}", lambda s=SCENES[case]: _decided(s(), _held)  # type: ignore[misc]
    yield "arms: a long story besides a rollout", lambda: _decided(SCENES["its pods do not start"](), _talking)
    for case in BUSY:
        yield f"arms: while another revision trains: {case}", lambda s=SCENES[case]: _decided(s(), _busy)  # type: ignore[misc]


def _arms(o: Observed) -> Draft:
    return arms(o, draft(o))


def _busy(o: Observed) -> Draft:
    return arms(o, draft(o).block(c.TRAINING, "attempt 1 is starting", requeue=30.0))


def _held(o: Observed) -> Draft:
    return arms(o, draft(o).block(c.SUSPENDED, "suspend is true"))


def _talking(o: Observed) -> Draft:
    return arms(o, draft(o).block(c.TRAINING, LONG))


def _trained(given: dict[str, Any]) -> dict[str, Any]:
    found = trains(**given)
    return of_draft(make_observed(), found)


def _decided(o: Observed, rules: Callable[[Observed], Draft]) -> dict[str, Any]:
    return of_draft(o, rules(o))


def read() -> dict[str, Any]:
    """What was approved, by case."""
    return dict(yaml.safe_load(FILE.read_text()))


if __name__ == "__main__":
    FILE.write_text(yaml.safe_dump({case: block() for case, block in decisions()}, sort_keys=False, width=140, allow_unicode=True))
