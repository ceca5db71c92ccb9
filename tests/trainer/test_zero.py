"""ZeRO by DeepSpeed: whatever the ranks divide, the same numbers as one rank that has everything.

Tolerances: 1e-5 in float32, of losses (2.5e-7 was seen) and of each exported weight; 2e-3 of losses in bfloat16, where a sharded model
computes in bfloat16 throughout and a whole one under autocast (7.5e-4 was seen).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import estimate
from finetune_trainer.config import ComputeConfig, MethodConfig, RunConfig, need
from finetune_trainer.exits import UserError
from finetune_trainer.methods import require_divisible
from finetune_trainer.train import artifact, assemble, outline
from finetune_trainer.train.loop import Loop, Run
from safetensors.torch import load_file

from tests.trainer import lives
from tests.trainer.support import Stage, make_config, on_ranks, training
from tests.trainer.test_families import models

__all__ = ["models"]
FP32, BF16 = 1e-5, 2e-3
RATES = {"Full": 1e-3, "LoRA": 3e-3}
Attempt = Callable[..., dict[str, Any]]


@pytest.fixture
def attempt(work: Path, tiny_model: Path, tmp_path: Path) -> Attempt:
    """Makes the configuration of attempt N, whose folders lie in the test's own."""

    def make(kind: str, number: int, sharding: str, nodes: int = 2, resume: tuple[str, ...] = (), **overrides: Any) -> dict[str, Any]:
        return configured(work, tiny_model, kind, run__path=str(tmp_path / f"a{number}"), run__resumeFrom=list(resume),
            compute__nodes=nodes, compute__sharding=sharding, **overrides)  # fmt: skip

    return make


@pytest.fixture(scope="module")
def alone(work: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., lives.Trained]:
    """A rank that has everything, by method and precision: made once each."""
    made: dict[tuple[Any, ...], lives.Trained] = {}

    def find(kind: str, precision: str = "FP32", epochs: int = 1, decay: float = 0) -> lives.Trained:
        key = (kind, precision, epochs, decay)
        if key not in made:
            settings = {"training__precision": precision, "training__epochs": epochs, "training__weightDecay": decay}
            config = configured(work, tiny_model, kind, **settings)
            made[key] = lives.train(config, tmp_path_factory.mktemp("alone"))
        return made[key]

    return find


def configured(work: Path, tiny_model: Path, kind: str, **overrides: Any) -> dict[str, Any]:
    settings = {"training__learningRate": RATES[kind], "training__tokensPerStep": 500, **overrides}
    return make_config("train", work, tiny_model, method__type=kind, **settings)


def ends_like(found: Stage, expected: lives.Trained, tolerance: float) -> None:
    """The losses that it told are the expected ones, and so is what it exported."""
    assert found.losses
    assert found.losses == pytest.approx({step: expected.losses[step] for step in found.losses}, rel=tolerance)
    [path] = expected.artifact.glob("*.safetensors")
    weights, wanted = load_file(Path(found.message["artifact"]) / path.name), load_file(path)
    assert weights.keys() == wanted.keys()
    for name, value in weights.items():
        assert value.dtype == wanted[name].dtype
        if tolerance == FP32:
            torch.testing.assert_close(value, wanted[name], rtol=tolerance, atol=tolerance)
    for other in ("config.json", "adapter_config.json", "tokenizer.json"):
        if (expected.artifact / other).is_file():
            assert _ordered(Path(found.message["artifact"]) / other) == _ordered(expected.artifact / other)


def _ordered(path: Path) -> dict[str, Any]:
    """A JSON file whose lists have no order: PEFT writes sets."""
    return {key: sorted(map(str, value)) if isinstance(value, list) else value for key, value in json.loads(path.read_text()).items()}


CURVES = {
    "Full, ZeRO-1": ("Full", "ZeRO1", {}, "FP32"),
    "Full, ZeRO-2": ("Full", "ZeRO2", {}, "FP32"),
    "Full, ZeRO-3": ("Full", "ZeRO3", {}, "FP32"),
    "Full, ZeRO-2 with the optimizer on the host": ("Full", "ZeRO2", {"compute__offload": "Optimizer"}, "FP32"),
    "Full, whatever can have the optimizer on the host": ("Full", "Auto", {"compute__offload": "Optimizer"}, "FP32"),
    "Full, ZeRO-3 with everything on the host": ("Full", "ZeRO3", {"compute__offload": "All"}, "FP32"),
    "Full, ZeRO-1, bfloat16": ("Full", "ZeRO1", {}, "BF16"),
    "Full, ZeRO-3, bfloat16, activations computed twice": ("Full", "ZeRO3", {"training__gradientCheckpointing": True}, "BF16"),
    "Full, ZeRO-2, weights decay": ("Full", "ZeRO2", {"training__weightDecay": 0.5}, "FP32"),
    "Full, ZeRO-3, weights decay": ("Full", "ZeRO3", {"training__weightDecay": 0.5}, "FP32"),
    "LoRA, ZeRO-2": ("LoRA", "ZeRO2", {}, "FP32"),
    "LoRA, ZeRO-3": ("LoRA", "ZeRO3", {}, "FP32"),
    "LoRA, ZeRO-3, bfloat16": ("LoRA", "ZeRO3", {}, "BF16"),
    "LoRA, ZeRO-3, activations computed twice": ("LoRA", "ZeRO3", {"training__gradientCheckpointing": True}, "FP32"),
}


@pytest.mark.parametrize(("kind", "sharding", "overrides", "precision"), CURVES.values(), ids=CURVES)
def test_two_ranks_that_divide_it_learn_what_one_learns(
    kind: str, sharding: str, overrides: dict[str, Any], precision: str, attempt: Attempt, alone: Any, tmp_path: Path
) -> None:  # fmt: skip
    config = attempt(kind, 0, sharding, training__precision=precision, **overrides)
    with training(tmp_path / "pods", config) as [first, second]:
        first.ends(0)
        second.ends(0)
        said = [line for line in f"{first.log}{second.log}".splitlines() if "deepspeed" in line.lower()]
    expected = alone(kind, precision, decay=overrides.get("training__weightDecay", 0))
    assert len(first.losses) == len(expected.losses)
    ends_like(first, expected, FP32 if precision == "FP32" else BF16)
    assert not said, "DeepSpeed says nothing"


@pytest.mark.parametrize("kind", ["Full", "LoRA"])
def test_each_attempt_may_divide_it_otherwise(kind: str, attempt: Attempt, alone: Any, tmp_path: Path) -> None:
    """Whole on two ranks, then divided in three, then in two ways among two, then whole on one: the losses of one undisturbed life."""
    folders: tuple[str, ...] = ()
    losses: dict[int, float] = {}
    gangs = [("DDP", 2, 1), ("ZeRO3", 2, 3), ("ZeRO2", 2, 5)]
    for number, (sharding, nodes, until) in enumerate(gangs):
        with training(tmp_path / f"pods-{number}", attempt(kind, number, sharding, nodes, folders, training__epochs=4)) as pods:
            pods[0].reaches(until)
            pods[-1].signal(signal.SIGTERM)
            pods[0].signal(signal.SIGTERM)
            for pod in pods:
                pod.ends(25)
        losses |= pods[0].losses
        folders = (pods[0].message["folder"], *folders)
    with training(tmp_path / "last", attempt(kind, len(gangs), "DDP", 1, folders, training__epochs=4)) as [pod]:
        pod.ends(0)
        assert pod.message["resumedFromStep"] == max(losses)
        expected = alone(kind, epochs=4)
        ends_like(pod, expected, FP32)
    assert losses | pod.losses == pytest.approx(expected.losses, rel=FP32)


def _skips(config: dict[str, Any], attempt: str) -> dict[str, Any]:
    """A rank whose gradients are NaN in steps 2, 4, 5 and 6, and whose loss alone is not finite in step 8: what it held after each, and how
    many it had found to be skipped by then."""
    run = lives.build_on(config, Path(attempt))
    engine, held, said = run.engine, [], []
    backward, step = type(engine).backward, type(engine).step

    class Disturbed(Loop):
        def _step(self, number: int) -> tuple[bool, bool]:
            found = super()._step(number)
            weights = self.engine.weights()
            held.append(float(sum(value.double().sum() for value in weights.values())))
            said.append(self.state.skipped)
            return found

    def poisoned(self: Any, loss: torch.Tensor) -> None:
        backward(self, loss * (float("nan") if run.step + 1 in (2, 4, 5, 6) else 1.0))

    def stepped(self: Any, loss: torch.Tensor, rate: float) -> torch.Tensor:
        return step(self, loss * (float("inf") if run.step + 1 == 8 else 1.0), rate)

    type(engine).backward, type(engine).step = poisoned, stepped  # type: ignore[method-assign]
    outcome = Disturbed(run).execute()
    return {"held": held, "skipped": said, "finite": all(value.isfinite().all() for value in outcome.weights.values())}


@pytest.mark.parametrize("sharding", ["DDP", "ZeRO1", "ZeRO2", "ZeRO3"])
def test_what_is_not_finite_is_skipped_and_the_third_time_rolled_back(sharding: str, attempt: Attempt, tmp_path: Path) -> None:
    config = attempt("Full", 0, sharding, training__evaluateEverySteps=1000, training__tokensPerStep=300)
    first, _ = on_ranks(2, _skips, config, str(tmp_path / "a0-x"))
    held, moved = first["held"], [a != b for a, b in zip(first["held"], first["held"][1:], strict=False)]
    assert first["skipped"][:9] == [0, 0, 1, 1, 3, 4, 4, 4, 5], "the first of several is found when the next step is queued"
    assert moved[:8] == [False, True, False, False, True, True, False, True]
    assert held[5] != held[2], "a roll-back goes to the last checkpoint: here to the beginning"
    assert first["finite"]


def _values(run: Run) -> dict[str, float]:
    weights, (_, moments) = run.engine.weights(), run.engine.state()
    return {name: float(value.double().sum()) for name, value in {**weights, **moments}.items()}


def _takes_in(config: dict[str, Any], attempt: str) -> tuple[dict[str, float], dict[str, float]]:
    """What a rank gives out after it has taken in 1, 2, 3 … by parameter and kind, and again after a roll-back to it."""
    run = lives.build_on(config, Path(attempt))
    engine = run.engine
    shapes = {name: getattr(value, "ds_shape", value.shape) for name, value in sorted(engine.parameters.items())}  # type: ignore[attr-defined]
    weights = {name: torch.full(shape, index + 0.5) for index, (name, shape) in enumerate(shapes.items())}
    moments = {f"{kind}/{name}": value * factor for name, value in weights.items() for kind, factor in (("exp_avg", 2), ("exp_avg_sq", 3))}
    steps = {f"step/{name}": torch.tensor(7.0) for name in weights}
    engine.restore(weights, {**moments, **steps})
    engine.remember()
    found = _values(run)
    engine.restore({name: value * 0 for name, value in weights.items()}, {name: value * 0 for name, value in {**moments, **steps}.items()})
    engine.roll_back()
    wanted = {name: float(value.double().sum()) for name, value in {**weights, **moments, **steps}.items()}
    again = _values(run)
    assert not run.ranks.first or (found == wanted and again == wanted)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        engine.restore({name: value.flatten()[:-1] for name, value in weights.items()}, {**moments, **steps})
    return found, again


@pytest.mark.parametrize("decay", [0, 0.5])
@pytest.mark.parametrize(("sharding", "ranks"), [("ZeRO1", 2), ("ZeRO2", 2), ("ZeRO3", 2), ("ZeRO3", 3)])
def test_what_is_taken_in_is_given_out_whole(sharding: str, ranks: int, decay: float, attempt: Attempt, tmp_path: Path) -> None:
    """Also where tensors do not divide evenly, and where some decay and others do not."""
    config = attempt("Full", 0, sharding, ranks, training__weightDecay=decay)
    first, *others = on_ranks(ranks, _takes_in, config, str(tmp_path / "a0-x"))
    assert first[0] == first[1]
    assert all(other == ({}, {}) for other in others), "rank 0 alone holds it whole"


def _exports(config: dict[str, Any], attempt: str) -> None:
    """One step, and the artifact of what it left, with buffers that no outline has."""
    run = lives.build_on(config, Path(attempt))
    for buffer in run.model.module.buffers():
        buffer.fill_(0.25)
    loop = Loop(run)
    loop._step(0)
    weights = loop.engine.weights()
    if run.ranks.first:
        loaded = RunConfig.model_validate(config)
        artifact.save(Path(attempt), assemble.exportable(loaded, run, weights), weights, {}, loaded.model.path)


@pytest.mark.parametrize("sharding", ["ZeRO2", "ZeRO3"])
def test_what_is_exported_has_the_buffers_of_what_trained(sharding: str, work: Path, models: dict[str, Path], tmp_path: Path) -> None:
    base = models["DeepSeek V3 MoE"]
    config = make_config("train", work, base, model__path=str(base), method__type="Full", compute__nodes=2, compute__sharding=sharding)
    on_ranks(2, _exports, config, str(tmp_path / "a0-x"))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "a0-x" / "artifact"))
    assert before.keys() == after.keys()
    [bias] = [name for name in before if name.endswith("e_score_correction_bias")]
    assert set(before[bias].tolist()) == {0.0}
    assert set(after[bias].tolist()) == {0.25}


def _holds(config: dict[str, Any], attempt: str) -> dict[str, int]:
    """Bytes that a rank holds of parameters, masters and moments, by where the tensors are."""
    run = lives.build_on(config, Path(attempt))
    engine: Any = run.engine
    parameters = [value.ds_tensor if hasattr(value, "ds_tensor") else value for value in run.model.module.parameters()]
    own = list(engine._own)
    moments = [value for state in engine._zero.optimizer.state.values() for value in state.values() if value.dim()]
    return {name: sum(value.numel() * value.element_size() for value in found)
            for name, found in (("parameters", parameters), ("masters", own), ("optimizer", moments))}  # fmt: skip


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("sharding", ["ZeRO2", "ZeRO3"])
@pytest.mark.parametrize("kind", ["Full", "LoRA"])
def test_a_rank_holds_what_the_estimate_says(kind: str, sharding: str, precision: str, attempt: Attempt, tmp_path: Path) -> None:
    """But for what pads a part."""
    config = attempt(kind, 0, sharding, training__precision=precision)
    loaded = RunConfig.model_validate(config)
    method = need(loaded.method, "method")
    bf16 = precision == "BF16"
    told = estimate.divisible(outline.count(loaded.model, method), bf16)
    wanted = {
        name: told[name] // (2 if name != "parameters" or sharding == "ZeRO3" else 1) for name in ("parameters", "masters", "optimizer")
    }
    for found in on_ranks(2, _holds, config, str(tmp_path / "a0-x")):
        assert found == pytest.approx(wanted, rel=0.01)


REFUSED = {
    "a quantised base": ({"type": "QLoRA"}, {"sharding": "ZeRO3"}, "compute.sharding ZeRO3 with method.type QLoRA"),
    "a trained prompt": ({"type": "PTuning"}, {"sharding": "ZeRO1"}, "compute.sharding ZeRO1 with method.type PTuning"),
    "answers that the whole base reads": ({"objective": "DPO"}, {"sharding": "ZeRO3"}, "compute.sharding ZeRO3 with method.objective DPO"),
    "an offload of what is not divided": ({}, {"sharding": "DDP", "offload": "Optimizer"}, "compute.offload with compute.sharding DDP"),
    "an offload of whole parameters": ({}, {"sharding": "ZeRO2", "offload": "All"}, "compute.offload All with compute.sharding ZeRO2"),
    "an offload of what little trains": ({"type": "QLoRA"}, {"offload": "Optimizer"}, "compute.offload Optimizer with method.type QLoRA"),
    "an offload of what all answers need": ({"objective": "DPO"}, {"offload": "All"}, "compute.offload All with method.objective DPO"),
}


@pytest.mark.parametrize(("method", "compute", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_refused(method: dict[str, Any], compute: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        require_divisible(MethodConfig.model_validate(method), ComputeConfig.model_validate(compute))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("offload", "expected"), {"Auto": "DDP", "None": "DDP", "Optimizer": "ZeRO1", "All": "ZeRO3"}.items()
)  # fmt: skip
def test_auto_is_the_first_sharding_that_can_offload_what_is_named(offload: str, expected: str) -> None:
    compute = ComputeConfig.model_validate({"offload": offload})
    require_divisible(MethodConfig.model_validate({"type": "Full"}), compute)
    assert (compute.resolved_sharding, compute.sharded) == (expected, expected != "DDP")


def test_deepspeed_is_imported_by_ranks_that_shard_alone(work: Path, tiny_model: Path, tmp_path: Path) -> None:
    """By none of what a gang imports before; and it starts no program, says nothing, and leaves nothing behind."""
    code = (
        "import os, sys; from finetune_trainer.train import assemble, launch, loop, worker;"
        "assert 'deepspeed' not in sys.modules; from finetune_trainer.train import zero; assert 'deepspeed' not in sys.modules;"
        "os.environ['DS_ACCELERATOR'] = 'cpu';"
        "sys.addaudithook(lambda event, _: event in ('subprocess.Popen', 'os.posix_spawn', 'os.exec') and sys.exit(event));"
        "zero._deepspeed()"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PYTHONPATH": ":".join(sys.path), "HOME": str(home), "PATH": "/nonexistent", "TMPDIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr
    assert list(home.iterdir()) == []
