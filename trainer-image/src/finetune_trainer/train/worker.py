"""One rank: join, load, resume, run the loop, export; leave an outcome file for the launcher.

Invariant: whatever happens, the outcome file says why before the process ends, and the process ends with that code
without waiting for anybody.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from finetune_trainer import exits, hardware, layout
from finetune_trainer.config import RunConfig, need
from finetune_trainer.progress import Progress, serving, timestamp
from finetune_trainer.train.watchdog import Watchdog, whereabouts

OUTCOMES = "FINETUNE_OUTCOMES"
MARGIN_SECONDS = 300


class Context:
    """What a failure message tells: where the rank stood."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.run: object = None
        self.stop_requested = False

    def facts(self) -> exits.JsonObject:
        """`folder`, `step` and `checkpoint` of the termination message."""
        last = getattr(self.run, "last_checkpoint", None)
        return {
            "folder": str(self.folder) if self.folder else None,
            "step": getattr(self.run, "step", None),
            "checkpoint": str(last) if last else None,
        }


def main(config: RunConfig) -> None:
    """Run this rank, in a process forked from the launcher; returns only on success."""
    context = Context()
    signal.set_wakeup_fd(-1)  # the launcher's
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    (outcome_folder() / f"started-{os.environ['LOCAL_RANK']}").touch()
    try:
        signal.signal(signal.SIGTERM, _on_stop(context))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stall = need(config.compute, "compute").stall_seconds
        watchdog = Watchdog(stall, lambda silent: leave(_stalled(silent, stall), context))
        watchdog.start()
        result = run_rank(config, context, watchdog)
        watchdog.stop()
        write_outcome({"code": 0, "message": result})
    except BaseException as error:
        leave(error, context)


def run_rank(config: RunConfig, context: Context, watchdog: Watchdog) -> exits.JsonObject:
    """Everything a rank does; the result is the termination message of rank 0."""
    import torch

    compute = need(config.compute, "compute")
    torch.set_num_threads(compute.threads or max(1, hardware.cpu_limit() // compute.processes_per_node))
    if compute.gpus_per_node and not torch.cuda.is_available():
        raise exits.Infrastructure("NoGpu", "this pod sees no GPU", "Check the node's driver and device plugin.")
    progress = Progress("train")
    if int(os.environ["LOCAL_RANK"]) > 0:
        return _among_ranks(config, context, watchdog, progress)
    with serving(progress):
        progress.update(state="joining")
        return _among_ranks(config, context, watchdog, progress)


def _among_ranks(config: RunConfig, context: Context, watchdog: Watchdog, progress: Progress) -> exits.JsonObject:
    from finetune_trainer.train import lifeline
    from finetune_trainer.train.distributed import Ranks

    compute = need(config.compute, "compute")
    ranks = Ranks.join(compute.stall_seconds + MARGIN_SECONDS, compute.gpus_per_node > 0)
    with lifeline.held(ranks, lambda error: leave(error, context)):
        result = _train(config, context, watchdog, progress, ranks)
    ranks.leave()
    return result


def _train(config: RunConfig, context: Context, watchdog: Watchdog, progress: Progress, ranks: object) -> exits.JsonObject:
    from finetune_trainer.train import artifact, assemble, checkpoint, curve, loop
    from finetune_trainer.train.distributed import Ranks

    assert isinstance(ranks, Ranks)
    watchdog.beat()
    context.folder = folder = assemble.attempt_folder(config, ranks)
    progress.update(state="loading", folder=str(folder))
    inputs = assemble.open_inputs(config)
    attempts = assemble.resumable(config, folder)
    size = layout.size(layout.artifact(attempt) for attempt in attempts)
    done = ranks.tell(ranks.first_does(lambda: assemble.finished(attempts, inputs.fingerprint), watchdog.beat, size))
    if done is not None:
        return dict(done)
    run = assemble.build(config, ranks, inputs, folder, progress, watchdog.beat)
    context.run = run
    if context.stop_requested:
        run.stop_requested = True
    started = time.monotonic()
    if run.resume is not None:
        progress.update(resumedFromStep=run.resume.state.step, note=f"resumed from {run.last_checkpoint}")
    outcome = loop.Loop(run).execute()
    progress.update(state="exporting", percent=100)
    watchdog.beat()
    result: exits.JsonObject = {
        "stage": "train",
        "folder": str(folder),
        "step": outcome.state.step,
        "totalSteps": run.steps.total_steps,
        "loss": outcome.state.loss,
        "validationLoss": outcome.state.best_loss,
        "tokens": outcome.state.tokens,
        "order": outcome.state.order,
        "seconds": round(outcome.state.seconds, 1),
        "tokensPerSecond": outcome.tokens_per_second,
        "resumedFromStep": run.resume.state.step if run.resume else None,
        "bestStep": outcome.state.best_step,
        "stoppedEarly": outcome.stopped_early,
    }

    def export() -> exits.JsonObject:
        facts = artifact.provenance(config, inputs.fingerprint, inputs.model, inputs.data)
        facts["curves"] = {name: curve.shown(getattr(outcome.state, name), outcome.state.step) for name in checkpoint.CURVES}
        model = assemble.exportable(config, run, outcome.weights)
        return artifact.save(folder, model, outcome.weights, {**facts, "result": result, "time": timestamp()}, config.model.path)

    saved = ranks.first_does(export, watchdog.beat, checkpoint.size_of(outcome.weights))
    if saved is not None:
        result.update(artifact=str(layout.artifact(folder)), digest=saved["digest"])
    progress.update(state="done", note=f"{time.monotonic() - started:.0f} s in this attempt")
    return result


def outcome_folder() -> Path:
    """Where the ranks of this pod leave their outcomes."""
    return Path(os.environ[OUTCOMES])


def write_outcome(outcome: exits.JsonObject) -> None:
    """Leave this rank's outcome for the launcher."""
    path = outcome_folder() / f"rank-{os.environ['LOCAL_RANK']}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**outcome, "time": time.time()}, allow_nan=True))
    temporary.rename(path)


def leave(error: BaseException, context: Context) -> NoReturn:
    """Write the outcome of `error` and end the process with its code at once."""
    known = exits.classify(error)
    if not isinstance(error, exits.TrainerError):
        traceback.print_exception(error)
    message = {"stage": "train", "error": known.describe(), **context.facts()}
    try:
        write_outcome({"code": known.code, "message": message})
    finally:
        print(f"rank {os.environ.get('RANK')} ends: {known.failure_class} {known.reason}: {known.message}", flush=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(known.code)


def _stalled(silent: float, limit: float) -> exits.Stalled:
    faulthandler.dump_traceback(all_threads=True)
    text = f"no progress for {silent:.0f} s (limit {limit:.0f} s): this rank was {whereabouts()}"
    return exits.Stalled("Stalled", text, "See the pods' logs; a rank or the network hangs.")


def _on_stop(context: Context) -> Callable[[int, FrameType | None], None]:
    def handler(_signal: int, _frame: FrameType | None) -> None:
        context.stop_requested = True
        if context.run is not None:
            context.run.stop_requested = True  # type: ignore[attr-defined]

    return handler
