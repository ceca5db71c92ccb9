"""The arguments that the operator gives to vLLM, and what vLLM must hold once it has read them.

Read by the test in this folder and by tools/vllm_options.py, which asks vLLM itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_operator import names
from finetune_operator.build.arm import VLLM_RANKS, Served, vllm_args
from finetune_operator.build.envoy import REQUEST_SECONDS

MODEL = "/work/models/9c1d"
ADAPTER = "/work/revisions/1f2e3d4c/a1-0b6c1d2e/artifact"
GPUS = (0, 1, 2, 8)
NAMES = ("bot", "org/bot-v1.5", "a,b=c", "-v", "--max_model.len", "two words", 'quo"ted', "größe")


@dataclass(frozen=True)
class Case:
    """An argument list and the values that it means, by vLLM's names."""

    arguments: list[str]
    meant: dict[str, Any]


def cases() -> dict[str, Case]:
    """Every shape that a list can take: with and without an adapter, all ranks, numbers of devices and awkward names."""
    base = {f"the base model on {gpus} devices": case(None, 16, gpus, "bot") for gpus in GPUS}
    devices = {f"an adapter on {gpus} devices": case(ADAPTER, 16, gpus, "bot") for gpus in GPUS}
    ranks = {f"an adapter of rank {rank}": case(ADAPTER, rank, 1, "bot") for rank in range(1, VLLM_RANKS[-1] + 1)}
    named = {f"the base model named {name!r}": case(None, 16, 1, name) for name in NAMES}
    tuned = {f"an adapter named {name!r}": case(ADAPTER, 16, 1, name) for name in NAMES}
    return {**base, **devices, **ranks, **named, **tuned}


def case(adapter: str | None, rank: int, gpus: int, name: str) -> Case:
    served = Served(MODEL, adapter, "1f2e3d4c", name, rank)
    meant: dict[str, Any] = {
        "model_tag": MODEL,
        "host": "0.0.0.0",
        "port": names.MODEL_PORT,
        "tensor_parallel_size": max(1, gpus),
        "shutdown_timeout": REQUEST_SECONDS,
        "served_model_name": [f"{name}-base" if adapter else name],
    }
    if adapter:
        room = next(r for r in VLLM_RANKS if r >= rank)
        meant |= {"enable_lora": True, "max_lora_rank": room, "lora_modules": [[name, adapter]]}
    return Case(vllm_args(served, gpus), meant)


def options(arguments: list[str]) -> list[str]:
    """The options that a list names: whatever begins with two dashes, without its value."""
    return [argument.split("=", 1)[0] for argument in arguments if argument.startswith("--")]
