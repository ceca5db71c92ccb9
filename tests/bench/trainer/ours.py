"""One run of the trainer, measured: `python -m tests.bench.trainer.ours SPEC`; last line JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from finetune_trainer import estimate
from finetune_trainer.config import RunConfig, need
from finetune_trainer.data import arrays
from finetune_trainer.progress import Progress
from finetune_trainer.train import assemble, loop, objective, outline, plan
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.engine import Replicated
from finetune_trainer.train.loop import Loop, Run

from tests.bench.trainer import measure


def build(config: RunConfig, ranks: Ranks, folder: Path) -> Run:
    """What the loop works with."""
    return assemble.build(config, ranks, assemble.open_inputs(config), folder, Progress("train"), lambda: None)


def watch(stopwatch: measure.Stopwatch) -> None:
    """Count the parts of a step."""
    for owner, name in ((plan.Plan, "rows"), (plan.Plan, "micro_batches"), (objective.Sft, "count"), (objective, "collate")):
        stopwatch.wrap(owner, name, "data")
    stopwatch.wrap(Ranks, "sum", "reduce")
    stopwatch.wrap(Replicated, "step", "optimizer")
    stopwatch.wrap(Loop, "_step", "forward and backward")
    stopwatch.wrap(Loop, "_save", "checkpoint")


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Train, save, resume."""
    device = torch.device(spec["device"])
    torch.set_num_threads(spec["threads"])
    config, ranks = RunConfig.model_validate(spec["config"]), Ranks(0, 0, 1, device)
    stopwatch = measure.Stopwatch(device)
    watch(stopwatch)
    run = build(config, ranks, Path(spec["folder"]) / "a0-one")
    if device.type == "cpu":
        loop.AHEAD = 0  # nothing runs beside the host there: what is told a step late would seem to have ended with the next one
    ends = measure.Ends()
    losses: list[float] = []
    report = loop.Loop._report

    def reported(self: Loop, step: int, loss: float, rate: float) -> None:
        ends.mark()
        losses.append(loss)
        report(self, step, loss, rate)

    loop.Loop._report = reported  # type: ignore[method-assign]
    engine = Loop(run)
    engine.execute()
    parts, peak = dict(stopwatch.seconds), measure.peak_mib(device)
    steps = [list(run.steps.rows(step)) for step in range(len(ends))]
    tokens = [int(run.train.lengths[rows].sum()) for rows in steps]
    supervised = [objective.supervised_count(run.train, rows) for rows in steps]
    speeds = ends.speeds(tokens, supervised)
    method = need(config.method, "method")
    each = estimate.operations(outline.count(config.model, method), method)
    most = measure.peak_flops(device, run.bf16)
    kept = measure.kept_apart(run.model, arrays.load(need(config.data, "data").path, "validation"), run.bf16, device)
    engine._save()
    before = time.perf_counter()
    Loop(build(config, ranks, Path(spec["folder"]) / "a0-one"))
    return {
        **speeds,
        "mfu": round(speeds["tokens_per_s"] * each / most, 3) if most else None,
        "peak_mib": peak,
        "steps": len(ends),
        "passes": sum(len(run.steps.micro_batches(step, 0, 1)) for step in range(len(ends))),
        "first_loss": round(losses[0], 4),
        "last_losses": [round(loss, 4) for loss in losses[-3:]],
        "validation_loss": round(kept, 4),
        "step_parts_percent": {part: round(100 * value / sum(parts.values()), 2) for part, value in parts.items()},
        "checkpoint_stall_s": round(stopwatch.seconds["checkpoint"], 3),
        "resume_s": round(time.perf_counter() - before, 2),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
