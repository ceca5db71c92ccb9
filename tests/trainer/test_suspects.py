"""Which rows spoil a step or a validation, by their numbers in the source; and what it means where it is none of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.config import RunConfig
from finetune_trainer.data import origins, prepare
from finetune_trainer.exits import NonFinite
from finetune_trainer.train.engine import Replicated
from finetune_trainer.train.loop import Loop, Run

from tests.trainer import lives
from tests.trainer.support import make_config, on_ranks, rows, training, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
RARE = "%"
SOURCE = "configmap://rows/train.jsonl"
Configured = Callable[..., dict[str, Any]]


@pytest.fixture
def odd(work: Path, tiny_model: Path, tmp_path: Path) -> Configured:
    """A configuration of rows of which those of these numbers hold a rare token."""

    def make(*numbers: int, every: bool = False, **overrides: Any) -> dict[str, Any]:
        values = [
            {**row, "instruction": f"{row['instruction']} {RARE}"} if every or place + 1 in numbers else row
            for place, row in enumerate(rows())
        ]
        source = write_rows(tmp_path / "train.jsonl", values)
        same = {"data__path": str(tmp_path / f"data-{len(list(tmp_path.glob('data-*')))}"), "model__path": str(work / "models" / "tiny")}
        prepare.main(RunConfig.model_validate(make_config("prepare", tmp_path, tiny_model, source, **same)))
        return make_config("train", tmp_path, tiny_model, source, **same, **overrides)

    return make


def numbers_in(config: dict[str, Any], split: str = "train") -> list[int]:
    """The source's numbers of the rows of a split, in the order of the arrays."""
    return [json.loads(line)[0] for line in Path(config["data"]["path"], f"{split}-rows.jsonl").read_text().splitlines()]


def spoil(run: Run) -> Run:
    """Let the rare token's embedding be no number. The tiny model's one is its head too, so it is done behind it."""
    token = 3 + sorted(_alphabet()).index(RARE)
    embedding = next(module for name, module in run.model.named_modules() if name.endswith("embed_tokens"))
    embedding.register_forward_hook(lambda _module, given, said: said.masked_fill((given[0] == token)[..., None], float("nan")))
    return run


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return list(pre_tokenizers.ByteLevel.alphabet())


def test_a_row_that_spoils_its_step_is_named_and_the_run_goes_on(odd: Configured, tmp_path: Path, capsys: Any) -> None:
    config = odd(10, 11, 12)
    bad = [number for number in (10, 11, 12) if number in numbers_in(config)]
    outcome = Loop(spoil(lives.build(config, tmp_path / "a0-one"))).execute()
    said = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    assert 0 < outcome.state.skipped == len(said) <= len(bad)
    told = [int(number) for line in said for number in re.findall(r"\d+", line.partition(": row")[2].partition(" of ")[0])]
    assert sorted(told) == bad
    assert all(f" of {SOURCE} ha" in line for line in said), said
    assert all(value.isfinite().all() for value in outcome.weights.values())


@pytest.mark.parametrize(("sharding", "kind"), [("DDP", "LoRA"), ("ZeRO3", "Full")])
def test_ranks_look_together_and_say_the_same(sharding: str, kind: str, odd: Configured, tmp_path: Path) -> None:
    numbers = (3, 30)
    whole = {"training__tokensPerStep": 100_000, "training__epochs": 10, "training__evaluateEverySteps": 1000}  # one step an epoch
    config = odd(*numbers, compute__nodes=2, compute__sharding=sharding, **whole)
    config["method"] = {"type": kind, "objective": "SFT"}
    bad = [number for number in numbers if number in numbers_in(config)]
    assert bad
    for message, fix in on_ranks(2, _gives_up, config, str(tmp_path / "a0-x")):
        assert message.startswith("loss or gradients are not finite at step 6, also after a roll-back (learning rate ")
        rows_of = f"row{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad))} of {SOURCE} ha"
        assert f": {rows_of}" in message, message
        assert fix == "Look at these rows: correct them or take them out."


def _gives_up(config: dict[str, Any], attempt: str) -> tuple[str, str]:
    run = spoil(lives.build_on(config, Path(attempt)))
    try:
        Loop(run).execute()
    except NonFinite as error:
        run.ranks.leave()
        return error.message, error.fix
    raise AssertionError("the run ended well")


def fails(config: dict[str, Any], folder: Path, disturb: Callable[[Run], Run] = lambda run: run) -> NonFinite:
    """What ends the run."""
    with pytest.raises(NonFinite) as found:
        Loop(disturb(lives.build(config, folder / "a0-one"))).execute()
    return found.value


def test_where_no_row_has_a_finite_loss_it_is_no_row(odd: Configured, tmp_path: Path) -> None:
    error = fails(odd(every=True), tmp_path, spoil)
    assert re.search(r": no row has a finite loss, rows (\d+, ){2,4}\d+ of .* among them$", error.message), error.message
    assert error.fix.startswith("Weights of the base model are not finite"), "no step went well before"


def test_a_validation_row_is_named_too(odd: Configured, tmp_path: Path) -> None:
    held = numbers_in(odd(every=True), "validation")  # its content decides which split a row goes to
    error = fails(odd(held[0], training__evaluateEverySteps=1), tmp_path, spoil)
    assert error.message == f"the validation loss is nan at step 1: row {held[0]} of {SOURCE} has a loss that is not finite"


def test_gradients_that_overflow_are_no_rows_fault(odd: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Replicated.backward
    monkeypatch.setattr(Replicated, "backward", lambda engine, loss: backward(engine, loss * float("inf")))
    error = fails(odd(), tmp_path)
    assert error.message.endswith(": each row's loss alone is finite: the gradients overflow")
    assert error.fix == "Lower training.learningRate."


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_rate_that_no_weight_can_take_is_told_as_that(rate: float, odd: Configured, tmp_path: Path) -> None:
    with training(tmp_path / "pods", odd(training__learningRate=rate, training__evaluateEverySteps=1000)) as [pod]:
        error = pod.ends(23).message["error"]
    assert (error["class"], error["reason"]) == ("nonFinite", "NonFiniteLoss")
    assert error["fix"] == "Lower training.learningRate."
    assert "learning rate" in error["message"]


def test_rows_are_told_by_number_and_source_or_by_their_place(tmp_path: Path) -> None:
    lines = [[row, source] for source in ("a.jsonl", "b.jsonl") for row in (1, 2, 5)]
    write_rows(tmp_path / "train-rows.jsonl", lines)
    assert origins.told(tmp_path, "train", [2, 0]) == "rows 1, 5 of a.jsonl"
    assert origins.told(tmp_path, "train", [4]) == "row 2 of b.jsonl"
    assert origins.told(tmp_path, "train", range(6)) == "rows 1, 2, 5 of a.jsonl and rows 1, 2 of b.jsonl and 1 more"
    assert origins.told(tmp_path, "validation", [3, 9]) == "rows 3, 9 (from 0) of the prepared validation rows"
