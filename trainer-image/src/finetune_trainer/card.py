"""The model card beside an artifact: README.md in the form that Hugging Face's hub reads.

The one beside an evaluation has its results too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.evaluate import comparison, faithful, forgotten
from finetune_trainer.evaluate.comparison import Compared

CARD = "README.md"
LIBRARIES = {"Full": "transformers"}  # whatever else: an adapter, of PEFT
TASK = {"type": "text-generation", "name": "Text generation"}
SETTINGS = ("epochs", "learningRate", "schedule", "warmupPercent", "weightDecay", "clipNorm", "maxSequenceLength", "tokensPerStep", "seed")


@dataclass(frozen=True)
class Results:
    """Scores on the sealed test split, what they are compared with, and what the probe found of general text and of what is served."""

    reference: str
    compared: Sequence[Compared]
    confidence: float
    forgetting: Mapping[str, Any] | None = None
    fidelity: Mapping[str, Any] | None = None


def render(made: Mapping[str, Any], results: Results | None = None) -> str:
    """The card of an artifact, by its revision.json (or what will be in it)."""
    base, method = made.get("model") or {}, made.get("method") or {}
    source = str(base.get("source", ""))
    body = [
        f"# {_line(_short(source))}, tuned by {_line(method.get('type', 'LoRA'))}",
        "Trained by the FineTune operator; `revision.json` beside the weights says from what, with digests.",
        _table(
            "Base model",
            {"source": source, "digest": base.get("digest"), "licence": made.get("license") or "not named by the model's card"},
        ),
        _table("Data", {"digest": (made.get("data") or {}).get("digest"), **(made.get("rows") or {})}),
        _table("Training", {**_method(method), **{k: (made.get("training") or {}).get(k) for k in SETTINGS}}),
        *([_results(results)] if results else []),
        *filter(None, [forgotten.card(results.forgetting, results.confidence), faithful.card(results.fidelity)] if results else []),
        _usage(source, str(method.get("type", "LoRA"))),
        "## Limits\n\nIt answers as its training rows do, and may be wrong. It was judged on rows of the same kind alone; "
        "licence and limits of the base model hold for it too.",
    ]
    return f"---\n{_front(made, results)}---\n\n" + "\n\n".join(body) + "\n"


def _front(made: Mapping[str, Any], results: Results | None) -> str:
    """The YAML of the card; every value as JSON, which YAML reads, so that no name breaks out of it."""
    method = made.get("method") or {}
    source = str((made.get("model") or {}).get("source", ""))
    tags = ["finetune-operator", str(method.get("type", "LoRA")).lower(), str(method.get("objective", "SFT")).lower()]
    facts: dict[str, Any] = {
        "library_name": LIBRARIES.get(str(method.get("type")), "peft"),
        "pipeline_tag": TASK["type"],
        "tags": tags,
    }
    if source.startswith("hf://"):
        facts["base_model"] = source.removeprefix("hf://")
    if made.get("license"):
        facts["license"] = made["license"]
    if results:
        metrics = [
            {"type": compared.metric, "value": compared.after["score"], "name": compared.metric}
            for compared in results.compared
            if compared.after["score"] is not None
        ]
        dataset = {"type": "private", "name": "sealed test split"}
        facts["model-index"] = [{"name": _short(source), "results": [{"task": TASK, "dataset": dataset, "metrics": metrics}]}]
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in facts.items())


def _results(results: Results) -> str:
    named = "base model" if results.reference == "base" else f"revision {results.reference}"
    lines = [f"| metric | {_line(named)} | tuned | difference (paired) | rows |", "|---|---|---|---|---|"]
    for c in results.compared:
        scored = " | ".join((_interval(c.before), _interval(c.after), _interval(c.difference, "difference")))
        lines.append(f"| {_line(c.metric)} | {scored} | {c.after['n']} |")
    note = f"Scores are 0…1, larger is better, with {results.confidence:g} % intervals of a bootstrap over rows."
    note += f" {comparison.meaning(c.metric for c in results.compared)}"
    return "## Results on the sealed test split\n\n" + "\n".join(lines) + f"\n\n{note}"


def _interval(found: Mapping[str, Any] | None, key: str = "score") -> str:
    if not found or found.get(key) is None:
        return "–"
    return f"{found[key]:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _method(method: Mapping[str, Any]) -> dict[str, Any]:
    """Type, objective and the blocks that are there, flat."""
    flat = {"method": method.get("type"), "objective": method.get("objective"), "quantization": method.get("quantization")}
    for block in ("lora", "prompt", "dpo"):
        flat |= {f"{block} {key}": value for key, value in (method.get(block) or {}).items()}
    return flat


def _table(title: str, facts: Mapping[str, Any]) -> str:
    rows = [f"| {_line(name)} | {_line(value)} |" for name, value in facts.items() if value not in (None, "", [], ())]
    return f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(rows)


def _usage(source: str, method: str) -> str:
    where = json.dumps(source.removeprefix("hf://"))
    if method == "Full":
        load = 'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")'
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    else:
        load = (
            f"base = AutoModelForCausalLM.from_pretrained({where})\ntokenizer = AutoTokenizer.from_pretrained({where})\n"
            'model = PeftModel.from_pretrained(base, ".")'
        )
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    return f"## Use\n\nIn the folder of the weights:\n\n```python\n{imports}\n\n{load}\n```"


def _short(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1] or "model"


def _line(value: Any) -> str:
    """A value as one cell: no line break, no markup, no end of the cell."""
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "`", "*", "_", "[", "]", "<", ">", "#", "!"):
        text = text.replace(mark, "\\" + mark)
    return text
