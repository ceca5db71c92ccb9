"""`finetune-trainer fetch|prepare|train|probe|ask|evaluate|clean --config FILE`, `finetune-trainer serve …` and `… estimate …`.

Invariant: every way out of a stage is an exit code of `docs/contracts.md` with its termination message.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn, cast

from finetune_trainer import exits, hardware
from finetune_trainer.config import CleanRun, RunConfig, load, load_clean

STAGES = {
    "fetch": "finetune_trainer.fetch",
    "prepare": "finetune_trainer.data.prepare",
    "train": "finetune_trainer.train.launch",
    "probe": "finetune_trainer.evaluate.probe",
    "ask": "finetune_trainer.evaluate.ask",
    "evaluate": "finetune_trainer.evaluate.cli",
    "clean": "finetune_trainer.clean",
}
SCORING = ("probe", "ask", "evaluate")  # parts of an evaluation; they may run a model, as a server does
StageMain = Callable[[RunConfig | CleanRun], exits.JsonObject | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named stage; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    if arguments[:1] == ["estimate"]:
        return _estimate(arguments[1:])
    options = _parser().parse_args(arguments)
    return _run(options.stage, options.config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune-trainer", description=__doc__)
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    helps = {
        "fetch": "fill the model folder from its source",
        "prepare": "turn raw rows into checked, masked, tokenised splits and estimate the run",
        "train": "train one attempt; all pods of the gang run this",
        "probe": "measure what the tuned model has forgotten and how it is served, with the configuration of evaluate and before it",
        "ask": "have the rows of evaluate answered, for an image that scores them before it",
        "evaluate": "score a served model on the sealed test split",
        "clean": "remove from the work volume what is no longer kept",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", required=True, help="run configuration (JSON, version 1)")
    commands.add_parser("serve", help="serve a model with an OpenAI-compatible API (see serve --help)", add_help=False)
    commands.add_parser("estimate", help="tell memory and time of a run before there is one (see estimate --help)", add_help=False)
    return parser


def _run(stage: str, path: str) -> int:
    try:
        config = load_clean(path) if stage == "clean" else load(path)
        if config.stage != ("evaluate" if stage in SCORING else stage):
            raise exits.UserError("ConfigurationInvalid", f"the configuration is for {config.stage}, not for {stage}")
        if stage != "train":
            signal.signal(signal.SIGTERM, _interrupt)
        if stage in SCORING:
            _share_cores()
        run = cast(StageMain, import_module(STAGES[stage]).main)
        result = run(config)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        return fail(stage, error)
    if isinstance(result, dict):
        exits.write_termination(result)
    return 0


def _serve(argv: list[str]) -> int:
    _share_cores()
    try:
        return int(import_module("finetune_trainer.serve.cli").main(argv) or 0)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        return fail("serve", error)


def _estimate(argv: list[str]) -> int:
    try:
        return int(import_module("finetune_trainer.forecast").main(argv))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


def _share_cores() -> None:
    """Read when torch is loaded. Servers and what scores them share cores, and threads that spin while they wait take them from one
    another: two servers of two threads on two cores answered three times as fast without. Nor are there more threads than this
    container may use cores, whatever the machine has."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(hardware.cpu_limit()))


def fail(stage: str, error: BaseException, **facts: object) -> int:
    """Log `error`, write its termination message (with `facts` such as folder and step), return its exit code."""
    known = exits.classify(error)
    if type(known) is exits.TrainerError:
        traceback.print_exception(error)
    exits.write_termination({"stage": stage, "error": known.describe(), "folder": None, "step": None, "checkpoint": None, **facts})
    return known.code


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise exits.Interrupted("Interrupted", "stopped by SIGTERM")


if __name__ == "__main__":
    sys.exit(main())
