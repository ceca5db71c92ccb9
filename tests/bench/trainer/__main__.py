"""How fast the trainer is beside TRL's defaults, each in a process of its own on the same rows: `make bench-trainer`; last line JSON.

Speeds are real tokens a second, padding never counted, of all steps but the first; by the clock, and by the processor's time, which says
something on a machine that is not quiet if there is one thread. MFU is the share of the device's peak that 6
operations a parameter and token would take (4 where the base is frozen, 6 for what trains), attention left out; the peak is the maker's
figure of a GPU, and of a CPU what a product of 2048 × 2048 matrices reaches in the same precision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_trainer import fetch, hardware
from finetune_trainer.config import RunConfig
from finetune_trainer.data import prepare

from tests.bench.trainer import rows, shapes
from tests.bench.trainer.prepare import model as tool
from tests.trainer.support import make_config, write_rows

ROOT = Path(__file__).resolve().parents[3]
LORA = {"type": "LoRA", "objective": "SFT", "lora": {"rank": 16, "alpha": 32, "dropout": 0, "targetModules": []}}
TRL_BATCH = 8  # its default: rows a step


@dataclass(frozen=True)
class Case:
    """What is run on both sides: `model` is a folder, `theirs` says whether TRL is run beside it."""

    name: str
    model: Path
    method: dict[str, Any]
    bf16: bool
    device: str
    rows: int
    theirs: bool = True
    threads: int = 1
    longest: int = rows.LONGEST


def cases(options: argparse.Namespace, folder: Path) -> list[Case]:
    """The CPU's, or where there is a GPU the large shapes on it."""
    if options.gpu:
        return [
            Case(shape.name, shapes.write(shape, folder / f"model-{index}"), shape.method, True, "cuda", options.rows, shape.theirs)
            for index, shape in enumerate(shapes.SHAPES)
        ]
    model = tool(folder / "model", options.model)
    wanted = [kind == "bf16" or (kind == "auto" and hardware.cpu_prefers_bf16()) for kind in options.precision]
    name = {"smollm2": "SmolLM2-135M", "tiny_model": "the tiny model"}[options.model]
    longest = options.words if options.model == "smollm2" else 60  # its tokens are bytes
    return [
        Case(f"{name} LoRA {'bf16' if bf16 else 'fp32'}", model, LORA, bf16, "cpu", options.rows, True, options.threads, longest)
        for bf16 in wanted
    ]


def prepared(case: Case, folder: Path) -> dict[str, Any]:
    """The case's specification for both processes: its model fetched, its rows prepared, some of them kept apart."""
    every = rows.rows(case.rows + max(4, case.rows // 8), case.longest)
    sources = {
        split: {"source": f"pvc://rows/{split}.jsonl", "mount": str(write_rows(folder / f"{split}.jsonl", part)), "format": "Auto"}
        for split, part in (("train", every[: case.rows]), ("validation", every[case.rows :]))
    }
    common: dict[str, Any] = {
        "model__path": str(folder / "models" / "base"), "data__path": str(folder / "data"), "method": case.method,
        "data__train": sources["train"], "data__validation": sources["validation"],
        "data__split": {"train": 100, "validation": 0, "test": 0},
        "data__quality": {"minResponseCharacters": 1, "nearDuplicates": "Keep", "maxRepetitionPercent": 100},
        "compute__threads": case.threads, "compute__gpusPerNode": int(case.device == "cuda"),
    }  # fmt: skip
    training: dict[str, Any] = {
        "epochs": 1, "learningRate": 2e-4, "maxSequenceLength": 1024, "precision": "BF16" if case.bf16 else "FP32", "warmupPercent": 0,
        "evaluateEverySteps": 1_000_000, "checkpoint": {"everySeconds": None},
    }  # fmt: skip
    fetch.main(RunConfig.model_validate(make_config("fetch", folder, case.model, model__path=common["model__path"])))
    told: Any = prepare.main(RunConfig.model_validate(make_config("prepare", folder, case.model, **common, training=training)))
    if told["rows"]["train"] != case.rows:
        raise SystemExit(f"{told['rows']['train']} rows were prepared, not {case.rows}")
    training["tokensPerStep"] = round(told["tokens"]["train"] / case.rows * TRL_BATCH)
    config = make_config("train", folder, case.model, **common, training=training)
    turns = [
        {"prompt": [{"role": "user", "content": row["instruction"]}], "completion": [{"role": "assistant", "content": row["output"]}]}
        for row in every[: case.rows]
    ]
    return {
        "config": config, "threads": common["compute__threads"], "device": case.device, "bf16": case.bf16, "folder": str(folder / "runs"),
        "model": common["model__path"], "rows": turns, "tokens": told["tokens"]["train"],
    }  # fmt: skip


def side(name: str, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What one side measured, in a process of its own."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**spec, "folder": str(folder / name)}))
    environment = {**os.environ, "FINETUNE_PROGRESS_PORT": "0", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"tests.bench.trainer.{name}", str(path)]
    told = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    print(f"  {name}: {json.dumps(found)}", flush=True)
    return found


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Both sides of a case."""
    folder.mkdir()
    spec = prepared(case, folder)
    print(f"{case.name}: {case.rows} rows of {spec['tokens'] / case.rows:.0f} tokens on average", flush=True)
    ours = side("ours", spec, folder)
    theirs = side("theirs", spec, folder) if case.theirs else {}
    figures = {
        "case": case.name,
        **{key: ours[key] for key in ("tokens_per_s", "supervised_tokens_per_s", "tokens_per_cpu_s", "mfu", "peak_mib")},
    }
    if theirs:
        figures.update(
            trl_tokens_per_s=theirs["tokens_per_s"], ratio=round(ours["tokens_per_s"] / theirs["tokens_per_s"], 2),
            trl_tokens_per_cpu_s=theirs["tokens_per_cpu_s"], cpu_ratio=round(ours["tokens_per_cpu_s"] / theirs["tokens_per_cpu_s"], 2),
            trl_peak_mib=theirs["peak_mib"], trl_validation_loss=theirs["validation_loss"],
        )  # fmt: skip
    parts = ("validation_loss", "step_parts_percent", "checkpoint_stall_s", "resume_s")
    return {**figures, **{key: ours[key] for key in parts}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trainer", description=__doc__)
    parser.add_argument("--rows", type=int, default=48, help="training rows of each case")
    parser.add_argument("--words", type=int, default=rows.LONGEST, help="of the longest answer")
    parser.add_argument("--model", default="smollm2", choices=("smollm2", "tiny_model"), help="the model of the CPU's cases")
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["auto"],
        choices=("auto", "bf16", "fp32"),
        help="of the CPU's cases; auto: as the trainer chooses, on both sides",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process in the CPU's cases")
    parser.add_argument("--gpu", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(), help="the large shapes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        folder = Path(scratch)
        found = [run(case, folder / str(index)) for index, case in enumerate(cases(options, folder))]
    if not options.gpu:
        print(f"not measured, there is no GPU: {', '.join(shape.name for shape in shapes.SHAPES)}")
    device = torch.cuda.get_device_name() if options.gpu else f"CPU, {options.threads} threads"
    print(json.dumps({"device": device, **found[0], "cases": found}))


if __name__ == "__main__":
    main()
