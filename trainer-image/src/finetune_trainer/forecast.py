"""`finetune-trainer estimate`: what prepare would say of a run's memory and time, before there are weights, data or a cluster.

A config.json is enough. Invariant: the numbers are prepare's own for the same run, and no code that comes with a model is run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from finetune_trainer import compare, estimate, exits, hardware
from finetune_trainer.config import PROMPT_METHODS, ComputeConfig, MethodConfig, ModelConfig, TrainingConfig
from finetune_trainer.exits import JsonObject, UserError

EXAMPLE = """example: LoRA on 20,000 rows of about 400 tokens, on one H100
  finetune-trainer estimate --model ./Llama-3.1-8B/config.json --method LoRA --rank 16 \\
    --rows 20000 --tokens-per-row 400 --epochs 3 --accelerator h100"""
DIVIDED = ("parameters", "masters", "gradients", "optimizer")
ZERO = (
    "ZeRO1 divides masters and optimizer among all ranks, ZeRO2 gradients too, ZeRO3 parameters too;\n"
    "each rank has the rest whole (gathered and unfusedLogits under ZeRO3 alone)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the estimate; returns 0, or the exit code of what is wrong, which is told on stderr."""
    options = parser().parse_args(argv)
    try:
        found = forecast(options)
    except Exception as error:
        known = exits.classify(error)
        print(f"finetune-trainer estimate: {known.message.rstrip('.')}. {known.fix}".rstrip(), file=sys.stderr)
        return known.code
    print(json.dumps(found, indent=2) if options.json else table(found, _compute(options)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments: fields of a FineTune by their names there, and what prepare would find in the data."""
    p = argparse.ArgumentParser(
        prog="finetune-trainer estimate", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = _at_least(1)
    p.add_argument("--model", type=Path, required=True, help="folder of a model, or its config.json: no weights are needed")
    p.add_argument("--method", default="LoRA", choices=_choices(MethodConfig, "type"))
    p.add_argument("--objective", default="SFT", choices=_choices(MethodConfig, "objective"))
    p.add_argument("--rank", type=whole, help="of LoRA and QLoRA (default 16)")
    p.add_argument("--target-modules", type=_names, help="of LoRA and QLoRA, with commas between (default: all linear layers but the head)")
    p.add_argument("--quantization", choices=("NF4", "Int8"), help="of QLoRA (default NF4)")
    p.add_argument("--virtual-tokens", type=whole, help=f"of {', '.join(PROMPT_METHODS)} (default 20)")
    p.add_argument("--rows", type=whole, required=True, help="that train")
    p.add_argument("--tokens-per-row", type=whole, required=True, help="on average, prompt and answer; of DPO's pairs both answers")
    p.add_argument("--max-sequence-length", type=_at_least(16), default=2048, help="the longest row has so many tokens (default 2048)")
    p.add_argument("--epochs", type=_positive, default=3.0, help="(default 3)")
    p.add_argument("--tokens-per-step", type=whole, help="(default: by the rows, as prepare chooses)")
    p.add_argument("--micro-batch-tokens", type=whole, help="tokens of one pass (default 8192 on GPUs, 2048 on CPUs)")
    p.add_argument("--gradient-checkpointing", action="store_true", help="layers keep their inputs alone and compute the rest again")
    p.add_argument("--precision", default="Auto", choices=_choices(TrainingConfig, "precision"))
    p.add_argument("--accelerator", default="", help=f"its name holds one of {', '.join(estimate.GPU_FLOPS)} (default: none, CPUs)")
    p.add_argument("--gpus-per-node", type=_at_least(0), help="(default 1 with an accelerator, else 0)")
    p.add_argument("--nodes", type=whole, default=1, help="(default 1)")
    p.add_argument("--threads", type=whole, default=1, help="of a node without accelerators (default 1)")
    p.add_argument("--accelerator-memory", type=_positive, help="of one, in GiB: tells how few hold a run (with --compare)")
    p.add_argument("--compare", action="store_true", help="LoRA, QLoRA, Full and PromptTuning beside --method, by what they take")
    p.add_argument("--json", action="store_true", help="one JSON object instead of a table; sizes in bytes")
    return p


def forecast(options: argparse.Namespace) -> JsonObject:
    """The model's `parameters`, the run's steps, its `estimate` and `warnings`, as a prepare result has them, and with --compare its
    `methods` as a data folder's manifest has them. Raises UserError, ValidationError."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from finetune_trainer.data import prepare
    from finetune_trainer.train import outline

    method, training, compute = _method(options), _training(options), _compute(options)
    longest = options.max_sequence_length
    if options.tokens_per_row > longest * (2 if method.objective == "DPO" else 1):
        raise UserError(
            "ConfigurationInvalid",
            f"rows of {options.tokens_per_row:,} tokens on average are longer than --max-sequence-length {longest:,}",
            "Raise it: rows that are longer do not train.",
        )
    path = described(options.model)
    model = ModelConfig(source=str(path), path=path)
    counted = outline.count(model, method)
    parameters = {"base": counted.frozen + counted.quantized or counted.trained, "active": counted.active, "trained": counted.trained}
    tokens = options.rows * options.tokens_per_row
    found = prepare.forecast(method, training, compute, counted, options.rows, tokens, longest)
    if options.compare:
        beside = prepare.side_by_side(model, method, training, compute, counted, options.rows, tokens, longest)
        found["methods"] = compare.told(beside)
    warnings: list[object] = [*estimate.warnings(counted, method, hardware.uses_bf16(training, compute))]
    return {"parameters": parameters, **found, "warnings": warnings}


def described(path: Path) -> Path:
    """`path`, if the folder or file of that name describes a model. Raises UserError."""
    file = path / "config.json" if path.is_dir() else path
    fix = "Name a model's folder or its config.json."
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise UserError("ModelMissing", f"--model: cannot read {file}: {error.strerror}", fix) from error
    except ValueError as error:
        raise UserError("ModelInvalid", f"--model: {file} is not JSON: {error}", fix) from error
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise UserError("ModelInvalid", f"--model: {file} names no model_type", fix)
    from transformers import CONFIG_MAPPING, __version__

    if found["model_type"] not in CONFIG_MAPPING:
        own = "; the model brings code of its own, which is not run" if "auto_map" in found else ""
        reason = f"--model: transformers {__version__} knows no {found['model_type']!r} ({file}){own}"
        raise UserError("ModelUnknown", reason, "Take a model that transformers has the code of.")
    return path


def table(found: JsonObject, compute: ComputeConfig) -> str:
    """The same for people: memory of a rank by component, the time, and what ZeRO would divide."""
    told, counts = _block(found["estimate"]), _block(found["parameters"])
    memory = _block(told["memory"])
    ranks, seconds = compute.nodes * compute.processes_per_node, float(str(told["seconds"]))
    idle = f", of which {counts['active']:,} take part in a token's pass" if counts["active"] != counts["base"] else ""
    gpus = f", {seconds * ranks / 3600:.1f} GPU hours" if compute.gpus_per_node else ""
    lines = [
        f"model    {counts['base']:,} parameters{idle}; {counts['trained']:,} train",
        f"run      {found['totalSteps']:,} steps of about {found['tokensPerStep']:,} tokens, in passes of {told['passTokens']:,}",
        f"time     {seconds / 3600:.1f} h on {ranks} {'GPU' if gpus else 'CPU rank'}{'s' if ranks > 1 else ''}{gpus}{_caveat(compute)}",
        *_sizes("memory of a rank", {**memory, "total": told["memoryBytes"]}),
    ]
    if "activations" in memory and told.get("recomputed") is not None:
        less = int(str(told["recomputed"])) / 2**30
        lines += ["", f"With gradient checkpointing it is {less:.2f} GiB in place of activations, and about a third more time."]
    if sharded := {name: size for name, size in _block(told["sharded"]).items() if name in DIVIDED or name not in memory}:
        lines += [*_sizes("with ZeRO instead", sharded), ZERO]
    lines += _side_by_side(compare.read(found.get("methods")), compute)
    told_of = found["warnings"]
    assert isinstance(told_of, list)
    return "\n".join([*lines, *(f"\n{warning}." for warning in told_of)])


def _side_by_side(options: Sequence[compare.Option], compute: ComputeConfig) -> list[str]:
    """What each method takes; nothing where none was asked for."""
    if not options:
        return []
    known = compute.accelerator_memory is not None and compute.gpus_per_node > 0
    lines = ["", f"{'method':<16}{'trains':>16}{'GiB a rank':>12}{'hours':>9}{'rank hours':>12}{'needs' if known else '':>8}".rstrip()]
    for option in options:
        needs = str(option.ranks or "none") if known else ""
        figures = f"{option.trained:>16,}{option.memory / 2**30:>12.1f}{option.seconds / 3600:>9.1f}{option.rank_hours:>12.1f}"
        lines.append(f"{option.method:<16}{figures}{needs:>8}".rstrip())
    return lines


def _sizes(title: str, sizes: JsonObject) -> list[str]:
    return ["", f"{title:<20}{'GiB':>8}", *(f"  {name:<18}{int(str(size)) / 2**30:8.2f}" for name, size in sizes.items())]


def _caveat(compute: ComputeConfig) -> str:
    known = any(name in compute.accelerator.lower() for name in estimate.GPU_FLOPS)
    return "" if known or not compute.gpus_per_node else f"; how fast '{compute.accelerator}' is is not known: a slow GPU is assumed"


def _block(value: object) -> JsonObject:
    assert isinstance(value, dict)
    return value


def _method(options: argparse.Namespace) -> MethodConfig:
    low_rank, prompt = options.method in ("LoRA", "QLoRA"), options.method in PROMPT_METHODS
    for name, fits, goes_with in (
        ("rank", low_rank, "LoRA or QLoRA"),
        ("target_modules", low_rank, "LoRA or QLoRA"),
        ("quantization", options.method == "QLoRA", "QLoRA"),
        ("virtual_tokens", prompt, f"one of {', '.join(PROMPT_METHODS)}"),
    ):
        if getattr(options, name) is not None and not fits:
            argument = f"--{name.replace('_', '-')}"
            raise UserError("ConfigurationInvalid", f"{argument} means nothing to --method {options.method}", f"Use --method {goes_with}.")
    blocks = {
        "lora": {"rank": options.rank or 16, "targetModules": options.target_modules or ()} if low_rank else None,
        "prompt": {"virtualTokens": options.virtual_tokens or 20} if prompt else None,
    }
    return MethodConfig.model_validate(
        {"type": options.method, "objective": options.objective, "quantization": options.quantization, **blocks}
    )


def _training(options: argparse.Namespace) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "epochs": options.epochs,
            "maxSequenceLength": options.max_sequence_length,
            "tokensPerStep": options.tokens_per_step,
            "microBatchTokens": options.micro_batch_tokens,
            "precision": options.precision,
            "gradientCheckpointing": options.gradient_checkpointing,
        }
    )


def _compute(options: argparse.Namespace) -> ComputeConfig:
    gpus = int(bool(options.accelerator)) if options.gpus_per_node is None else options.gpus_per_node
    if options.accelerator_memory and not (gpus and options.compare):
        missing = "--compare" if gpus else "--accelerator or --gpus-per-node"
        raise UserError("ConfigurationInvalid", f"--accelerator-memory means nothing without {missing}", f"Add {missing}.")
    return ComputeConfig.model_validate(
        {
            "accelerator": options.accelerator,
            "acceleratorMemory": round(options.accelerator_memory * 2**30) if options.accelerator_memory else None,
            "nodes": options.nodes,
            "gpusPerNode": gpus,
            "threads": options.threads,
        }
    )


def _choices(block: type[MethodConfig] | type[TrainingConfig], name: str) -> tuple[str, ...]:
    return get_args(block.model_fields[name].annotation)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return whole_number


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value
