"""The ranks of a run: joining, what a step sums up, and small messages.

Invariant: every decision that must be common (stop, save, give up) is taken by sums over all ranks that each reads at the same place, so no
rank acts on a signal that another has not seen.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from torch import distributed

TICK_SECONDS = 1.0
SLOWEST = 2**22  # bytes a second, written, read again for their digest, and flushed
SLOWEST_READ = 2**25  # bytes a second of a volume that all ranks read at once
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place. `device` is its GPU or the CPU; `hosts` the group in which numbers that no device has are summed, where it is
    not the one that sums tensors; `busy` is held while a thread does what all wait for."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    hosts: distributed.ProcessGroup | None = None
    busy: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @classmethod
    def join(cls, timeout_seconds: float, gpus: bool) -> Self:
        """Join the process group that the launcher's environment describes."""
        local = int(os.environ["LOCAL_RANK"])
        device = torch.device("cuda", local) if gpus else torch.device("cpu")
        if gpus:
            torch.cuda.set_device(device)
        patience = timedelta(seconds=timeout_seconds)
        distributed.init_process_group("nccl" if gpus else "gloo", timeout=patience)
        hosts: Any = distributed.new_group(backend="gloo", timeout=patience) if gpus else None
        return cls(distributed.get_rank(), local, distributed.get_world_size(), device, hosts)

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' `values` added up, in place."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, numbers: Sequence[float]) -> list[float]:
        """All ranks' `numbers`, which their hosts have, added up: the hosts wait for each other, and for no device."""
        if self.world_size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(values, group=self.hosts)
        found: list[float] = values.tolist()
        return found

    def all(self, holds: bool) -> bool:
        """Whether it holds on every rank."""
        return int(self.sum(torch.tensor(int(holds), device=self.device))) == self.world_size

    def tell(self, value: Any) -> Any:
        """Rank 0's `value` on every rank (plain data: the ranks of one gang trust each other)."""
        if self.world_size == 1:
            return value
        box = [value if self.first else None]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def first_does(self, work: Callable[[], T], beat: Callable[[], None], size: int) -> T | None:
        """What `work`, which reads or writes `size` bytes, returns on rank 0; None elsewhere. As `all_do`."""
        return self._do(lambda: work() if self.first else None, beat, size / SLOWEST)

    def all_do(self, work: Callable[[], T], beat: Callable[[], None], size: int) -> T:
        """What `work`, which reads `size` bytes, returns on each rank, where a thread does it. Meanwhile the ranks wait for each other, and
        `beat` for as long as the slowest volume may take. Raises where `work` raises."""
        return self._do(work, beat, size / SLOWEST_READ)

    def _do(self, work: Callable[[], T], beat: Callable[[], None], patience: float) -> T:
        def there() -> T:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # each thread has one of its own
            with self.busy:
                return work()

        until = time.monotonic() + patience
        with futures.ThreadPoolExecutor(1) as pool:
            doing = pool.submit(there)
            while not self.all(self._done(doing)):
                if time.monotonic() < until:
                    beat()
        beat()
        return doing.result()

    @staticmethod
    def _done(doing: futures.Future[T]) -> bool:
        """Whether it is done within a tick. Raises what it raised."""
        done = bool(futures.wait([doing], TICK_SECONDS).done)
        if done:
            doing.result()
        return done

    def leave(self) -> None:
        """Leave the group in an orderly way."""
        if distributed.is_initialized():
            distributed.destroy_process_group()
