"""Does the run fit where it is asked to go? Of the volume it is asked at once, of memory as soon as prepare has estimated it.

Both are asked again in every cycle and remembered nowhere: an edit of `compute` goes on by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from finetune_operator import conditions
from finetune_operator.api.status import Estimate
from finetune_operator.build.pods import ANY_GPU, Accelerator
from finetune_operator.decide.attempts import running
from finetune_operator.decide.draft import Draft
from finetune_operator.observed import Observed

# What the trainer can do, least traffic first: a strategy, and the components of the estimate that its ranks divide among them.
STRATEGIES: Final[Mapping[str, frozenset[str]]] = {"DDP": frozenset()}
BY_PASS: Final = ("activations", "logits")  # components that grow with the tokens of a forward pass
SHORTEST: Final = 64  # tokens: no shorter maxSequenceLength is worth naming
GIB: Final = 2**30


def one_machine(o: Observed, d: Draft) -> Draft:
    """Can all pods of the gang be where the volume is? With ReadWriteOnce that is one machine."""
    compute = o.spec.compute
    if d.blocked or d.revision.artifact or running(d) or o.spec.storage.access_mode != "ReadWriteOnce":
        return d
    profile = o.profiles.get(compute.accelerator or "", ANY_GPU)
    each = compute.gpus_each
    wanted, most = compute.nodes * each, profile.per_machine
    if wanted <= most:
        return d
    message = (
        f"compute asks for {compute.nodes} pods of {each} accelerators, {wanted} in all, and a machine has {most}; a volume that is "
        f"ReadWriteOnce holds all pods on one machine. Make the FineTune anew with storage.accessMode ReadWriteMany (on a "
        f"storageClassName that has it), or ask for at most {most}"
    )
    return d.block(conditions.FAILED, message, reason=conditions.NEEDS_SHARED_VOLUME)


def memory(o: Observed, d: Draft) -> Draft:
    """Does a rank fit into its accelerator's memory? Refused before it is asked for, with the smallest layout that would do."""
    profile, estimate = _profile(o), d.revision.estimate
    if d.blocked or d.revision.artifact or d.revision.gate == "NotNeeded" or running(d) or profile is None or estimate is None:
        return d
    ranks = _ranks(o)
    if pass_tokens(estimate, profile.memory_bytes, ranks) is not None:
        return d
    return d.block(conditions.FAILED, _refusal(o, estimate, profile, ranks), reason=conditions.DOES_NOT_FIT)


def micro_batch_tokens(o: Observed, estimate: Estimate | None) -> int | None:
    """Tokens of a forward pass where the trainer's own default would not fit; None: the default does, or nothing is known."""
    profile = _profile(o)
    if profile is None or estimate is None:
        return None
    found = pass_tokens(estimate, profile.memory_bytes, _ranks(o))
    return None if found == estimate.pass_tokens else found


def pass_tokens(estimate: Estimate, room: int | None, ranks: int) -> int | None:
    """The most tokens of a pass that fit, halved from the default but never below the longest row; None: not even that one."""
    tokens = estimate.pass_tokens
    while room is not None and needed(estimate, tokens, ranks) > room:
        if tokens <= estimate.longest:
            return None
        tokens = max(estimate.longest, tokens // 2)
    return tokens


def needed(estimate: Estimate, tokens: int, ranks: int, strategies: Mapping[str, frozenset[str]] = STRATEGIES) -> int:
    """Bytes of one rank with passes of so many tokens, under the strategy that needs least."""
    return min(sum(_components(estimate, tokens, ranks, shared).values()) for shared in strategies.values())


def _components(estimate: Estimate, tokens: int, ranks: int, shared: Iterable[str]) -> dict[str, int]:
    share = {name: ranks if name in shared else 1 for name in estimate.memory}
    passes = {name: tokens / estimate.pass_tokens if name in BY_PASS else 1 for name in estimate.memory}
    return {name: round(size * passes[name] / share[name]) for name, size in estimate.memory.items()}


def _profile(o: Observed) -> Accelerator | None:
    """The accelerator asked for, where its memory is known."""
    profile = o.profiles.get(o.spec.compute.accelerator or "")
    return profile if profile and profile.memory_bytes else None


def _ranks(o: Observed) -> int:
    return o.spec.compute.nodes * max(1, o.spec.compute.gpus_each)


def _refusal(o: Observed, estimate: Estimate, profile: Accelerator, ranks: int) -> str:
    parts = _components(estimate, estimate.longest, ranks, next(iter(STRATEGIES.values())))
    told = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    least, room = needed(estimate, estimate.longest, ranks), profile.memory_bytes or 0
    return (
        f"a rank needs at least {least / GIB:.1f} GiB ({told}; passes of {estimate.longest} tokens, the longest row) and one "
        f"{profile.name} has {room / GIB:.1f} GiB. What would fit: {'; or '.join(_mends(o, estimate, room, ranks)) or 'a smaller model'}"
    )


def _mends(o: Observed, estimate: Estimate, room: int, ranks: int) -> Iterator[str]:
    """The smallest accelerator that has room, and the longest rows that this one has room for."""
    larger = [p for p in o.profiles.values() if p.memory_bytes and pass_tokens(estimate, p.memory_bytes, ranks) is not None]
    if larger:
        best = min(larger, key=lambda p: (p.memory_bytes or 0, p.name))
        yield f"compute.accelerator {best.name} ({(best.memory_bytes or 0) / GIB:.1f} GiB)"
    fixed = needed(estimate, 0, ranks)
    each = needed(estimate, estimate.pass_tokens, ranks) - fixed
    longest = (room - fixed) * estimate.pass_tokens // each // SHORTEST * SHORTEST if each else 0
    if longest >= SHORTEST:
        yield f"training.maxSequenceLength {longest} (longer rows are then treated as data.quality.onTooLong says)"
