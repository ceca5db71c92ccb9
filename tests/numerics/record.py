"""Record the trajectories that fresh runs are held against: `python3 tools/env.py oracle python -m tests.numerics.record`.

To be run where a change is meant to move the numbers, and the difference looked at before it is committed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tests.bench.trainer.prepare import model as made
from tests.numerics.subjects import METHODS, configured, plain, prepared
from tests.trainer import lives

RECORD = Path(__file__).with_name("trajectories.json")
TOLERANCE = 1e-4  # relative: other processors add in another order
CASES = [*((name, "SFT") for name in METHODS), ("LoRA", "DPO"), ("Full", "DPO")]


def losses(work: Path, model: Path, name: str, objective: str, folder: Path) -> list[float]:
    """Loss by step of a fresh run."""
    return list(lives.train(configured(work, model, name, objective), folder).losses.values())


def main() -> None:
    os.environ["FINETUNE_PROGRESS_PORT"] = "0"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = plain(made(folder / "tiny", "tiny_model"), folder / "model")
        (folder / "work").mkdir()
        work = prepared(folder / "work", model)
        found = {f"{objective} {name}": losses(work, model, name, objective, folder / objective / name) for name, objective in CASES}
    RECORD.write_text(json.dumps({key: [float(f"{value:.8g}") for value in values] for key, values in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
