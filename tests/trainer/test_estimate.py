"""The estimate against tensors that are there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import estimate, hardware
from finetune_trainer.config import ComputeConfig, MethodConfig, RunConfig, need
from finetune_trainer.train import outline
from finetune_trainer.train.loop import Loop

from tests.trainer import lives
from tests.trainer.test_methods import METHODS, configured

LAYERS = (estimate.Layer(20 * 4096, 0, 2 * 4096),) * 32


def held(tensors: Iterable[Any]) -> int:
    """Bytes of different storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor)}.values())


def scales(model: Any) -> Iterable[torch.Tensor]:
    """What quantised layers hold besides their weights."""
    for module in model.modules():
        state = getattr(module, "state", None)  # of 8 bits, which a first pass fills
        yield from (value for value in (getattr(state, "CB", None), getattr(state, "SCB", None)) if value is not None)
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.state2.absmax)
        yield from (value for value in (getattr(parameter, "CB", None), getattr(parameter, "SCB", None)) if value is not None)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_weights_gradients_and_optimizer_are_what_is_allocated(
    name: str, bf16: bool, work: Path, tiny_model: Path, tmp_path: Path
) -> None:  # fmt: skip
    config = configured(work, tiny_model, name, training__precision="BF16" if bf16 else "FP32")
    loop = Loop(lives.build(config, tmp_path / "a0-one"))
    loaded = RunConfig.model_validate(config)
    method = need(loaded.method, "method")
    model = loop.run_.model
    found = estimate.estimate(outline.count(loaded.model, method), method, need(loaded.compute, "compute"), 1000, 1, 256, bf16)["memory"]
    assert isinstance(found, dict)
    casts = 2 * sum(p.numel() for p in model.parameters()) if name == "Full" and bf16 else 0  # only while a pass runs
    assert found["weights"] == pytest.approx(held([*model.parameters(), *scales(model)]) + casts, rel=0.01)
    assert found["gradients"] == pytest.approx(held([loop.engine.flat]) - loop.engine.flat.element_size(), rel=0.01)
    states = [value for state in loop.engine.optimizer.state.values() for value in state.values() if value.dim()]
    assert found["optimizer"] == pytest.approx(held(states), rel=0.01)
    weights, moments = loop.engine.state()
    best = held(weights.values())
    kept = held([*weights.values(), *(value for value in moments.values() if value.dim())]) + best
    assert found["copies"] == pytest.approx(kept, rel=0.01)


def test_accelerators_hold_no_copies_and_experts_at_rest_cost_no_time() -> None:
    dense = estimate.Outline(8_000_000_000, 0, 0, 20_000_000, 8_000_000_000, 4096, LAYERS, 128_000)
    sparse = estimate.Outline(8_000_000_000, 0, 0, 20_000_000, 2_000_000_000, 4096, LAYERS, 128_000)
    gpu = ComputeConfig(accelerator="h100", gpusPerNode=1)
    memory = estimate.estimate(dense, MethodConfig(), gpu, 10**9, 1, 4096, True)
    assert "copies" not in memory["memory"]  # type: ignore[operator]
    assert memory["accelerated"]
    quick = estimate.estimate(sparse, MethodConfig(), gpu, 10**9, 1, 4096, True)
    assert (quick["memoryBytes"], quick["seconds"]) == (memory["memoryBytes"], pytest.approx(memory["seconds"] / 4, rel=0.02))  # type: ignore[operator]
    full = estimate.estimate(dense, MethodConfig(type="Full"), gpu, 10**9, 1, 4096, True)
    assert full["seconds"] > memory["seconds"]  # type: ignore[operator]


def test_mfu_counts_no_gradients_of_what_is_frozen() -> None:
    counted = estimate.Outline(8_000_000_000, 0, 0, 20_000_000, 2_000_000_000, 4096, LAYERS, 128_000)
    assert estimate.operations(counted, MethodConfig(type="Full")) == 12e9
    assert estimate.operations(counted, MethodConfig(type="LoRA")) == 8e9 + 0.12e9


@pytest.mark.parametrize(
    ("name", "flops"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L40S", 362e12), ("NVIDIA T4", None)]
)
def test_the_peak_of_a_gpu_is_known_by_its_name_or_not_at_all(name: str, flops: float | None) -> None:
    assert hardware.peak_flops(name) == flops


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16 sse", True),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 sse", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f", False),
        ("Features\t: fp asimd", False),
        (None, False),
    ],
)
def test_auto_means_bf16_on_cpus_whose_products_are_faster_in_it(cpuinfo: str | None, expected: bool, tmp_path: Path) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}\n\nprocessor\t: 1\n{cpuinfo}\n")
    assert hardware.cpu_prefers_bf16(tmp_path / "cpuinfo") is expected
