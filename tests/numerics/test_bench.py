"""`make bench-trainer` runs to its last line; what it measures is not asked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.bench.trainer.__main__ import ROOT
from tests.bench.trainer.rows import rows

ASKED = {"device", "tokens_per_s", "supervised_tokens_per_s", "trl_tokens_per_s", "ratio", "mfu", "peak_mib", "trl_peak_mib", "cases"}


def test_both_sides_are_measured_on_the_tiny_model() -> None:
    command = [sys.executable, "-m", "tests.bench.trainer", "--model", "tiny_model", "--rows", "16", "--precision", "fp32", "--no-gpu"]
    environment = {**os.environ, "FINETUNE_PROGRESS_PORT": "0"}
    told = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = json.loads(told[-1])
    assert set(found) >= ASKED
    assert all(found[name] > 0 for name in ASKED - {"device", "cases"})
    assert found["validation_loss"] == pytest.approx(found["trl_validation_loss"], rel=0.05)
    assert sum(found["step_parts_percent"].values()) == pytest.approx(100, abs=0.1)
    assert "8B LoRA bf16" in told[-2]


def test_rows_are_different_and_of_mixed_length() -> None:
    found = rows(64)
    assert found == rows(64)
    lengths = sorted(len(row["output"].split()) for row in found)
    assert len({row["output"] for row in found}) == 64
    assert lengths[48] > 4 * lengths[16]
