"""The host runs ahead of its device: a step reads nothing that the device still computes.

On a CPU nothing waits, so what would wait on a GPU is counted: whatever gives the host a tensor's content, or a size that depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.exits import Interrupted, NonFinite
from finetune_trainer.train import assemble, checkpoint, loop
from finetune_trainer.train.device import Later
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.loop import Loop, Run
from finetune_trainer.train.optimizer import Tensors
from torch import distributed
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer import lives
from tests.trainer.support import make_config, on_ranks
from tests.trainer.test_dpo import configured as preferred
from tests.trainer.test_dpo import pairs
from tests.trainer.test_families import FAMILIES, models
from tests.trainer.test_methods import configured

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
__all__ = ["models", "pairs"]
READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"}
OF_PADDING = ["__bool__", "_local_scalar_dense"] * 2  # of transformers, in a pass of padded rows: whether and where any of it is padding
SIZED = {
    "_local_scalar_dense",
    "nonzero",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "equal",
    "is_nonzero",
}


LATE = [(1, 2), (2, 3), (3, 4), (4, 5)]
Seen = tuple[list[str], int, list[tuple[int, int]]]


class _Calls(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in READS:
            self._found.append(name)
        return function(*arguments, **(named or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name in SIZED:
            self._found.append(name)
        return function(*arguments, **(named or {}))


@contextmanager
def reads(found: list[str]) -> Iterator[None]:
    """While open, `found` gets the name of each read."""
    with _Calls(found), _Operations(found):
        yield


class Watched(Later):
    """What a step came to, of which it is kept when it is read: how many steps were queued by then. Its own read is no other's."""

    made = 0
    found: list[str]
    read_at: list[tuple[int, int]]

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__(values)
        type(self).made += 1
        self._number = self.made

    def read(self) -> tuple[list[float], float]:
        self.read_at.append((self._number, self.made))
        said = super().read()
        assert self.found.pop() == "tolist"
        return said


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Seen]:
    """Makes five steps and says what they read, in how many passes, and which steps were read of when how many were queued."""

    def see(config: dict[str, Any]) -> Seen:
        for name, value in (("made", 0), ("found", []), ("read_at", [])):
            monkeypatch.setattr(Watched, name, value, raising=False)
        monkeypatch.setattr(loop, "Later", Watched)
        run = lives.build(config, tmp_path / "a0-one")
        began = Loop(run)
        with reads(Watched.found):
            for step in range(5):
                began._step(step)
        return Watched.found, sum(len(run.steps.micro_batches(step, 0, 1)) for step in range(5)), Watched.read_at

    return see


@pytest.fixture
def config(request: pytest.FixtureRequest, work: Path, tiny_model: Path, pairs: Path) -> Any:
    """Of the method that the test names."""
    if request.param == "DPO":
        return preferred(work, tiny_model, pairs, "LoRA")
    return configured(work, tiny_model, request.param)


@pytest.mark.parametrize("config", ["Full", "LoRA", "DoRA", "QLoRA NF4", "QLoRA Int8", "DPO"], indirect=True)
def test_a_step_reads_what_the_one_before_came_to_and_nothing_else(config: dict[str, Any], watch: Callable[[dict[str, Any]], Seen]) -> None:
    found, _, read_at = watch(config)
    assert (found, read_at) == ([], LATE)


def test_nor_where_layers_are_computed_again(work: Path, tiny_model: Path, watch: Callable[[dict[str, Any]], Seen]) -> None:
    found, _, read_at = watch(configured(work, tiny_model, "LoRA", training__gradientCheckpointing=True))
    assert (found, read_at) == ([], LATE)


@pytest.mark.parametrize("family", FAMILIES)
def test_nor_in_any_family_of_models(family: str, work: Path, models: dict[str, Path], watch: Callable[[dict[str, Any]], Seen]) -> None:
    """To which expert a token goes is not asked for either."""
    found, _, read_at = watch(make_config("train", work, models[family], model__path=str(models[family])))
    assert (found, read_at) == ([], LATE)


@pytest.mark.parametrize("config", ["Full", "LoRA", "prompt tuning", "DPO"], indirect=True)
def test_of_padded_rows_the_model_alone_reads_anything(
    config: dict[str, Any], watch: Callable[[dict[str, Any]], Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here without the fused head too: the columns of the logits that are kept are the host's."""
    monkeypatch.setattr(assemble, "shortcuts", lambda *arguments: (False, None))
    found, passes, read_at = watch(config)
    assert (found, read_at) == (OF_PADDING * passes, LATE)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_step_that_is_not_finite_changes_nothing_before_anybody_has_read_so(
    value: str, work: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Neither weights nor what the optimizer keeps, its count of steps included; the step after it is made, and told with the next."""
    run = lives.build(configured(work, tiny_model, "LoRA"), tmp_path / "a0-one")
    began, backward = Loop(run), run.engine.backward
    began._step(0)
    before = [*run.engine.weights().values(), *_moments(run)]
    run.engine.backward = lambda loss: backward(loss * float(value))  # type: ignore[method-assign]
    began._step(1)
    after = [*run.engine.weights().values(), *_moments(run)]
    assert began.state.skipped == 0, "nobody knows yet"
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    run.engine.backward = backward  # type: ignore[method-assign]
    began._step(2)
    assert (began.state.skipped, [step for step, _ in began.state.losses.points]) == (1, [1, 3])
    assert {float(step) for name, step in _states(run).items() if name.startswith("step/")} == {2.0}


LIVES: dict[str, tuple[set[int], int | None]] = {
    "the last step": ({7}, None),
    "the last three steps": ({5, 6, 7}, None),
    "a step of which a checkpoint is due": ({5}, None),
    "the step before it": ({4}, None),
    "three steps around it": ({4, 5, 6}, None),
    "three steps far from it": ({2, 3, 4}, None),
    "a step before a validation": ({6}, None),
    "a step during which it is asked to stop": ({3}, 3),
    "the step before that": ({2}, 3),
    "the third of them": ({1, 2, 3}, 3),
    "all steps": (set(range(1, 8)), None),
}


@pytest.mark.parametrize(("bad", "stop"), LIVES.values(), ids=LIVES)
def test_a_run_is_the_same_whether_its_steps_are_told_late_or_at_once(
    bad: set[int], stop: int | None, work: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where these steps are not finite: losses, weights, what the optimizer keeps, and each checkpoint."""
    settings = {"tokensPerStep": 500, "evaluateEverySteps": 6, "checkpoint": {"everySteps": 5, "everySeconds": None, "keep": 9}}
    config = configured(work, tiny_model, "LoRA")
    config["training"] |= settings
    at_once, late = (_lived(config, tmp_path / f"a{ahead}-one", ahead, bad, stop, monkeypatch) for ahead in (0, 1))
    assert at_once == late


def _lived(
    config: dict[str, Any], attempt: Path, ahead: int, bad: set[int], stop: int | None, patch: pytest.MonkeyPatch
) -> tuple[Any, ...]:
    """How a run ends, what it tells, what it holds, and what it has saved."""
    patch.setattr(loop, "AHEAD", ahead)
    told = list[tuple[int, str]]()
    patch.setattr(Loop, "_report", lambda _loop, step, loss, _rate: told.append((step, repr(loss))))
    run = lives.build(config, attempt)
    assert run.steps.total_steps == 7
    backward = run.engine.backward
    run.engine.backward = lambda loss: backward(loss * (float("nan") if run.step + 1 in bad else 1))  # type: ignore[method-assign]
    if stop is not None:
        lives.stop_during(run, stop)
    try:
        end: Any = replace(Loop(run).execute().state, seconds=0)
    except (Interrupted, NonFinite) as error:
        end = str(error)
    saved = [checkpoint.load(folder) for folder in checkpoint.found([attempt])]
    content = [(replace(one.state, seconds=0), *map(_sums, (one.weights, one.optimizer, one.best or {}))) for one in saved]
    return end, told, (_sums(run.engine.weights()), _sums(_states(run))), content


def _sums(tensors: Tensors) -> dict[str, float]:
    return {name: float(value.double().sum()) for name, value in tensors.items()}


def _states(run: Run) -> dict[str, torch.Tensor]:
    run.engine.remember()
    return run.engine.state()[1]


def _moments(run: Run) -> list[torch.Tensor]:
    return [value for _, value in sorted(_states(run).items())]


def test_hosts_agree_in_a_group_of_their_own(tmp_path: Path) -> None:
    """As beside a group of GPUs; the numbers are exact in float64."""
    for found in on_ranks(2, _agrees):
        assert found == [3.0, 2.0**40 + 1, 2]


def _agrees() -> list[float]:
    joined = Ranks.join(60, gpus=False)
    ranks = replace(joined, hosts=distributed.new_group(backend="gloo"))
    numbers = [1.0 + ranks.rank, 2.0**40 if ranks.first else 1.0]
    found = ranks.agree(numbers)
    size = distributed.get_world_size(ranks.hosts)
    ranks.leave()
    return [*found, size]
