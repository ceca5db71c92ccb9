"""Does the run fit where it is asked to go? Of the volume it is asked at once, of memory as soon as prepare has estimated it.

Both are asked again in every cycle: an edit of `compute` or of `training.gradientCheckpointing` goes on by itself. Only the layout that an
attempt began with is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from finetune_operator import conditions
from finetune_operator.api.blocks.compute import shardable
from finetune_operator.api.blocks.method import PROMPTS
from finetune_operator.api.blocks.training import Training
from finetune_operator.api.quantities import quantity
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Attempt, Estimate
from finetune_operator.build.pods import ANY_GPU, Accelerator
from finetune_operator.decide.attempts import running
from finetune_operator.decide.draft import Draft
from finetune_operator.observed import Observed


@dataclass(frozen=True)
class Layout:
    """How ranks hold a model: of the estimate's components, which they divide among them and which lie in the host's memory; `once` are
    those that others do without. `recompute`: layers keep their inputs alone and compute their activations again."""

    sharding: str
    offload: str = "None"
    divided: frozenset[str] = frozenset()
    hosted: frozenset[str] = frozenset()
    once: frozenset[str] = frozenset()
    recompute: bool = False

    @property
    def title(self) -> str:
        """As the status tells it, and as it is read back: what a title says it says for ever."""
        offload = "" if self.offload == "None" else f", offload {self.offload}"
        return f"{self.sharding}{offload}{', activations recomputed' if self.recompute else ''}"

    @property
    def asked(self) -> tuple[str, str, bool]:
        """As the trainer is asked for it."""
        return self.sharding, self.offload, self.recompute


_STATES: Final = frozenset({"masters", "optimizer"})
_ALL: Final = _STATES | {"gradients", "parameters"}
_IN_ZERO3: Final = frozenset({"gathered", "unfusedLogits"})
WHOLE: Final = Layout("DDP")
_ON_ACCELERATORS: Final = (
    WHOLE,
    Layout("ZeRO1", divided=_STATES),
    Layout("ZeRO2", divided=_STATES | {"gradients"}),
    Layout("ZeRO3", divided=_ALL, once=_IN_ZERO3),
)
_OFFLOADED: Final = (
    Layout("ZeRO1", "Optimizer", divided=_STATES, hosted=_STATES),
    Layout("ZeRO2", "Optimizer", divided=_STATES | {"gradients"}, hosted=_STATES),
    Layout("ZeRO3", "Optimizer", divided=_ALL, hosted=_STATES, once=_IN_ZERO3),
    Layout("ZeRO3", "All", divided=_ALL, hosted=_STATES | {"parameters"}, once=_IN_ZERO3),
)
# Least traffic first; before anything goes to the host and back, layers are computed twice.
LAYOUTS: Final = tuple(
    replace(layout, recompute=recompute) for group in (_ON_ACCELERATORS, _OFFLOADED) for recompute in (False, True) for layout in group
)
ONCE: Final = frozenset().union(*(layout.once for layout in LAYOUTS))
BY_PASS: Final = ("activations", "recomputed", "logits", "unfusedLogits")  # components that grow with the tokens of a forward pass
MOST_NODES: Final = 64  # pods: no larger gang is named
SPARE_GIB: Final = 8  # of a pod's memory, for the program itself
SHORTEST: Final = 64  # tokens: no shorter maxSequenceLength is worth naming
GIB: Final = 2**30
ANOTHER_VOLUME: Final = "Make the FineTune anew with storage.accessMode ReadWriteMany (on a storageClassName that has it)"


def one_slice(o: Observed, d: Draft) -> Draft:
    """Does each pod ask for one slice, where the accelerator is a slice of one? A second one would be seen by nobody."""
    compute, profile = o.spec.compute, o.profile
    each = compute.gpus_each
    if d.blocked or d.revision.artifact or running(d) or profile is None or not profile.sliced or each == 1:
        return d
    message = (
        f"compute.gpusPerNode is {each}, and of {profile.name} a pod can use one: a process sees one slice. Set gpusPerNode to 1, and "
        f"compute.nodes to {compute.nodes * each} for as many"
    )
    return d.block(conditions.FAILED, message, reason=conditions.DOES_NOT_FIT)


def one_machine(o: Observed, d: Draft) -> Draft:
    """Can all pods of the gang be where the volume is? With ReadWriteOnce that is one machine, and what serves is there already: a part of
    the gang would come there again and again, and hold what it has in vain."""
    compute = o.spec.compute
    trains = not (d.blocked or d.revision.artifact or d.revision.gate == "NotNeeded" or running(d))
    if not trains or o.spec.storage.access_mode != "ReadWriteOnce":
        return d
    profile = o.profile or ANY_GPU
    each = compute.gpus_each
    wanted, most, taken = compute.nodes * each, profile.per_machine, _taken(o, d, profile.resource)
    if not wanted or wanted + taken <= most:
        return d
    if each > most:
        message = (
            f"compute.gpusPerNode is {each}, and the largest machine has {most} of the accelerator: ask for at most {most} (or let the "
            f"operator know of a larger machine: perMachine in the chart's value profiles)"
        )
        return d.block(conditions.FAILED, message, reason=conditions.DOES_NOT_FIT)
    beside = f", what serves has {taken}" if wanted <= most else ""
    left = most - taken if beside else most
    fewer = "serve with fewer (serving.replicas or autoscaling.minReplicas, serving.resources.limits)"
    fixes = [f"ask for at most {left}"] * (left > 0) + [fewer] * bool(beside)
    message = (
        f"compute asks for {compute.nodes} pods of {each} accelerators, {wanted} in all{beside}, and a machine has {most}; a volume "
        f"that is ReadWriteOnce holds all pods on one machine. {', or '.join([ANOTHER_VOLUME, *fixes])}"
    )
    return d.block(conditions.FAILED, message, reason=conditions.NEEDS_SHARED_VOLUME)


def _taken(o: Observed, d: Draft, resource: str) -> int:
    """How many accelerators the live arm's pods have, by the template that it was made with; of an autoscaled one those that it always has:
    for a load that comes and goes a gang waits."""
    arm = d.status.live_arm or ""
    template = o.templates.get(arm, {}).get("template") or {}
    limits = (container.get("resources", {}).get("limits") or {} for container in template.get("spec", {}).get("containers") or ())
    each = sum(int(quantity(str(limit.get(resource, ""))) or 0) for limit in limits)
    scaling = o.spec.serving.autoscaling if o.spec.serving else None
    wanted = o.arms[arm].wanted if arm in o.arms else 0
    return each * (min(wanted, scaling.min_replicas) if scaling else wanted)


def memory(o: Observed, d: Draft) -> Draft:
    """Does a rank fit into its accelerator's memory? Refused before it is asked for, with the smallest layout that would do."""
    profile, estimate = _profile(o), d.revision.estimate
    if d.blocked or d.revision.artifact or d.revision.gate == "NotNeeded" or running(d) or profile is None or estimate is None:
        return d
    if chosen(o, estimate) is not None:
        return d
    return d.block(conditions.FAILED, _refusal(o, estimate, profile), reason=conditions.DOES_NOT_FIT)


@dataclass(frozen=True)
class Choice:
    """The layout of a gang, and the tokens of a forward pass where the trainer's own default would not fit."""

    layout: Layout
    micro_batch_tokens: int | None = None


def chosen(o: Observed, estimate: Estimate | None) -> Choice | None:
    """The first layout allowed that fits, passes halved where need be; the first one allowed where nothing is known; None: none fits."""
    layouts = allowed(o.spec)
    if _profile(o) is None or estimate is None or not any(_told(estimate, layout) for layout in layouts):
        return Choice(layouts[0])
    return next((_choice(o, estimate, layout) for layout in _fitting(o, estimate)), None)


def next_choice(o: Observed, d: Draft) -> Choice | None:
    """What the next attempt begins with: what is chosen, but behind any layout under which memory ran out with passes as small as rows
    allow (a larger divisor would change nothing there), where one that fits is behind it."""
    estimate, mine = d.revision.estimate, [a for a in d.status.attempts if a.revision == d.revision.name]
    first = chosen(o, estimate)
    if first is None or estimate is None:
        return first
    spent = [begun(o, estimate, a.layout).layout for a in mine if a.failure_class == "outOfMemory" and _at_its_smallest(o, estimate, a)]
    behind = LAYOUTS[max((LAYOUTS.index(layout) + 1 for layout in spent), default=0) :]
    return next((_choice(o, estimate, layout) for layout in _fitting(o, estimate) if layout in behind), first)


def _at_its_smallest(o: Observed, estimate: Estimate, attempt: Attempt) -> bool:
    tokens = begun(o, estimate, attempt.layout).micro_batch_tokens or estimate.pass_tokens
    return tokens // (attempt.micro_batch_divisor or 1) <= estimate.longest


def begun(o: Observed, estimate: Estimate | None, title: str | None) -> Choice:
    """What an attempt began with, by the title in its status: its Job is made from that, whatever `compute` says by then."""
    return _choice(o, estimate, next((layout for layout in LAYOUTS if layout.title == title), WHOLE))


def _choice(o: Observed, estimate: Estimate | None, layout: Layout) -> Choice:
    profile = _profile(o)
    tokens = pass_tokens(estimate, profile.memory_bytes, _ranks(o), layout) if profile and estimate else None
    return Choice(layout, None if estimate is None or tokens == estimate.pass_tokens else tokens)


def _fitting(o: Observed, estimate: Estimate) -> Iterator[Layout]:
    """The layouts allowed of which the estimate tells that they fit, into the accelerator's memory and the host's."""
    there = (layout for layout in allowed(o.spec) if _told(estimate, layout))
    return (layout for layout in there if _fits(o, estimate, layout) and _host_has_room(o, estimate, layout))


def _told(estimate: Estimate, layout: Layout) -> bool:
    """Does it tell what such a layout needs? One from another trainer may say nothing of ZeRO, or of what is recomputed."""
    return bool(estimate.sharded or not layout.divided) and (estimate.recomputed is not None or not layout.recompute)


def _fits(o: Observed, estimate: Estimate, layout: Layout) -> bool:
    """Does a rank fit into the accelerator's memory?"""
    profile = _profile(o)
    room = profile.memory_bytes if profile else None
    return pass_tokens(estimate, room, _ranks(o), layout) is not None


def _host_has_room(o: Observed, estimate: Estimate, layout: Layout) -> bool:
    """Does what lies in the host's memory fit into the pod's? Where no `compute.memory` is named, the machine's is not known."""
    room = quantity(o.spec.compute.memory) if o.spec.compute.memory else None
    return room is None or _hosted(o, estimate, layout) <= room


def _hosted(o: Observed, estimate: Estimate, layout: Layout) -> int:
    """Bytes of a pod's memory: what is offloaded, and for ZeRO3 the model, which each rank loads there before it is divided."""
    whole = estimate.sharded
    rank = sum(size for name, size in whole.items() if name in layout.hosted) / _ranks(o)  # all of it is divided
    loads = whole.get("parameters", 0) if "parameters" in layout.divided else 0
    return round(_each(o) * (rank + loads))


def allowed(spec: Spec) -> list[Layout]:
    """The layouts that `compute` and `training.gradientCheckpointing` leave open and that the method goes with."""
    sharding, offload, recompute = spec.compute.sharding, spec.compute.offload, _recompute(spec)
    open_ = [layout for layout in LAYOUTS if sharding in ("Auto", layout.sharding) and offload in ("Auto", layout.offload)]
    fit = (layout for layout in open_ if not layout.divided or shardable(spec.method.type, spec.method.objective, layout.sharding))
    return [layout for layout in fit if layout.recompute in recompute] or [WHOLE]


def _recompute(spec: Spec) -> tuple[bool, ...]:
    """Whether activations may be kept, computed again, or both."""
    asked = spec.gradient_checkpointing
    if spec.method.type in PROMPTS or asked == "Never" or (asked == "Auto" and not spec.compute.gpus_each):
        return (False,)
    return (True,) if asked == "Always" else (False, True)


def pass_tokens(estimate: Estimate, room: int | None, ranks: int, layout: Layout = WHOLE) -> int | None:
    """The most tokens of a pass that fit, halved from the default but never below the longest row; None: not even that one."""
    tokens = estimate.pass_tokens
    while room is not None and needed(estimate, tokens, ranks, layout) > room:
        if tokens <= estimate.longest:
            return None
        tokens = max(estimate.longest, tokens // 2)
    return tokens


def needed(estimate: Estimate, tokens: int, ranks: int, layout: Layout = WHOLE) -> int:
    """Bytes of one rank with passes of so many tokens."""
    return sum(_components(estimate, tokens, ranks, layout).values())


def _components(estimate: Estimate, tokens: int, ranks: int, layout: Layout) -> dict[str, int]:
    """Bytes in the accelerator. Of an estimate that tells nothing of ZeRO, from another trainer, all layouts need the same."""
    if not estimate.sharded:
        layout = replace(WHOLE, recompute=layout.recompute)
    whole = estimate.sharded if layout.divided else estimate.memory
    if layout.recompute and estimate.recomputed is not None:
        whole = {**{name: size for name, size in whole.items() if name != "activations"}, "recomputed": estimate.recomputed}
    there = {name: size for name, size in whole.items() if name not in layout.hosted | (ONCE - layout.once)}
    share = {name: ranks if name in layout.divided else 1 for name in there}
    passes = {name: tokens / estimate.pass_tokens if name in BY_PASS else 1 for name in there}
    return {name: round(size * passes[name] / share[name]) for name, size in there.items()}


def _profile(o: Observed) -> Accelerator | None:
    """The accelerator asked for, where its memory is known."""
    return o.profile if o.profile and o.profile.memory_bytes else None


def _ranks(o: Observed) -> int:
    return o.spec.compute.nodes * _each(o)


def _each(o: Observed) -> int:
    """Ranks of a pod."""
    return max(1, o.spec.compute.gpus_each)


def _refusal(o: Observed, estimate: Estimate, profile: Accelerator) -> str:
    ranks, room = _ranks(o), profile.memory_bytes or 0
    if fitting := [layout for layout in allowed(o.spec) if _fits(o, estimate, layout)]:
        least = min(fitting, key=lambda layout: _hosted(o, estimate, layout))
        need = _hosted(o, estimate, least)
        mends = [f"compute.memory {-(-need // GIB) + SPARE_GIB}Gi", *_mends(o, estimate, room)]
        return (
            f"under {least.title} a pod's ranks need {need / GIB:.1f} GiB of its memory for what is offloaded or loaded there, and "
            f"compute.memory is {o.spec.compute.memory}. What would fit: {'; or '.join(mends)}"
        )
    layout = _smallest(allowed(o.spec), estimate, ranks)
    parts = _components(estimate, estimate.longest, ranks, layout)
    told = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    under = "" if layout == WHOLE else f" under {layout.title}"
    return (
        f"a rank needs at least {sum(parts.values()) / GIB:.1f} GiB{under} ({told}; passes of {estimate.longest} tokens, the longest row) "
        f"and one {profile.name} has {room / GIB:.1f} GiB. What would fit: "
        f"{'; or '.join(_mends(o, estimate, room)) or 'a smaller model'}"
    )


def _most_nodes(o: Observed) -> int:
    """The widest gang worth naming: on one machine where the volume is."""
    profile = _profile(o)
    if o.spec.storage.access_mode != "ReadWriteOnce" or profile is None:
        return MOST_NODES
    return profile.per_machine // _each(o)


def _smallest(layouts: list[Layout], estimate: Estimate, ranks: int) -> Layout:
    return min(layouts, key=lambda layout: needed(estimate, estimate.longest, ranks, layout))


def _mends(o: Observed, estimate: Estimate, room: int) -> Iterator[str]:
    """Another sharding, or activations computed again; the smallest accelerator that has room; the fewest pods; and the longest rows that
    there is room for."""
    ranks, spec = _ranks(o), o.spec

    def fit(**changes: Any) -> bool:
        """Would a run with such `compute`?"""
        return _would_fit(o, estimate, {"compute": spec.compute.model_copy(update=changes)})

    yield from _freed(o, estimate)
    usable = [p for p in o.profiles.values() if not p.sliced or _each(o) == 1]
    larger = [p for p in usable if p.memory_bytes and fit(accelerator=p.name)]
    if larger:
        best = min(larger, key=lambda p: (p.memory_bytes or 0, p.name))
        yield f"compute.accelerator {best.name} ({(best.memory_bytes or 0) / GIB:.1f} GiB)"
    enough = next((nodes for nodes in range(spec.compute.nodes + 1, _most_nodes(o) + 1) if fit(nodes=nodes)), None)
    if enough is not None:
        yield f"compute.nodes {enough}"
    held = [layout for layout in allowed(spec) if _host_has_room(o, estimate, layout)]
    if not held:
        return
    layout = _smallest(held, estimate, ranks)
    fixed = needed(estimate, 0, ranks, layout)
    by_pass = needed(estimate, estimate.pass_tokens, ranks, layout) - fixed
    longest = (room - fixed) * estimate.pass_tokens // by_pass // SHORTEST * SHORTEST if by_pass else 0
    if longest >= SHORTEST:
        yield f"training.maxSequenceLength {longest} (longer rows are then treated as data.quality.onTooLong says)"


def _freed(o: Observed, estimate: Estimate) -> Iterator[str]:
    """Which of what is asked for is better left to the operator: each by itself, or where that is not enough both."""
    compute = o.spec.compute.model_copy(update={"sharding": "Auto", "offload": "Auto"})
    training = (o.spec.training or Training()).model_copy(update={"gradient_checkpointing": "Auto"})
    layouts, recomputing = "compute.sharding Auto with compute.offload Auto", "training.gradientCheckpointing Auto"
    ways: dict[str, dict[str, Any]] = {layouts: {"compute": compute}, recomputing: {"training": training}}
    enough = [name for name, update in ways.items() if _would_fit(o, estimate, update)]
    both = {"compute": compute, "training": training}
    yield from enough or ([f"{layouts} and {recomputing}"] if _would_fit(o, estimate, both) else [])


def _would_fit(o: Observed, estimate: Estimate, update: Mapping[str, Any]) -> bool:
    """Would a run with these blocks of the spec instead?"""
    return chosen(replace(o, spec=o.spec.model_copy(update=update)), estimate) is not None
