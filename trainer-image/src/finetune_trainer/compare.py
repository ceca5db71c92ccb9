"""The methods side by side, for one model and its data: memory, the fewest accelerators that hold it, and time.

Each has its own defaults where the run's method is another one; the numbers are those of `estimate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from finetune_trainer import estimate, exits
from finetune_trainer.config import ComputeConfig, MethodConfig
from finetune_trainer.exits import Interrupted, JsonObject
from finetune_trainer.pages import hours, section

COMPARED = ("LoRA", "QLoRA", "Full", "PromptTuning")
LOW_RANK = ("LoRA", "QLoRA")


@dataclass(frozen=True)
class Option:
    """A method: `memory` is of one rank that holds all of it, in bytes; `ranks` the fewest that hold it (None: not known, or none does);
    `seconds` are of the gang that is asked for, `rank_hours` of all its ranks."""

    method: str
    asked: bool
    trained: int
    memory: int
    ranks: int | None
    seconds: int
    rank_hours: float


def options(
    asked: MethodConfig, compute: ComputeConfig, forecast: Callable[[MethodConfig], tuple[int, JsonObject]]
) -> list[Option]:  # fmt: skip
    """What each method takes, the one that is asked for first; one that does not go with the model, for whatever reason the model's code
    or PEFT's may have, is left out. `forecast` tells how many numbers a method trains, and its estimate."""
    return list(_options(asked, compute, forecast))


def _options(
    asked: MethodConfig, compute: ComputeConfig, forecast: Callable[[MethodConfig], tuple[int, JsonObject]]
) -> Iterator[Option]:  # fmt: skip
    for name in dict.fromkeys((asked.type, *COMPARED)):
        method = asked if name == asked.type else _other(asked, name)
        try:
            trained, told = forecast(method)
        except Interrupted:
            raise
        except Exception as error:
            print(f"not compared: {name}: {exits.classify(error).message}", flush=True)
            continue
        numbers: Any = told
        room = compute.accelerator_memory
        yield Option(
            method=name,
            asked=name == asked.type,
            trained=trained,
            memory=int(numbers["memoryBytes"]),
            ranks=estimate.ranks_needed(told, room, method) if room and compute.gpus_per_node else None,
            seconds=int(numbers["seconds"]),
            rank_hours=round(numbers["seconds"] * compute.nodes * compute.processes_per_node / 3600, 2),
        )


def _other(asked: MethodConfig, name: str) -> MethodConfig:
    """Another method on the same objective; what LoRA and QLoRA have in common stays."""
    blocks = {"lora": asked.lora} if name in LOW_RANK and asked.type in LOW_RANK else {}
    return MethodConfig.model_validate({"type": name, "objective": asked.objective, "dpo": asked.dpo, **blocks})


def told(found: Sequence[Option]) -> list[JsonObject]:
    """As a manifest holds it."""
    return [asdict(option) for option in found]


def read(said: object) -> list[Option]:
    """What a manifest holds; nothing where an older one has none."""
    return [Option(**item) for item in said] if isinstance(said, list) else []


def table(found: Sequence[Option], estimated: Mapping[str, Any], accelerator: str) -> str:
    """A section of a page; empty where there is nothing to compare."""
    if len(found) < 2:
        return ""
    known = any(option.ranks for option in found)
    unit = f"{accelerator or 'accelerators'} needed"
    heads = ["trains", "memory of a rank", *([unit] if known else []), "time", "rank hours"]
    body = "".join(_row(option, known=known) for option in found)
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in heads)
    note = (
        "The method that is asked for comes first; the others have their defaults. Memory is of a rank that holds everything, in passes of "
        f"{estimated['passTokens']:,} tokens; "
        + ("needed are as few as hold it divided, in passes of the longest row; " if known else "")
        + "time is that of the gang that is asked for. All of it is estimated."
    )
    return section(
        "Methods for this model and these data",
        f'<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{body}</tbody></table><p class="quiet small">{escape(note)}</p>',
    )


def _row(option: Option, *, known: bool) -> str:
    ranks = [str(option.ranks) if option.ranks else f"none up to {estimate.MOST_RANKS}"] if known else []
    cells = [f"{option.trained:,}", f"{option.memory / 2**30:,.1f} GiB", *ranks, hours(option.seconds), f"{option.rank_hours:,.2f}"]
    name = f"<b>{escape(option.method)}</b>" if option.asked else escape(option.method)
    return f"<tr><td>{name}</td>{''.join(_cell(cell) for cell in cells)}</tr>"


def _cell(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>'
