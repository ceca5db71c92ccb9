"""Recorded runs, computed anew: whatever moves a loss of any step shows here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.numerics.conftest import Measured
from tests.numerics.record import CASES, RECORD, TOLERANCE, losses
from tests.numerics.subjects import relative

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it


def test_every_case_is_recorded() -> None:
    assert list(json.loads(RECORD.read_text())) == [f"{objective} {name}" for name, objective in CASES]


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_a_fresh_run_is_the_recorded_one(
    name: str, objective: str, work: Path, plain_model: Path, tmp_path: Path, measured: Measured
) -> None:  # fmt: skip
    recorded = json.loads(RECORD.read_text())[f"{objective} {name}"]
    found = losses(work, plain_model, name, objective, tmp_path)
    measured(f"{objective} {name}: loss of each step, recorded run (relative)", relative(found, recorded), TOLERANCE)
