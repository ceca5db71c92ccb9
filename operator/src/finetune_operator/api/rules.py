"""All rules that types and bounds cannot say, in their order: what is said of one block stands beside it, in `blocks`.

Here is what is said across blocks, and `NOT_YET`, what the schema has and no code does: it is refused, never silently ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from finetune_operator.api.blocks import (
    budget,
    compute,
    data,
    deadlines,
    economics,
    evaluation,
    expose,
    guards,
    method,
    model,
    rollout,
    serving,
    storage,
    training,
)
from finetune_operator.api.blocks.compute import layout, shardable
from finetune_operator.api.blocks.data import SLOTS
from finetune_operator.api.blocks.method import PROMPTS
from finetune_operator.api.rule import Node, Rule

_FIT_CEL: Final = (
    "(!has({0}.format) || {0}.format == 'Auto' || "
    "({0}.format == 'Preference') == (has(self.method.objective) && self.method.objective == 'DPO'))"
)
_FORMAT_CEL: Final = " && ".join(
    [
        *(f"(!has(self.data.{slot}) || {_FIT_CEL.format(f'self.data.{slot}')})" for slot in SLOTS),
        f"(!has(self.data.mix) || self.data.mix.all(mix, {_FIT_CEL.format('mix')}))",
    ]
)
_TEXT_CEL: Final = "!has({0}.format) || {0}.format != 'Text'"
NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


def _served_by_vllm(spec: Node) -> bool:
    serving = spec.get("serving")
    if serving is None or serving.get("image"):
        return False
    runtime = serving.get("runtime", "Auto")
    if spec["method"]["type"] in PROMPTS or spec["method"].get("lora", {}).get("useDora"):
        return bool(runtime == "vLLM")
    return bool(runtime == "vLLM" or (runtime == "Auto" and spec.get("compute", {}).get("accelerator")))


def _fits_vllm(spec: Node) -> bool:
    """Whether vLLM is not asked for, or can serve what is trained."""
    serving, method = spec.get("serving"), spec["method"]
    if serving is None or serving.get("image") or serving.get("runtime") != "vLLM":
        return True
    return method["type"] not in PROMPTS and not method.get("lora", {}).get("useDora")


def _sharding_fits(spec: Node) -> bool:
    sharding, offload = layout(spec.get("compute", {}))
    if sharding in ("Auto", "DDP") and offload in ("Auto", "None"):
        return True
    return shardable(spec["method"]["type"], spec["method"].get("objective"), "ZeRO3" if offload == "All" else sharding)


def _formats_fit(spec: Node) -> bool:
    """Whether every format that is named is one that the objective learns from."""
    wanted = spec["method"].get("objective") == "DPO"
    sources = [*(spec["data"].get(slot, {}) for slot in SLOTS), *spec["data"].get("mix", ())]
    named = [source.get("format", "Auto") for source in sources]
    return all(name == "Auto" or (name == "Preference") == wanted for name in named)


def _answers_scored(spec: Node) -> bool:
    """Whether the test rows, where their format is named, have the answers that metrics score."""
    test = spec["data"].get("test", spec["data"]["train"])
    return not spec.get("evaluation", {}).get("metrics") or test.get("format") != "Text"


NAMED: Final = (
    Rule(
        "", "metadata.name",
        f"self.metadata.name.size() <= 40 && self.metadata.name.matches('{NAME_PATTERN}')",
        "must be a DNS label of at most 40 characters that starts with a letter (a-z, 0-9, -): names of children derive from it; choose another",
        lambda o: len(o["metadata"]["name"]) <= 40 and re.match(NAME_PATTERN, o["metadata"]["name"]) is not None,
    ),
)  # fmt: skip

ACROSS: Final = (
    Rule(
        "spec", "method.objective",
        _FORMAT_CEL,
        "DPO learns from rows of format Preference, SFT from all others; change the objective or data's format",
        _formats_fit,
    ),
    Rule(
        "spec", "evaluation.metrics",
        "!has(self.evaluation) || !has(self.evaluation.metrics) || self.evaluation.metrics.size() == 0 || "
        f"(has(self.data.test) ? {_TEXT_CEL.format('self.data.test')} : {_TEXT_CEL.format('self.data.train')})",
        "score answers, and test rows of format Text have none; remove metrics (texts are scored by their loss) or name questions as data.test",
        _answers_scored,
    ),
    Rule(
        "spec", "compute.sharding",
        "(self.compute.sharding in ['Auto', 'DDP'] && self.compute.offload in ['Auto', 'None']) || (self.method.type in ['Full', 'LoRA'] && "
        "(!has(self.method.objective) || self.method.objective != 'DPO' || "
        "(self.compute.sharding != 'ZeRO3' && self.compute.offload != 'All')))",
        "ZeRO divides (and offload moves) what Full and LoRA train, and no ZeRO3 under objective DPO; use Auto or DDP, with DPO ZeRO2",
        _sharding_fits,
    ),
    Rule(
        "spec", "training.gradientCheckpointing",
        "!has(self.training) || !has(self.training.gradientCheckpointing) || self.training.gradientCheckpointing != 'Always' || "
        "!(self.method.type in ['PromptTuning', 'PrefixTuning', 'PTuning'])",
        "activations behind a trained prompt are not computed again; use Auto or Never, or method.type LoRA",
        lambda spec: spec.get("training", {}).get("gradientCheckpointing") != "Always" or spec["method"]["type"] not in PROMPTS,
    ),
    Rule(
        "spec", "serving.runtime",
        "!has(self.serving) || has(self.serving.image) || self.serving.runtime != 'vLLM' || "
        "(!(self.method.type in ['PromptTuning', 'PrefixTuning', 'PTuning']) && "
        "!(has(self.method.lora) && has(self.method.lora.useDora) && self.method.lora.useDora))",
        "vLLM serves neither trained prompts nor DoRA; use Transformers or Auto",
        _fits_vllm,
    ),
    Rule(
        "spec", "method.lora.rank",
        "!has(self.method.lora) || !has(self.method.lora.rank) || self.method.lora.rank <= 512 || !has(self.serving) || "
        "has(self.serving.image) || self.serving.runtime == 'Transformers' || (self.serving.runtime == 'Auto' && "
        "(!has(self.compute.accelerator) || (has(self.method.lora.useDora) && self.method.lora.useDora)))",
        "vLLM serves ranks up to 512; lower it, or set serving.runtime to Transformers",
        lambda spec: spec["method"].get("lora", {}).get("rank", 16) <= 512 or not _served_by_vllm(spec),
    ),
)  # fmt: skip

ALWAYS: Final = (
    *NAMED,
    *model.RULES,
    *data.RULES,
    *method.RULES,
    *ACROSS,
    *compute.RULES,
    *training.RULES,
    *budget.RULES,
    *deadlines.RULES,
    *economics.RULES,
    *evaluation.RULES,
    *serving.RULES,
    *expose.RULES,
    *rollout.RULES,
    *guards.RULES,
)


def _not_yet(path: str, field: str, cel: str, holds: Callable[[Node], bool], instead: str = "") -> Rule:
    return Rule(path, field, cel, f"not supported yet{instead and f'; {instead}'}", holds)


def _unset(path: str, field: str, instead: str = "") -> Rule:
    return _not_yet(path, field, f"!has(self.{field})", lambda node: field not in node, instead)


def _not_from(path: str, field: str, schemes: tuple[str, ...], instead: str, *, optional: bool = False) -> Rule:
    cel = " && ".join(f"!self.{field}.startsWith('{scheme}')" for scheme in schemes)
    return _not_yet(
        path, field, f"!has(self.{field}) || ({cel})" if optional else cel, lambda node: not node.get(field, "").startswith(schemes),
        f"{instead} instead of {' or '.join(schemes)}",
    )  # fmt: skip


_FETCHED, _MOUNTED = ("hf://", "s3://", "https://"), "use configmap://, pvc:// or image:///"
NOT_YET: Final = (
    _not_from("spec.model", "source", ("s3://", "oci://"), "use image:///, pvc://, hf:// or https://"),
    _not_yet(
        "spec.model",
        "secretName",
        "!has(self.secretName) || self.source.startsWith('hf://')",
        lambda model: "secretName" not in model or model["source"].startswith("hf://"),
        "only hf:// models are fetched with a token",
    ),
    _not_from("spec.evaluation.metrics[].sqlExecution", "schema", _FETCHED, _MOUNTED),
    _not_from("spec.evaluation.metrics[].jsonSchema", "schema", _FETCHED, _MOUNTED, optional=True),
    _unset("spec", "provider"),
)


class _Step(NamedTuple):
    """From the nodes `above` to those of a path; `each`: what is there is a list of them."""

    path: str
    above: str
    key: str
    each: bool


def _steps(paths: Iterable[str]) -> Iterator[_Step]:
    """To all of these paths and those above them, which come first; many share them."""
    parts = (path.split(".") for path in paths if path)
    for path in sorted({".".join(of[:length]) for of in parts for length in range(1, len(of) + 1)}):
        above, _, key = path.rpartition(".")
        yield _Step(path, above, key.removesuffix("[]"), key.endswith("[]"))


RULES: Final = (*ALWAYS, *storage.CHANGES, *NOT_YET)
_HELD: Final = tuple((rule.path, rule.holds, rule.text) for rule in RULES if rule.holds)
_STEPS: Final = tuple(_steps(path for path, _, _ in _HELD))


def broken(finetune: Mapping[str, Any]) -> list[str]:
    """Texts of the rules that an object (with its defaults) breaks."""
    there = _nodes(finetune)
    return [text for path, holds, text in _HELD if (nodes := there[path]) and not all(map(holds, nodes))]


def _nodes(obj: Node) -> Mapping[str, list[Node]]:
    """The nodes that rules stand on, by path; none where a block above is absent."""
    found = {"": [obj]}
    for path, above, key, each in _STEPS:
        children = [child for node in nodes if (child := node.get(key)) is not None] if (nodes := found[above]) else nodes
        found[path] = [item for child in children for item in child] if each and children else children
    return found
