"""What this machine can do, read once where it matters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune_trainer.config import ComputeConfig, TrainingConfig

CPU_MICRO_BATCH_TOKENS = 2048
GPU_MICRO_BATCH_TOKENS = 8192
# Dense bfloat16 operations a second, as the makers state them: what MFU is a share of.
PEAK_FLOPS = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12, "l4": 121e12}


def cpu_prefers_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether products of bfloat16 are faster than those of float32: with AMX, and with AVX512-BF16 but on Intel's CPUs, where torch's were
    a third to a half as fast."""
    try:
        lines = [line.partition(":")[::2] for line in cpuinfo.read_text().splitlines()]
    except OSError:
        return False
    first = {key.strip(): value.split() for key, value in reversed(lines)}
    flags = first.get("flags", [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "GenuineIntel" not in first.get("vendor_id", []))


def uses_bf16(training: TrainingConfig, compute: ComputeConfig) -> bool:
    """The precision that Auto means: bf16 on GPUs and on CPUs that are faster in it, else fp32."""
    if training.precision == "Auto":
        return compute.gpus_per_node > 0 or cpu_prefers_bf16()
    return training.precision == "BF16"


def peak_flops(gpu: str) -> float | None:
    """The peak of a GPU by its name as the driver tells it; None where it is not known."""
    words = gpu.lower().replace("-", " ").split()
    return next((flops for name, flops in PEAK_FLOPS.items() if name in words), None)


def micro_batch_tokens(training: TrainingConfig, compute: ComputeConfig) -> int:
    """Tokens (padding included) that one forward pass takes, but for a row that is longer by itself.

    `microBatchDivisor` times fewer where memory ran out before.
    """
    default = GPU_MICRO_BATCH_TOKENS if compute.gpus_per_node else CPU_MICRO_BATCH_TOKENS
    tokens = training.micro_batch_tokens or max(default, training.max_sequence_length)
    return max(1, tokens // training.micro_batch_divisor)


def cpu_limit() -> int:
    """Whole CPUs that this container may use (at least 1), from the cgroup's quota or the affinity."""
    available = len(os.sched_getaffinity(0))
    quotas = (
        (Path("/sys/fs/cgroup/cpu.max"), None),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    )
    for quota, period in quotas:
        try:
            words = quota.read_text().split() + (period.read_text().split() if period else [])
            if words[0].isdigit() and int(words[0]) > 0:
                return max(1, min(available, round(int(words[0]) / int(words[1]))))
        except (OSError, ValueError, IndexError):
            continue
    return available


def memory() -> tuple[int | None, str, str]:
    """(bytes, whose they are, how there would be more): of one accelerator, or else what this container may use; None where not known."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what this process keeps for later is no less free
        return torch.cuda.mem_get_info()[0], "the accelerator", "Ask for accelerators with more memory."
    return cpu_memory(), "the container", "Raise compute.memory."


def cpu_memory(
    limits: Sequence[Path] = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")),
    meminfo: Path = Path("/proc/meminfo"),
) -> int | None:
    """Bytes that this container may use: its cgroup's limit (v2 or v1), and no more than the machine has available."""
    found = []
    with suppress(OSError, StopIteration, ValueError):
        found.append(1024 * int(next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")).split()[1]))
    for path in limits:
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return min(found, default=None)


def killed_for_memory() -> bool:
    """Whether the kernel killed a process of this container for memory (cgroup v1 and v2)."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        if any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in lines):
            return True
    return False
