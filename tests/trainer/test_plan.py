"""Which rows each step, rank and pass takes, and at which rate they are learned."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer import schedule
from finetune_trainer.config import TrainingConfig
from finetune_trainer.train import optimizer, plan

LENGTHS = np.random.default_rng(3).integers(5, 200, size=301)


def test_an_epoch_takes_every_row_once_in_steps_of_about_equal_tokens() -> None:
    made = plan.make(LENGTHS, 1000, 2, 17, 2048)
    steps = [made.rows(step) for step in range(made.steps_per_epoch)]
    assert sorted(row for rows in steps for row in rows) == list(range(len(LENGTHS)))
    sizes = [int(LENGTHS[list(rows)].sum()) for rows in steps]
    assert max(sizes) - min(sizes) <= 2 * LENGTHS.max()


def test_the_next_epoch_has_another_order_and_the_same_seed_the_same_one() -> None:
    one, two = plan.make(LENGTHS, 1000, 2, 17, 2048), plan.make(LENGTHS, 1000, 2, 17, 2048)
    assert one.rows(0) != one.rows(one.steps_per_epoch)
    assert [one.rows(step) for step in range(one.total_steps)] == [two.rows(step) for step in range(two.total_steps)]
    assert one.rows(0) != plan.make(LENGTHS, 1000, 2, 18, 2048).rows(0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_step_holds_the_same_rows_however_many_ranks_share_it(ranks: int) -> None:
    made = plan.make(LENGTHS, 1000, 1, 17, 512)
    for step in range(made.total_steps):
        shared = [row for rank in range(ranks) for batch, _ in made.micro_batches(step, rank, ranks) for row in batch]
        assert sorted(shared) == sorted(made.rows(step))


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_pass_is_larger_than_the_limit_and_ranks_share_about_evenly(ranks: int) -> None:
    made = plan.make(LENGTHS, 2000, 1, 17, 512)
    for step in range(made.total_steps):
        loads = []
        for rank in range(ranks):
            batches = [batch for batch, _ in made.micro_batches(step, rank, ranks)]
            assert all(len(batch) * max(LENGTHS[list(batch)]) <= 512 for batch in batches)
            loads.append(sum(int(LENGTHS[row]) for batch in batches for row in batch))
        assert max(loads) <= 0.65 * sum(loads) + LENGTHS.max() or ranks == 1


def test_more_ranks_than_rows_leave_some_without_work() -> None:
    made = plan.make(np.array([10, 10]), 20, 1, 17, 512)
    assert [len(made.micro_batches(0, rank, 3)) for rank in range(3)] == [1, 1, 0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_that_pass_in_step_make_as_many_and_only_fill_in_with_the_shortest_row(ranks: int) -> None:
    made = plan.make(LENGTHS, 1000, 1, 17, 512)
    for step in range(made.total_steps):
        found = [made.micro_batches(step, rank, ranks, in_step=True) for rank in range(ranks)]
        assert len({len(passes) for passes in found}) == 1
        assert [[p for p in passes if p.weight] for passes in found] == [made.micro_batches(step, rank, ranks) for rank in range(ranks)]
        shortest = min(LENGTHS[list(made.rows(step))])
        assert all([LENGTHS[row] for row in p.rows] == [shortest] for passes in found for p in passes if not p.weight)


STEPS = {
    "fifty steps an epoch where the rows allow": ((100_000, 1000, None), 2000),
    "at most 32,768 tokens": ((10_000_000, 10_000, None), 32_768),
    "never less than a mean row": ((1000, 10, None), 100),
    "what the user wants": ((100_000, 1000, 77), 77),
}


@pytest.mark.parametrize(("given", "expected"), STEPS.values(), ids=STEPS)
def test_tokens_per_step(given: tuple[int, int, int | None], expected: int) -> None:
    assert schedule.tokens_per_step(*given) == expected


def test_there_are_never_more_steps_than_rows() -> None:
    assert schedule.steps_per_epoch(1000, 3, 10) == 3
    assert plan.make(np.array([5, 5, 5]), 1, 1, 17, 64).total_steps == 3


RATES = {
    "cosine: warms up, peaks, ends near nothing": ("Cosine", [0.5, 1.0, 1.0, 0.9904, 0.0096]),
    "linear": ("Linear", [0.5, 1.0, 1.0, 0.9375, 0.0625]),
    "constant": ("Constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize(("schedule_", "expected"), RATES.values(), ids=RATES)
def test_learning_rates(schedule_: str, expected: list[float]) -> None:
    training = TrainingConfig.model_validate({"learningRate": 1, "warmupPercent": 10, "schedule": schedule_})
    found = [optimizer.learning_rate(step, 18, training) for step in (0, 1, 2, 3, 17)]
    assert found == pytest.approx(expected, abs=1e-4)
