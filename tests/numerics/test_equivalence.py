"""One batch, however it is computed: whole, cut into passes, or shared by two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.numerics.conftest import Measured
from tests.numerics.subjects import configured, relative
from tests.trainer import lives
from tests.trainer.support import training

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
LOSS = 1e-5


@pytest.mark.parametrize(("name", "objective"), [("Full", "SFT"), ("LoRA", "SFT"), ("LoRA", "DPO")])
def test_a_step_is_the_same_however_it_is_computed(
    name: str, objective: str, work: Path, plain_model: Path, tmp_path: Path, measured: Measured
) -> None:  # fmt: skip
    whole = lives.train(configured(work, plain_model, name, objective, training__microBatchTokens=100_000), tmp_path / "whole")
    losses = list(whole.losses.values())
    assert {len(whole.run.steps.micro_batches(step, 0, 1)) for step in range(len(losses))} == {1}
    cut = lives.train(configured(work, plain_model, name, objective, training__microBatchTokens=160), tmp_path / "cut")
    assert all(len(cut.run.steps.micro_batches(step, 0, 1)) >= 3 for step in range(len(losses)))
    what = f"{objective} {name}: loss of each step,"
    measured(f"{what} one pass and several (relative)", relative(list(cut.losses.values()), losses), LOSS)
    config = configured(work, plain_model, name, objective, compute__nodes=2, run__path=str(tmp_path / "gang" / "a0"))
    with training(tmp_path / "pods", config) as [first, second]:
        first.ends(0, 240)
        second.ends(0)
    measured(f"{what} one rank and two (relative)", relative(list(first.losses.values()), losses), LOSS)
