"""CPU seconds and memory of processes, from /proc."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
BUSY: Final = 0.10  # of a core


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def machine_seconds() -> float:
    """CPU seconds that the whole machine has been busy."""
    user, nice, system, _idle, _iowait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


def last_busy(samples: Sequence[tuple[float, float]]) -> float:
    """Seconds from the first of some (time, CPU seconds) to the last time that more than `BUSY` was used over about a second."""
    start, last = samples[0][0], samples[0][0]
    for number, (time, used) in enumerate(samples):
        before = next((s for s in reversed(samples[:number]) if time - s[0] >= 1.0), None)
        if before and (used - before[1]) / (time - before[0]) > BUSY:
            last = time
    return last - start
