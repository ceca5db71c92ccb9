"""Numbers on their way between host and device, without either waiting for the other."""

from __future__ import annotations

import time

import torch


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` of the host on `device`. To a GPU from pinned memory: a copy from any other waits for all that is queued there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Later:
    """Numbers of a device that go to the host as soon as they are there; only who reads them waits, and for nothing that was queued after
    them."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._there = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]
        self._made = time.monotonic()
        if self._there is not None:
            self._there.record(torch.cuda.current_stream(values.device))

    def read(self) -> tuple[list[float], float]:
        """The numbers, and when they were there by the monotonic clock in seconds: as this was made, or as far as a GPU can be seen to."""
        if self._there is not None:
            self._there.synchronize()
            self._made = time.monotonic()
        found: list[float] = self._values.tolist()
        return found, self._made
