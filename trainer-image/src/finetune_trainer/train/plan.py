"""Which rows each step, rank and forward pass takes: a pure function of data, seed and world size.

Every rank computes the whole plan, so the global count of supervised tokens of a step is known without asking.
Invariant: a step holds the same rows however many ranks share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune_trainer import schedule

Rows = tuple[int, ...]


class MicroBatch(NamedTuple):
    """The rows of one pass and what its loss weighs: 1, or 0 where the pass only keeps up with the other ranks'."""

    rows: Rows
    weight: float


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps by epoch and place. `lengths` are tokens by row, `widths` what each takes of a pass, whose rows are padded to the widest
    unless they are `packed`; `micro_batch_tokens` the size of one pass, padding included."""

    lengths: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    seed: int
    steps_per_epoch: int
    total_steps: int
    micro_batch_tokens: int
    packed: bool = False

    def rows(self, step: int) -> Rows:
        """The rows of step `step` (from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, bounds = _epoch(self, epoch)
        return tuple(int(row) for row in order[bounds[place] : bounds[place + 1]])

    def micro_batches(self, step: int, rank: int, world_size: int, in_step: bool = False) -> list[MicroBatch]:
        """What `rank` computes of `step`."""
        return micro_batches(self.rows(step), self.widths, self.micro_batch_tokens, rank, world_size, self.packed, in_step)


def make(
    lengths: npt.NDArray[np.int64], step_tokens: int, epochs: float, seed: int, micro_batch_tokens: int,
    widths: npt.NDArray[np.int64] | None = None, packed: bool = False,
) -> Plan:  # fmt: skip
    """The plan of a run over rows of these lengths and (by default the same) widths."""
    lengths = np.asarray(lengths)
    per_epoch = schedule.steps_per_epoch(int(lengths.sum()), len(lengths), step_tokens)
    total = schedule.total_steps(per_epoch, epochs)
    return Plan(lengths, lengths if widths is None else widths, seed, per_epoch, total, micro_batch_tokens, packed)


@lru_cache(maxsize=2)
def _epoch(plan: Plan, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The shuffled rows of an epoch and the bounds of its steps: about equal in tokens, never empty."""
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(plan.lengths))
    steps, rows = plan.steps_per_epoch, len(order)
    places = np.arange(steps + 1)
    ends = np.cumsum(plan.lengths[order])
    bounds = np.searchsorted(ends, ends[-1] * places / steps, side="left") + (places > 0)
    bounds = np.maximum.accumulate(bounds - places) + places
    bounds = np.minimum(bounds, rows - steps + places)
    bounds[-1] = rows
    return order, bounds


def micro_batches(
    rows: Sequence[int], widths: npt.NDArray[np.int64], limit: int, rank: int, world_size: int, packed: bool = False, in_step: bool = False
) -> list[MicroBatch]:  # fmt: skip
    """What `rank` computes of `rows`; `in_step` with as many passes as every other rank, the shortest row filling in."""
    all_shares = shares(batches(rows, widths, limit, world_size, packed), widths, world_size)
    mine = [MicroBatch(found, 1) for found in all_shares[rank]]
    if not in_step:
        return mine
    shortest = min(rows, key=lambda row: (int(widths[row]), row))
    return mine + [MicroBatch((shortest,), 0)] * (max(map(len, all_shares)) - len(mine))


def batches(rows: Sequence[int], lengths: npt.NDArray[np.int64], limit: int, ranks: int = 1, packed: bool = False) -> list[Rows]:
    """Rows by length in batches of at most `limit` tokens, small enough that all ranks have work; padded to the longest, or packed."""
    ordered = sorted(rows, key=lambda row: (-int(lengths[row]), row))
    limit = min(limit, -(-sum(int(lengths[row]) for row in rows) // ranks)) if ranks > 1 else limit
    return _packed(ordered, lengths, limit) if packed else _padded(ordered, lengths, limit)


def _padded(ordered: Sequence[int], lengths: npt.NDArray[np.int64], limit: int) -> list[Rows]:
    result: list[list[int]] = []
    for row in ordered:
        if result and (len(result[-1]) + 1) * int(lengths[result[-1][0]]) <= limit:
            result[-1].append(row)
        else:
            result.append([row])
    return [tuple(batch) for batch in result]


def _packed(ordered: Sequence[int], lengths: npt.NDArray[np.int64], limit: int) -> list[Rows]:
    """Each row to the fullest batch that has room for it."""
    result: list[list[int]] = []
    room: list[int] = []
    for row in ordered:
        width = int(lengths[row])
        place = min((index for index in range(len(room)) if room[index] >= width), key=lambda index: (room[index], index), default=None)
        if place is None:
            place = len(room)
            result.append([])
            room.append(limit)
        result[place].append(row)
        room[place] -= width
    return [tuple(batch) for batch in result]


def share(found: Sequence[Rows], lengths: npt.NDArray[np.int64], rank: int, world_size: int) -> list[Rows]:
    """The batches of one rank."""
    return shares(found, lengths, world_size)[rank]


def shares(found: Sequence[Rows], lengths: npt.NDArray[np.int64], world_size: int) -> list[list[Rows]]:
    """The batches of every rank: largest first, each to the rank with the least work."""
    load = [0] * world_size
    result: list[list[Rows]] = [[] for _ in range(world_size)]
    for batch in sorted(found, key=lambda batch: (-sum(int(lengths[row]) for row in batch), batch)):
        target = min(range(world_size), key=lambda r: (load[r], r))
        load[target] += sum(int(lengths[row]) for row in batch)
        result[target].append(batch)
    return result
