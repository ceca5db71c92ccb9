"""Rules that types and bounds cannot say, each once: as CEL for the API server, and as Python for objects that were stored
before the rule was there.

A rule stands on the node `path` of the object (`[]`: each item of a list); both forms see that node with its defaults.
`NOT_YET` lists what the schema has and no code does: it is refused, never silently ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.api.quantities import DECIMAL_PATTERN

Node = Any
PROMPTS: Final = ("PromptTuning", "PrefixTuning", "PTuning")
SLOTS: Final = ("train", "validation", "test")
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
SHARDED: Final = ("Full", "LoRA")
# What the operator puts its own names in for, in the user's PromQL (decide/queries.py).
PLACES: Final = ("${arm}", "${revision}", "${pods}", "${canary}", "${stable}", "${namespace}", "${finetune}", "${window}")
PLACE: Final = r"\$\{[A-Za-z_][^}]*\}"  # `${1}` is label_replace's own
NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


@dataclass(frozen=True)
class Rule:
    """`field` (below `path`) is what the message names; `holds` is None for rules about a change."""

    path: str
    field: str
    cel: str
    message: str
    holds: Callable[[Node], bool] | None

    @property
    def text(self) -> str:
        """The message: the field, what is wrong and the fix."""
        return f"{'.'.join(part for part in (self.path, self.field) if part)}: {self.message}"


def _shares(split: Node) -> int:
    return int(split.get("train", 80)) + int(split.get("validation", 10)) + int(split.get("test", 10))


def _weights_grow(steps: Node) -> bool:
    weights = [step["weight"] for step in steps]
    return weights == sorted(set(weights)) and weights[-1] == 100


def _archive_has_digest(model: Node) -> bool:
    digest = re.match(r"^(sha256:)?[0-9a-fA-F]{64}$", model.get("revision", ""))
    return not model["source"].startswith("https://") or digest is not None


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


def shardable(kind: str, objective: str | None, sharding: str) -> bool:
    """Whether a method's ranks can divide it so. Before DPO's first step the whole base model reads all answers."""
    return kind in SHARDED and (objective != "DPO" or sharding != "ZeRO3")


def _sharding_fits(spec: Node) -> bool:
    sharding, offload = _layout(spec.get("compute", {}))
    if sharding in ("Auto", "DDP") and offload in ("Auto", "None"):
        return True
    return shardable(spec["method"]["type"], spec["method"].get("objective"), "ZeRO3" if offload == "All" else sharding)


def _layout(compute: Node) -> tuple[str, str]:
    return compute.get("sharding", "Auto"), compute.get("offload", "Auto")


def _offload_fits(compute: Node) -> bool:
    sharding, offload = _layout(compute)
    return offload in ("Auto", "None") or sharding in ("Auto", "ZeRO3") or (offload == "Optimizer" and sharding != "DDP")


def _cpu_is_requested(serving: Node) -> bool:
    scaling = serving.get("autoscaling")
    by_cpu = scaling is not None and "metric" not in scaling and scaling.get("autoscaler", "HPA") == "HPA"
    return not by_cpu or "cpu" in (serving.get("resources", {}).get("requests") or {})


def _formats_fit(spec: Node) -> bool:
    """Whether every format that is named is one that the objective learns from."""
    wanted = spec["method"].get("objective") == "DPO"
    sources = [*(spec["data"].get(slot, {}) for slot in SLOTS), *spec["data"].get("mix", ())]
    named = [source.get("format", "Auto") for source in sources]
    return all(name == "Auto" or (name == "Preference") == wanted for name in named)


def _some_time(path: str, field: str) -> Rule:
    """A duration that is above 0."""
    cel = f"!has(self.{field}) || self.{field}.matches('[1-9]')"
    return Rule(path, field, cel, "must be above 0", lambda node: re.search("[1-9]", node.get(field, "1")) is not None)


def _number(path: str, field: str, cel: str, message: str, holds: Callable[[float], bool]) -> Rule:
    """Of a decimal: `cel` of `double(self.FIELD)`. What is no number is the pattern's affair: a rule that raised would have the API
    server refuse every word of the status, too, of an object that an older CRD let in.
    """
    guard = f"!has(self.{field}) || !self.{field}.matches(r'{DECIMAL_PATTERN}') || "
    return Rule(path, field, f"{guard}({cel})", message, lambda node: field not in node or holds(float(node[field])))


def _places_known(query: Node) -> bool:
    return set(re.findall(PLACE, query["query"])) <= set(PLACES)


def _limits_in_order(query: Node) -> bool:
    return "min" not in query or "max" not in query or float(query["min"]) <= float(query["max"])


ROWS: Final = ("spec.data.train", "spec.data.validation", "spec.data.test", "spec.data.mix[]")


def _opened_by_secret(path: str) -> Rule:
    schemes = ("https://", "s3://", "hf://")
    cel = " || ".join(["!has(self.secretName)", *(f"self.source.startsWith('{scheme}')" for scheme in schemes)])
    message = f"belongs to a source of {', '.join(schemes)}; remove it"
    return Rule(path, "secretName", cel, message, lambda source: "secretName" not in source or source["source"].startswith(schemes))


ALWAYS: Final = (
    Rule(
        "", "metadata.name",
        f"self.metadata.name.size() <= 40 && self.metadata.name.matches('{NAME_PATTERN}')",
        "must be a DNS label of at most 40 characters that starts with a letter (a-z, 0-9, -): names of children derive from it; choose another",
        lambda o: len(o["metadata"]["name"]) <= 40 and re.match(NAME_PATTERN, o["metadata"]["name"]) is not None,
    ),
    Rule(
        "spec.data.quality", "languagePercent",
        "!has(self.languagePercent) || has(self.languages)",
        "says how sure a language must be, and no language is asked for: set languages, or remove it",
        lambda quality: "languagePercent" not in quality or "languages" in quality,
    ),
    Rule(
        "spec.model", "revision",
        "!self.source.startsWith('https://') || (has(self.revision) && self.revision.matches('^(sha256:)?[0-9a-fA-F]{64}$'))",
        "an https:// model is an archive whose sha256 must be given here",
        _archive_has_digest,
    ),
    *(_opened_by_secret(path) for path in ROWS),
    Rule(
        "spec.data.split", "",
        "(has(self.train) ? self.train : 80) + (has(self.validation) ? self.validation : 10) + (has(self.test) ? self.test : 10) == 100",
        "train, validation and test must sum to 100 (unset they are 80, 10 and 10)",
        lambda split: _shares(split) == 100,
    ),
    Rule(
        "spec.method", "lora",
        "!has(self.lora) || self.type in ['LoRA', 'QLoRA']",
        "belongs to method.type LoRA or QLoRA; remove it or change the type",
        lambda method: "lora" not in method or method["type"] in ("LoRA", "QLoRA"),
    ),
    Rule(
        "spec.method", "quantization",
        "!has(self.quantization) || self.type == 'QLoRA'",
        "belongs to method.type QLoRA; remove it or change the type",
        lambda method: "quantization" not in method or method["type"] == "QLoRA",
    ),
    Rule(
        "spec.method", "prompt",
        "!has(self.prompt) || self.type in ['PromptTuning', 'PrefixTuning', 'PTuning']",
        "belongs to method.type PromptTuning, PrefixTuning or PTuning; remove it or change the type",
        lambda method: "prompt" not in method or method["type"] in PROMPTS,
    ),
    Rule(
        "spec.method", "prompt.initText",
        "!has(self.prompt) || !has(self.prompt.initText) || self.type == 'PromptTuning'",
        "belongs to method.type PromptTuning; remove it or change the type",
        lambda method: "initText" not in method.get("prompt", {}) or method["type"] == "PromptTuning",
    ),
    Rule(
        "spec.method", "dpo",
        "!has(self.dpo) || (has(self.objective) && self.objective == 'DPO')",
        "belongs to method.objective DPO; remove it or set that",
        lambda method: "dpo" not in method or method.get("objective") == "DPO",
    ),
    Rule(
        "spec.method.dpo", "beta",
        "!has(self.beta) || (double(self.beta) > 0.0 && double(self.beta) <= 100.0)",
        'must be above 0 and at most 100; "0.1" is usual',
        lambda dpo: 0 < float(dpo.get("beta", 0.1)) <= 100,
    ),
    Rule(
        "spec.evaluation.gate", "maxServingDivergence",
        "!has(self.maxServingDivergence) || double(self.maxServingDivergence) >= 0.0",
        'must not be below 0; rounding to bfloat16 alone can take some thousandths, so "0.02" is a limit that a sound server keeps',
        lambda gate: float(gate.get("maxServingDivergence", 0)) >= 0,
    ),
    Rule(
        "spec", "method.objective",
        _FORMAT_CEL,
        "DPO learns from rows of format Preference, SFT from all others; change the objective or data's format",
        _formats_fit,
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
        "spec.compute", "offload",
        "!has(self.offload) || self.offload in ['Auto', 'None'] || self.sharding in ['Auto', 'ZeRO3'] || "  # a default is judged bare
        "(self.offload == 'Optimizer' && self.sharding != 'DDP')",
        "Optimizer belongs to sharding ZeRO1, ZeRO2 or ZeRO3, and All to ZeRO3; use Auto, or another sharding",
        _offload_fits,
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
    _number(
        "spec.method.lora", "dropout", "double(self.dropout) >= 0.0 && double(self.dropout) < 1.0", "must be at least 0 and below 1",
        lambda share: 0 <= share < 1,
    ),
    _number(
        "spec.training", "learningRate", "double(self.learningRate) > 0.0 && double(self.learningRate) <= 1000.0",
        'must be above 0 and at most 1000; "2e-4" is usual for LoRA', lambda rate: 0 < rate <= 1000,
    ),
    Rule(
        "spec.training.checkpoint", "",
        "!(has(self.every) && has(self.everySteps))",
        "every and everySteps exclude each other; remove one",
        lambda policy: not ("every" in policy and "everySteps" in policy),
    ),
    _some_time("spec.training.checkpoint", "every"),
    _number("spec.budget", "maxCost", "double(self.maxCost) > 0.0", "must be above 0", lambda cost: cost > 0),
    _some_time("spec.budget", "maxDuration"),
    _some_time("spec.rollout.experiment", "duration"),
    Rule(
        "spec.evaluation.metrics[]", "sqlExecution",
        "(self.type == 'SqlExecution') == has(self.sqlExecution)",
        "belongs to type SqlExecution, which needs it: name the schema there",
        lambda metric: (metric["type"] == "SqlExecution") == ("sqlExecution" in metric),
    ),
    Rule(
        "spec.serving.autoscaling", "maxReplicas",
        "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
        "must be at least minReplicas",
        lambda scaling: scaling.get("minReplicas", 1) <= scaling["maxReplicas"],
    ),
    Rule(
        "spec.serving.autoscaling", "metric",
        "!(has(self.metric) && has(self.targetCPUUtilizationPercentage))",
        "and targetCPUUtilizationPercentage exclude each other; remove one",
        lambda scaling: not ("metric" in scaling and "targetCPUUtilizationPercentage" in scaling),
    ),
    Rule(
        "spec.serving", "autoscaling",
        "!has(self.autoscaling) || has(self.autoscaling.metric) || self.autoscaling.autoscaler == 'External' || "
        "(has(self.resources) && has(self.resources.requests) && 'cpu' in self.resources.requests)",
        "the CPU is measured by resources.requests.cpu; set that, or name a metric",
        _cpu_is_requested,
    ),
    Rule(
        "spec.serving.expose", "",
        "has(self.ingress) != has(self.httpRoute)",
        "name either an ingress or an httpRoute",
        lambda expose: ("ingress" in expose) != ("httpRoute" in expose),
    ),
    Rule(
        "spec.rollout", "steps",
        "!has(self.steps) || (self.steps[self.steps.size() - 1].weight == 100 && self.steps.map(s, s.weight).isSorted() && "
        "self.steps.all(a, self.steps.exists_one(b, b.weight == a.weight)))",
        "weights must grow from step to step, and the last must be 100",
        lambda rollout: "steps" not in rollout or _weights_grow(rollout["steps"]),
    ),
    Rule(
        "spec.rollout.identity[]", "",
        "has(self.header) != has(self.bodyField)",
        "name either a header or a bodyField",
        lambda identity: ("header" in identity) != ("bodyField" in identity),
    ),
    Rule(
        "spec.rollout.identity[]", "header",
        "!has(self.header) || !self.header.lowerAscii().startsWith('x-finetune-')",
        "x-finetune- begins the routers' own headers; name one of yours",
        lambda identity: not identity.get("header", "").lower().startswith("x-finetune-"),
    ),
    Rule(
        "spec.rollout.guards", "queries",
        "!has(self.queries) || self.queries.all(a, self.queries.exists_one(b, b.name == a.name))",
        "two have the same name; give each its own",
        lambda guards: len({q["name"] for q in guards.get("queries", ())}) == len(guards.get("queries", ())),
    ),
    Rule(
        "spec.rollout.guards.queries[]", "",
        "has(self.max) || has(self.min)",
        "needs max, min, or both: the numbers between which all is well",
        lambda query: "max" in query or "min" in query,
    ),
    Rule(
        "spec.rollout.guards.queries[]", "min",
        f"!has(self.min) || !has(self.max) || !self.min.matches(r'{DECIMAL_PATTERN}') || !self.max.matches(r'{DECIMAL_PATTERN}') || "
        "double(self.min) <= double(self.max)",
        "must not be above max",
        _limits_in_order,
    ),
    Rule(
        "spec.rollout.guards.queries[]", "query",
        f"self.query.findAll(r'{PLACE}').all(p, p in [{', '.join(repr(place) for place in PLACES)}])",
        f"names a placeholder that there is not; there are {', '.join(PLACES)}",
        _places_known,
    ),
)  # fmt: skip

CHANGES: Final = (
    Rule(
        "spec.storage", "storageClassName",
        "has(self.storageClassName) == has(oldSelf.storageClassName) && "
        "(!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        "cannot change once the volume is made; make a new FineTune",
        None,
    ),
    Rule(
        "spec.storage.accessMode", "",
        "self == oldSelf",
        "cannot change once the volume is made; make a new FineTune",
        None,
    ),
    Rule(
        "spec.storage.size", "",
        "quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0",
        "a volume can grow but never shrink; keep the old size or make a new FineTune",
        None,
    ),
)  # fmt: skip


def _not_yet(path: str, field: str, cel: str, holds: Callable[[Node], bool], instead: str = "") -> Rule:
    return Rule(path, field, cel, f"not supported yet{instead and f'; {instead}'}", holds)


def _unset(path: str, field: str, instead: str = "") -> Rule:
    return _not_yet(path, field, f"!has(self.{field})", lambda node: field not in node, instead)


def _only(path: str, field: str, values: tuple[str, ...], instead: str) -> Rule:
    """Absent, or one of these."""
    listed = ", ".join(f"'{value}'" for value in values)
    cel = f"!has(self.{field}) || self.{field} in [{listed}]"
    return _not_yet(path, field, cel, lambda node: node.get(field, values[0]) in values, instead)


def _not_from(path: str, field: str, schemes: tuple[str, ...], instead: str) -> Rule:
    cel = " && ".join(f"!self.{field}.startsWith('{scheme}')" for scheme in schemes)
    return _not_yet(path, field, cel, lambda node: not node[field].startswith(schemes), f"{instead} instead of {' or '.join(schemes)}")


_FORMATS: Final = ("Auto", "Messages", "PromptCompletion", "InstructionInputOutput", "InputOutput", "Preference")

NOT_YET: Final = (
    _not_from("spec.model", "source", ("s3://", "oci://"), "use image:///, pvc://, hf:// or https://"),
    _not_yet(
        "spec.model",
        "secretName",
        "!has(self.secretName) || self.source.startsWith('hf://')",
        lambda model: "secretName" not in model or model["source"].startswith("hf://"),
        "only hf:// models are fetched with a token",
    ),
    *(_only(path, "format", _FORMATS, f"use {', '.join(_FORMATS[1:])}") for path in ROWS),
    _not_from("spec.evaluation.metrics[].sqlExecution", "schema", ("hf://", "s3://", "https://"), "use configmap://, pvc:// or image:///"),
    _unset("spec", "provider"),
)

RULES: Final = (*ALWAYS, *CHANGES, *NOT_YET)
_PATHS: Final = frozenset(rule.path for rule in RULES if rule.holds)


def broken(finetune: Mapping[str, Any]) -> list[str]:
    """Texts of the rules that an object (with its defaults) breaks."""
    there = {path: list(nodes(finetune, path)) for path in _PATHS}  # many rules stand on the same nodes
    return [rule.text for rule in RULES if rule.holds and not all(map(rule.holds, there[rule.path]))]


def nodes(obj: Node, path: str) -> Iterator[Node]:
    """The nodes that a rule stands on; none where a block above is absent."""
    head, _, rest = path.partition(".")
    if not head:
        yield obj
        return
    child = obj.get(head.removesuffix("[]"))
    if child is None:
        return
    for item in child if head.endswith("[]") else (child,):
        yield from nodes(item, rest)
