"""Every run configuration that the operator can build loads in the trainer, and says there what it said here."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from finetune_operator import names
from finetune_operator.api.blocks.evaluation import Metric
from finetune_operator.api.load import load_spec
from finetune_operator.api.status import Attempt, Cleaning, Cost, Estimate, Revision
from finetune_operator.build import runconfig
from finetune_operator.build.arm import Served, serve_args
from finetune_operator.build.jobs import Stage
from finetune_operator.build.pods import Accelerator
from finetune_operator.build.runconfig import Scoring
from finetune_operator.decide import economics
from finetune_operator.decide.layout import allowed
from finetune_operator.workloads.run import GANG_SECONDS
from finetune_trainer import __main__ as trainer
from finetune_trainer.config import GATHER_SECONDS, CleanRun, MetricConfig, RunConfig
from finetune_trainer.methods import require_supported
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import specs
from tests.unit.operator.helpers import make_observed

SMALL = st.integers(0, 16)
SCORINGS = st.builds(
    Scoring,
    path=st.just("/work/revisions/1f2e3d4c/evaluations/tuned-ab12cd34"),
    served_name=st.just("bot"),
    model_path=st.just("/work/models/9c1d"),
    adapter=st.none() | st.just("/work/revisions/1f2e3d4c/a1-0b6c1d2e/artifact"),
    reference=st.none() | st.just("/work/revisions/1f2e3d4c/evaluations/baseline-ab12cd34"),
    exclude_trained_on=st.none() | st.just("/work/data/0a0b0c0d"),
    forgetting=st.none()
    | st.builds(partial(runconfig.forgetting, "1f2e3d4c", "/work/models/9c1d"), quantized=st.booleans(), skipped=st.none() | st.text()),
    fidelity=st.none() | st.builds(partial(runconfig.fidelity, "1f2e3d4c"), merged=st.booleans(), skipped=st.none() | st.text()),
    server=st.none() | st.fixed_dictionaries({"accelerator": st.none() | st.just("h100"), "accelerators": SMALL, "runtime": st.text()}),
)
ESTIMATE = Estimate.model_validate({"memoryBytes": 61 * 10**9, "seconds": 1700, "passTokens": 4096, "longest": 700})
REVISIONS = st.builds(
    Revision,
    name=st.just("1f2e3d4c"),
    created=st.just("2026-01-01T00:00:00Z"),
    artifact=st.none() | st.just("/work/revisions/1f2e3d4c/a1-0b6c1d2e/artifact"),
    estimate=st.none() | st.just(ESTIMATE),
)
ECONOMICS = st.none() | st.builds(
    economics.page,
    st.builds(
        make_observed,
        changes=st.fixed_dictionaries(
            {"economics": st.none() | specs.block("economics"), "compute": st.sampled_from([{}, {"accelerator": "h100"}])}
        ),
        profiles=st.just({"h100": Accelerator("h100", "nvidia.com/gpu", hourly_price=2.5)}),
    ),
    st.sampled_from([Cost(), Cost(hours="1", gpu_hours="8", amount="20")]),
)
TRAINED = Attempt(revision="1f2e3d4c", number=1, started="2026-01-01T00:00:00Z", gpus=8, gpu_hour="2.5")


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs.names(), specs.specs(), st.sampled_from(names.STAGES), st.integers(1, 99), st.integers(0, 16), SCORINGS, st.data())
def test_every_configuration_loads(
    name: str, spec: dict[str, Any], stage: str, number: int, gpus: int, scoring: Scoring, data: st.DataObject
) -> None:
    loaded_spec = load_spec({"metadata": {"name": name}, "spec": spec})
    if stage == "evaluate":
        revision, attempt = data.draw(REVISIONS), data.draw(st.sampled_from([None, TRAINED]))
        compared = data.draw(ECONOMICS)
        scoring = replace(scoring, report=runconfig.report(loaded_spec, "base", revision, attempt, "USD" if attempt else None, compared))
    if stage == "baseline":
        scoring = replace(scoring, before=runconfig.before(loaded_spec, data.draw(st.sampled_from(["base", "0a0b0c0d"])), 2048))
    folders = data.draw(st.lists(st.just("/work/revisions/1f2e3d4c/a1-0b6c1d2e"), max_size=2))
    chosen = data.draw(st.none() | st.sampled_from(layouts := allowed(loaded_spec)))
    config = runconfig.build(
        "ml", name, "0b6c1d2e-uid", loaded_spec, Stage(stage, "1f2e3d4c", number), runconfig.resolve(loaded_spec),
        gpus=gpus, gpu_memory=data.draw(st.none() | st.just(80 * 2**30)), layout=chosen.asked if chosen else None, resume_from=folders,
        micro_batch_divisor=data.draw(st.sampled_from([1, 2, 64])), scoring=scoring if stage in ("baseline", "evaluate") else None,
    )  # fmt: skip
    loaded = RunConfig.model_validate(json.loads(json.dumps(config, allow_nan=False)))
    assert differences(config, loaded.model_dump(mode="json", by_alias=True)) == []
    if loaded.method is not None:
        require_supported(loaded)
    if stage == "train":
        compute, first = loaded.compute, chosen or layouts[0]
        assert compute is not None
        recompute = loaded.training is not None and loaded.training.gradient_checkpointing
        assert (compute.resolved_sharding, compute.offload.replace("Auto", "None"), recompute) == first.asked
    assert len(json.dumps(config)) < 64 * 1024  # an annotation


NAMES = st.from_regex(r"[0-9a-f]{8}", fullmatch=True)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(NAMES, max_size=32), st.lists(NAMES, max_size=10), st.integers(0, 20))
def test_every_cleaning_loads(revisions: list[str], checkpoints: list[str], keep: int) -> None:
    cleaning = Cleaning(number=7, revisions=revisions, checkpoints=checkpoints, keep=keep)
    config = runconfig.clean("ml", "bot", "0b6c1d2e-uid", Stage(names.CLEAN, "1f2e3d4c", 7), cleaning)
    loaded = CleanRun.model_validate(json.loads(json.dumps(config)))
    assert differences(config, loaded.model_dump(mode="json", by_alias=True)) == []
    assert len(json.dumps(config)) < 64 * 1024  # an annotation


def differences(said: Any, heard: Any, path: str = "") -> list[str]:
    """Where what the trainer holds is not what the operator wrote."""
    if isinstance(said, dict):
        return [d for key, value in said.items() for d in differences(value, heard.get(key), f"{path}.{key}")]
    if isinstance(said, list) and isinstance(heard, list) and len(said) == len(heard):
        return [d for n, (a, b) in enumerate(zip(said, heard, strict=True)) for d in differences(a, b, f"{path}[{n}]")]
    return [] if said == heard else [f"{path}: {said!r} became {heard!r}"]


def test_a_difference_would_be_seen() -> None:
    assert differences({"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": [1, 3]}) == [".a.b: 1 became 2", ".c[1]: 2 became 3"]


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "LoRA, as it is": (
        {"type": "LoRA"},
        {"lora": {"rank": 16, "alpha": 32, "dropout": 0, "targetModules": [], "useRslora": False, "useDora": False}},
        2e-4,
    ),
    "LoRA's variants": (
        {"type": "LoRA", "lora": {"rank": 8, "useRslora": True, "useDora": True, "targetModules": ["q_proj"]}},
        {"lora": {"rank": 8, "alpha": 32, "dropout": 0, "targetModules": ["q_proj"], "useRslora": True, "useDora": True}},
        2e-4,
    ),
    "Full": ({"type": "Full"}, {}, 1e-5),
    "a prompt": ({"type": "PTuning", "prompt": {"virtualTokens": 4}}, {"prompt": {"virtualTokens": 4, "initText": ""}}, 1e-3),
    "preferences": ({"type": "Full", "objective": "DPO", "dpo": {"beta": "0.3"}}, {"dpo": {"beta": 0.3}}, 5e-6),
}


@pytest.mark.parametrize(("said", "blocks", "rate"), METHODS.values(), ids=METHODS)
def test_a_method_carries_its_own_blocks_and_the_learning_rate_that_is_usual_for_it(
    said: dict[str, Any], blocks: dict[str, Any], rate: float
) -> None:  # fmt: skip
    smallest = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": said}
    resolved = runconfig.resolve(load_spec({"metadata": {"name": "bot"}, "spec": smallest}))
    assert resolved["method"] == {"type": said["type"], "objective": said.get("objective", "SFT"), **blocks}
    assert resolved["training"]["learningRate"] == rate


def test_a_report_is_told_what_the_gate_asks_and_what_an_hour_costs() -> None:
    smallest = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}}
    gate = {"minScore": "0.9", "minImprovement": "0", "maxForgettingPercent": 5, "maxServingDivergence": "0.005"}
    spec = load_spec({"metadata": {"name": "bot"}, "spec": {**smallest, "evaluation": {"gate": gate}}})
    revision = Revision(name="r", created="2026-01-01T00:00:00Z", artifact="/work/a", estimate=ESTIMATE)
    assert runconfig.report(spec, "0a0b0c0d", revision, TRAINED, "USD") == {
        "reference": "0a0b0c0d", "artifact": "/work/a",
        "gate": {
            "minScore": 0.9, "minImprovement": 0.0, "minImprovementOverLive": None, "maxForgettingPercent": 5,
            "maxServingDivergence": 0.005,
        },
        "spent": {"gpus": 8, "gpuHour": 2.5, "currency": "USD", "estimatedSeconds": 1700, "estimatedMemoryBytes": 61 * 10**9},
        "economics": None,
    }  # fmt: skip


def test_the_metrics_are_the_trainers_and_loss() -> None:
    ours, theirs = (model.model_fields["type"].annotation for model in (Metric, MetricConfig))
    assert {*get_args(ours), "Loss"} == set(get_args(theirs))


def test_a_misspelt_key_is_refused() -> None:
    smallest = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}}
    spec = load_spec({"metadata": {"name": "bot"}, "spec": smallest})
    config = runconfig.build("ml", "bot", "u", spec, Stage("train", "r", 1), runconfig.resolve(spec))
    config["training"]["learningRat"] = 1
    with pytest.raises(ValueError, match="learningRat"):
        RunConfig.model_validate(config)


def test_the_stages_are_the_trainers_commands() -> None:
    commands = {"evaluate" if stage == "baseline" else stage for stage in (*names.STAGES, names.CLEAN)}
    assert {*commands, names.PROBE, names.ASK} == set(trainer.STAGES)


@pytest.mark.parametrize("adapter", [None, "/work/artifact"])
def test_the_server_knows_its_arguments(adapter: str | None) -> None:
    """Read from its source: the server itself needs more than this environment has."""
    source = Path(trainer.__file__).parent / "serve" / "cli.py"
    known = {
        argument.value
        for call in ast.walk(ast.parse(source.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }
    given = {word for word in serve_args(Served("/work/models/m", adapter, "r", "bot")) if word.startswith("--")}
    assert given - known == set()
    assert {"--model", "--served-model-name", "--port", *({"--adapter"} if adapter else ())} <= given


def test_a_gang_that_lacks_a_machine_is_ended_uncharged_before_its_ranks_give_up() -> None:
    assert GATHER_SECONDS > 3 * GANG_SECONDS
