"""The curve of a run's losses: few points, the same ones whatever interrupted it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from finetune_trainer.train import curve
from finetune_trainer.train.curve import POINTS, Curve


def of(values: list[float]) -> Curve:
    found = Curve()
    for step, value in enumerate(values, 1):
        found = found.add(step, value)
    return found


def test_a_short_run_keeps_every_loss() -> None:
    assert curve.shown(of([3.0, 2.0, 1.0]), 3) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert curve.shown(Curve(), 0) == []


@pytest.mark.parametrize("steps", [POINTS, POINTS + 1, POINTS + 2, 1000, 5000, 70_001])
def test_a_long_run_keeps_few_points_and_no_loss_is_left_out(steps: int) -> None:
    found = of([float(n) for n in range(1, steps + 1)])
    points = curve.shown(found, steps)
    assert len(points) <= POINTS + 1
    assert len(points) >= POINTS // 2
    assert points[-1][0] == steps
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    weights = [found.every] * len(found.points) + ([len(found.open)] if found.open else [])
    assert sum(weights) == steps, "every loss is in one point"
    mean = sum(weight * loss for weight, (_, loss) in zip(weights, points, strict=True)) / steps
    assert mean == pytest.approx((steps + 1) / 2)


@pytest.mark.parametrize("cut", [0, 1, 255, 257, 258, 700])
def test_an_interrupted_run_has_the_same_curve(cut: int) -> None:
    values = [1 / n for n in range(1, 1000)]
    first = of(values[:cut])
    found = curve.read(json.loads(json.dumps(asdict(first))))
    assert found == first
    for step, value in enumerate(values[cut:], cut + 1):
        found = found.add(step, value)
    assert found == of(values)


def test_a_checkpoint_of_before_has_none() -> None:
    assert curve.read(None) == Curve()
