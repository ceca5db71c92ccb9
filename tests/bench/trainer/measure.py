"""What both sides of the comparison measure alike: time by part, memory, the machine's speed, and the loss on rows kept apart."""

from __future__ import annotations

import functools
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from finetune_trainer import hardware
from finetune_trainer.data.arrays import TokenArrays
from torch.nn import functional

WARM_UP_STEPS = 1


class Stopwatch:
    """Seconds by part, of functions that are wrapped. A wrapped function inside another counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._inside: list[float] = []

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count what `owner.name` takes as `part`."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **more: Any) -> Any:
            self._settle()
            started = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*arguments, **more)
            finally:
                self._settle()
                taken = time.perf_counter() - started
                self.seconds[part] += taken - self._inside.pop()
                if self._inside:
                    self._inside[-1] += taken

        setattr(owner, name, timed)

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Ends:
    """When steps ended, by the clock and by the processor's time."""

    def __init__(self) -> None:
        self._clock: list[float] = []
        self._processor: list[float] = []

    def mark(self) -> None:
        """A step has ended."""
        self._clock.append(time.perf_counter())
        self._processor.append(time.process_time())

    def __len__(self) -> int:
        return len(self._clock)

    def speeds(self, tokens: list[int], supervised: list[int]) -> dict[str, float]:
        """Tokens a second of the steps after the first, whose tokens are given by step."""
        clock, processor = (times[-1] - times[WARM_UP_STEPS - 1] for times in (self._clock, self._processor))
        every, learnt = (sum(counts[WARM_UP_STEPS:]) for counts in (tokens, supervised))
        return {
            "tokens_per_s": round(every / clock, 1),
            "supervised_tokens_per_s": round(learnt / clock, 1),
            "tokens_per_cpu_s": round(every / processor, 1),
        }


def peak_mib(device: torch.device) -> int:
    """The most memory so far: the GPU's where one is used, else the process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """Operations a second that MFU is a share of: the maker's figure of a GPU; of a CPU what a large product of matrices reaches."""
    if device.type == "cuda":
        return hardware.peak_flops(torch.cuda.get_device_name(device))
    one, other = (torch.randn(2048, 2048, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - started)
    return float(2 * 2048**3 / best)


def autocast(bf16: bool, device: torch.device) -> AbstractContextManager[object]:
    """What losses are read in."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


@torch.no_grad()
def kept_apart(model: Any, data: TokenArrays, bf16: bool, device: torch.device) -> float:
    """Mean loss (nats) of the supervised tokens of `data`, row by row with all logits."""
    model.eval()
    total, count = 0.0, 0
    for index in range(len(data)):
        ids, mask = (torch.from_numpy(values.copy()).to(device) for values in data.row(index))
        targets = torch.where(mask, ids.long(), -100)[1:]
        with autocast(bf16, device):
            logits = model(input_ids=ids.long()[None], use_cache=False).logits[0, :-1]
        total += float(functional.cross_entropy(logits.float(), targets, reduction="sum"))
        count += int((targets != -100).sum())
    return total / max(1, count)
