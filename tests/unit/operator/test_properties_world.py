"""Any sequence of edits, failures, deletions, kills and late watches ends where the last spec says, and then nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from finetune_operator import conditions as c
from finetune_operator import errors, kinds, names
from finetune_operator.decide.control import MEANING
from finetune_operator.kinds import CHILDREN, FINETUNE
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.operator.helpers import edit, good_outcomes, make_finetune, make_spec, scores, status_of
from tests.unit.operator.walks import RATES, SPECS, examples, revision_of
from tests.unit.operator.world import INDEX, JOB_NAME, TERMINAL, Killed, Object, Operator, Outcome, World

CODES = {"error": 1, "user": 20, "outOfMemory": 21, "stalled": 22, "nonFinite": 23, "infrastructure": 24, "disruption": 25, "killed": 137}
REST = 600  # cycles in which everything has come to rest
STILL = 60  # cycles in a row without a change: what polls on, such as a rollout that is held, is at rest as well
STAGES = (*names.STAGES, names.CLEAN)


@dataclass
class Life:
    """A world, the operator in it, and what the user and the cluster did to it."""

    world: World = field(default_factory=lambda: World(outcomes=good_outcomes()))
    retries: int = 0
    removed: list[str] = field(default_factory=list)  # Jobs that somebody else deleted

    def __post_init__(self) -> None:
        if not list(self.world.api.all(FINETUNE)):
            self.world.api.put(FINETUNE, make_finetune())
        self.operator = Operator(self.world)
        self.moved = True

    def go_on(self, cycles: int) -> None:
        """So many cycles, or fewer if nothing moves any more; what must always hold is asked after each."""
        world, still = self.world, 0
        for _ in range(cycles):
            before, requeue = world.api.version, 0.2
            try:
                requeue = asyncio.run(self.operator.cycle())  # type: ignore[assignment]
            except Killed:
                self.operator = Operator(world)
            except (errors.Conflict, errors.NotFound):
                pass
            world.turn()
            _always(self)
            moved = world.api.version != before
            still = 0 if moved else still + 1
            if still >= STILL or (not moved and (requeue is None or status_of(world).get("reason") == c.INVALID_SPEC)):
                return
            world.clock.seconds += 1.0 if moved else min(requeue or 1.0, 60.0)
        assert cycles < REST, f"it never comes to rest: {status_of(world)}"

    def spec(self, name: str) -> None:
        wanted = make_spec(**SPECS[name])
        edit(self.world, **{**dict.fromkeys(self.world.api.store[FINETUNE, "ml", "bot"]["spec"]), **wanted})

    def invalid(self, _: int) -> None:
        edit(self.world, training={"learningRate": "fast"})

    def retry(self, _: int) -> None:
        self.retries += 1
        edit(self.world, annotations={names.RETRY: str(self.retries)})

    def asks(self, luck: int) -> None:
        """Something is asked of the rollout that runs, or of one that does not."""
        running = (status_of(self.world).get("rollout") or {}).get("name", "none")
        self._annotate(f"{list(MEANING)[luck % 4]}:{running if luck % 5 else 'another'}")

    def _annotate(self, asked: str) -> None:
        found = self.world.api.store[FINETUNE, "ml", "bot"]
        kept = {**found["metadata"].get("annotations", {}), names.CONTROL: asked}
        self.world.api.change(FINETUNE, found, {**found, "metadata": {**found["metadata"], "annotations": kept}})

    def ends_badly(self, luck: int) -> None:
        """The next Job of a stage fails, in one class or another."""
        draw = Random(luck)
        stage, kind = draw.choice(STAGES), draw.choice(list(CODES))
        error = {"error": {"reason": "Reason", "message": f"{kind} in {stage}"}} if draw.random() < 0.7 else {}
        self.world.outcomes[stage] = [Outcome(error, code=CODES[kind]), *good_outcomes()[stage]]

    def cleaning_ends_badly(self, luck: int) -> None:
        """The next Job that cleans the volume fails, or runs on half way."""
        self.world.outcomes[names.CLEAN] = [Outcome(never=True)] if luck % 2 else [Outcome(code=24), *good_outcomes()[names.CLEAN]]

    def revert_to_what_is_removed(self, luck: int) -> None:
        """Or is about to be; to anything else where nothing is."""
        status = status_of(self.world)
        gone = {*status.get("cleaning", {}).get("revisions", ()), *(r["name"] for r in status["revisions"] if "removed" in r)}
        choice = [name for name in RATES if revision_of(name) in gone] or RATES
        self.spec(choice[luck % len(choice)])

    def runs_on(self, luck: int) -> None:
        self.world.outcomes[STAGES[luck % len(STAGES)]] = [Outcome(never=True)]

    def ends_well(self, _: int) -> None:
        self.world.outcomes.update(good_outcomes())

    def scores_badly(self, _: int) -> None:
        self.world.outcomes["evaluate"] = [Outcome(scores(0.1, (-0.3, -0.1)))]

    def canary_fails(self, _: int) -> None:
        live = status_of(self.world).get("liveArm")
        self.world.failing = lambda arm: 0.0 if arm == live else 0.5

    def image_breaks(self, luck: int) -> None:
        self.world.broken.add(("trainer:1", "other:1", "router:1")[luck % 3])

    def refuses(self, luck: int) -> None:
        refused = (kinds.JOB, kinds.DEPLOYMENT, kinds.CONTROLLER_REVISION, kinds.PVC)[luck % 4]
        self.world.api.refuses = lambda kind, _: kind is refused

    def delete(self, luck: int) -> None:
        """Somebody deletes a child."""
        kind = (kinds.POD, kinds.POD, kinds.JOB, kinds.DEPLOYMENT, kinds.SERVICE, kinds.CONFIGMAP)[luck % 6]
        there = sorted(o["metadata"]["name"] for o in self.world.api.all(kind))
        if there:
            name = there[luck % len(there)]
            self.removed.append(name)
            self.world.api.remove(kind, "ml", name)

    def kill(self, luck: int) -> None:
        """The operator ends after one of its next writes, and after each one from then on."""
        self.world.api.mortal = luck % 6

    def restart(self, luck: int) -> None:
        """Another operator takes over; a watch of it is late."""
        kind = CHILDREN[luck % len(CHILDREN)]
        self.operator = Operator(self.world, late={kind: luck % 4} if kind is not kinds.POD else {})

    def time_jumps(self, luck: int) -> None:
        self.world.clock.seconds += (60, 3600, 86400)[luck % 3]

    def calm(self) -> None:
        """Nothing goes wrong any more, for more users than ever; what hangs on an image that was not there is made anew.

        A day has passed: what could not be removed from the volume is tried again. Nothing is asked of a rollout any more."""
        world = self.world
        world.clock.seconds += 86400
        self._annotate("")
        world.per_turn *= 1000  # what failed before in the same step is soon outweighed
        world.outcomes.update(good_outcomes())
        world.broken.clear()
        world.failing, world.api.refuses, world.api.mortal = lambda arm: 0.0, lambda kind, obj: False, None
        for pod in [p for p in world.api.all(kinds.POD) if p["status"].get("phase") == "Pending"]:
            world.api.remove(kinds.POD, "ml", pod["metadata"]["name"])


EVENTS: tuple[Callable[[Life, Any], None], ...] = (
    Life.invalid, Life.retry, Life.asks, Life.asks, Life.ends_badly, Life.ends_badly, Life.runs_on, Life.ends_well, Life.scores_badly,
    Life.canary_fails, Life.image_breaks, Life.refuses, Life.delete, Life.delete, Life.kill, Life.kill, Life.restart, Life.time_jumps,
)  # fmt: skip
EVENT = st.one_of(
    st.tuples(st.just(Life.spec), st.sampled_from(list(SPECS))),
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 1000)),
)


@examples(60)
@given(st.lists(st.tuples(EVENT, st.sampled_from([0, 1, 2, 3, 5, 8, 13, 30])), min_size=1, max_size=8))
def test_any_sequence_of_events_ends_where_the_last_spec_says(events: list[tuple[tuple[Any, Any], int]]) -> None:
    life = Life()
    for (event, argument), cycles in events:
        event(life, argument)
        life.go_on(cycles)
    life.calm()
    life.go_on(REST)
    _ends_as_the_spec_says(life)
    _nothing_is_written_at_rest(life)


@cache
def _after_edits(edits: int, *, half_way: bool = False) -> World:
    """So many revisions were live; `half_way`: what is removed after the last one is not removed yet."""
    life = Life() if edits == 1 else Life(_after_edits(edits - 1).clone())
    life.world.outcomes["evaluate"] = [Outcome(scores(0.85, (0.0, 0.1)))] if edits > 1 else life.world.outcomes["evaluate"]
    life.world.outcomes[names.CLEAN] = [Outcome(never=True)] if half_way else good_outcomes()[names.CLEAN]
    life.spec(RATES[edits % len(RATES)])
    life.go_on(REST - 1)
    assert status_of(life.world)["phase"] == c.LIVE
    return life.world


REVERT = st.one_of(
    st.tuples(st.just(Life.revert_to_what_is_removed), st.integers(0, 3)),
    st.tuples(st.just(Life.spec), st.sampled_from([*RATES, *RATES, "keeps one", "suspended", "train only", "other server"])),
    st.tuples(
        st.sampled_from((Life.kill, Life.kill, Life.restart, Life.delete, Life.refuses, Life.cleaning_ends_badly)), st.integers(0, 1000)
    ),
)


@examples(30)
@given(
    st.integers(2, 5), st.booleans(), st.lists(st.tuples(REVERT, st.sampled_from([0, 1, 2, 3, 5, 8, 13, 30, 60])), min_size=1, max_size=8)
)
def test_whatever_retention_removes_any_sequence_of_reverts_ends_where_the_last_spec_says(
    edits: int, half_way: bool, events: list[tuple[tuple[Any, Any], int]]
) -> None:
    life = Life(_after_edits(edits, half_way=half_way).clone())
    for (event, argument), cycles in events:
        event(life, argument)
        life.go_on(cycles)
    life.calm()
    life.world.outcomes["evaluate"] = [Outcome(scores(0.85, (0.0, 0.1)))]
    life.go_on(REST)
    _ends_as_the_spec_says(life)
    _nothing_is_written_at_rest(life)


def test_a_third_arm_is_not_made_before_the_first_is_gone() -> None:
    """A rollout followed by another one, with the operator killed after every write: found at random once."""
    life = Life()
    life.go_on(16)
    life.spec("other rate")
    life.kill(0)
    life.go_on(60)
    assert len(status_of(life.world)["revisions"]) == 2
    assert any(name == "bot-fa918398" for kind, name in life.world.api.births if kind == "Deployment"), "the second rollout has begun"


def _always(life: Life) -> None:
    """What holds after every cycle, whatever the last one was cut off by."""
    world = life.world
    gangs = {
        p["metadata"]["labels"][JOB_NAME]
        for p in world.api.all(kinds.POD)
        if INDEX in p["metadata"]["annotations"] and p["status"].get("phase") not in TERMINAL and _trains(p["metadata"]["labels"][JOB_NAME])
    }
    assert len(gangs) <= 1, f"two gangs at once: {gangs}"
    arms = [d for d in world.api.all(kinds.DEPLOYMENT) if names.ARM in d["metadata"]["labels"]]
    assert len(arms) <= 2, "at most two arms"
    for (kind, name), count in world.api.births.items():
        if kind == "Job" and _trains(name):
            assert count <= 1 + life.removed.count(name), f"{name} was made twice"
    kept = {r["metadata"]["labels"][names.REVISION] for r in world.api.all(kinds.CONTROLLER_REVISION)}
    for job in (j["metadata"]["labels"] for j in world.api.all(kinds.JOB)):
        assert job[names.STAGE] in ("fetch", names.CLEAN) or job[names.REVISION] in kept, f"{job}: what its revision is, is not kept"
    status = status_of(world)
    assert status.get("phase", c.PENDING) in c.PHASES
    assert world.lacked == [], "nothing is removed that a stage or an arm needs"


def _trains(job: str) -> bool:
    return job.rsplit("-", 1)[1].startswith("a")


def _ends_as_the_spec_says(life: Life) -> None:
    world, status = life.world, status_of(life.world)
    spec = world.api.store[FINETUNE, "ml", "bot"]["spec"]
    revision = next((r for r in status.get("revisions", ()) if r["name"] == status.get("revision")), {})
    if spec["training"]["learningRate"] == "fast":
        assert (status["phase"], status["reason"]) == (c.FAILED, c.INVALID_SPEC)
    elif spec.get("compute", {}).get("accelerator") == "b9":
        assert status["reason"] == c.INVALID_SPEC or status["phase"] in ENDS, "said, unless nothing is to be made"
    elif status["phase"] in (c.FAILED, c.REJECTED):
        arms = [a for a in status.get("arms", ()) if a["revision"] == status["revision"]]
        said = {x["stopped"]["reason"] for x in (revision, *arms) if "stopped" in x}
        assert status["reason"] in said | EXPECTED_REFUSALS, f"{status['reason']} is not what stopped it: {said}"
    elif spec.get("suspend"):
        assert status["phase"] == c.SUSPENDED
    elif "serving" not in spec:
        assert status["phase"] in (c.TRAINED_ONLY, c.NOT_NEEDED)
        assert not list(world.api.all(kinds.DEPLOYMENT))
    else:
        assert status["phase"] in (c.LIVE, c.NOT_NEEDED)
        assert status["liveRevision"] == (status["revision"] if status["phase"] == c.LIVE else status["liveRevision"])
        live = [d for d in world.api.all(kinds.DEPLOYMENT) if names.ARM in d["metadata"]["labels"]]
        assert [d["metadata"]["labels"][names.ARM] for d in live] == [status["liveArm"]], "one arm serves"
        assert live[0]["spec"]["replicas"] == spec["serving"]["replicas"]
        kept = world.api.store[kinds.CONTROLLER_REVISION, "ml", f"bot-{status['liveArm']}"]["data"]
        image = kept["template"]["spec"]["containers"][0]["image"]
        assert image == spec["serving"].get("image", image) or status["phase"] == c.NOT_NEEDED
        versions = {world.served(p["metadata"]["name"])[1] for p in world.api.all(kinds.POD) if _routes(p)}
        assert versions == {None}, "no router knows another arm"


ENDS = (c.LIVE, c.TRAINED_ONLY, c.NOT_NEEDED, c.SUSPENDED, c.FAILED, c.REJECTED)
EXPECTED_REFUSALS = {c.INVALID_SPEC, c.BUDGET_EXHAUSTED, c.PRICE_UNKNOWN, c.NEEDS_SHARED_VOLUME, c.DOES_NOT_FIT}


def _routes(pod: Object) -> bool:
    return pod["metadata"]["labels"].get(names.COMPONENT) == "router"


def _nothing_is_written_at_rest(life: Life) -> None:
    if status_of(life.world).get("reason") == c.INVALID_SPEC and status_of(life.world)["phase"] != c.FAILED:
        return  # what cannot be made is tried again and again
    life.world.api.writes.clear()
    for days in (0, 1):
        life.world.clock.seconds += days * 86400
        asyncio.run(Operator(life.world).cycle())
        assert life.world.api.writes == [], "a restart writes nothing for what is settled"
