"""Specs that the API server would accept, for property tests: drawn from the CRD's own schema, with the rules kept."""

from __future__ import annotations

from typing import Any, Final

from finetune_operator.api import crd
from finetune_operator.api.blocks.compute import SHARDED
from finetune_operator.api.blocks.data import SLOTS
from finetune_operator.api.blocks.method import PROMPTS
from finetune_operator.api.quantities import DURATION_PATTERN
from finetune_operator.api.rules import NOT_YET
from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]
_WORDS: Final = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
_UNSUPPORTED: Final = {f"{rule.path}.{rule.field}" for rule in NOT_YET if rule.cel == f"!has(self.{rule.field})"}
_FORMATS: Final = ("Auto", "Messages", "PromptCompletion", "InstructionInputOutput", "InputOutput", "Text", "Preference")
_ROWS: Final = (
    "configmap://rows/train.jsonl",
    "pvc://datasets/deep/rows.jsonl",
    "image:///opt/data/rows.jsonl",
    "https://example.com/rows.jsonl",
)
_REMOTE_ROWS: Final = ("https://example.com/rows.jsonl", "s3://bucket/rows.parquet", "hf://owner/name@main/data")
_TOKENS: Final = st.integers(1, 10**15)
_SHA256: Final = "sha256:" + "0" * 64


def _decimal(low: float, high: float) -> Strategy:
    return st.floats(low, high, allow_nan=False).map(lambda value: f"{value:.6f}") | st.sampled_from(["1e-5", "2e-4", "0.001"])


def _shares(train: int) -> Strategy:
    return st.integers(0, 100 - train).map(lambda test: {"train": train, "validation": 100 - train - test, "test": test})


def _steps(weights: set[int]) -> Strategy:
    grown = sorted({*weights, 100})
    return st.tuples(*(st.fixed_dictionaries({"weight": st.just(w)}, optional={"hold": _DURATION}) for w in grown)).map(list)


def _queries(named: set[str]) -> Strategy:
    texts = st.sampled_from(["up", 'sum(rate(a{pod=~"${pods}"}[${window}]))', "${canary} > ${stable}"])
    limits = st.sampled_from([{"max": "0.1"}, {"min": "-1"}, {"min": "1", "max": "1e1"}])
    one = st.tuples(texts, limits).map(lambda drawn: {"query": drawn[0], **drawn[1]})
    return st.lists(one, min_size=len(named), max_size=len(named)).map(
        lambda queries: [{"name": name, **query} for name, query in zip(sorted(named), queries, strict=True)]
    )


def _rows(**required: Strategy) -> Strategy:
    """A source of rows, some behind a Secret."""
    formats = {"format": st.sampled_from(_FORMATS)}
    secret = {"secretName": st.just("keys")}
    near = st.fixed_dictionaries({"source": st.sampled_from(_ROWS), **required}, optional=formats)
    return near | st.fixed_dictionaries({"source": st.sampled_from(_REMOTE_ROWS), **required}, optional={**formats, **secret})


_DURATION: Final = st.sampled_from(["1ms", "0.5s", "90s", "15m", "1h30m", "30d"])
# By path, lists written [] as in the rules.
_DRAWN: Final[dict[str, Strategy]] = {
    "spec.model": st.sampled_from(
        [
            {"source": "image:///opt/models/m"},
            {"source": "pvc://models/a/b"},
            {"source": "hf://owner/name", "revision": "main"},
            {"source": "hf://owner/gated", "secretName": "hf-token"},
            {"source": "https://example.com/m.tar", "revision": _SHA256},
        ]
    ),
    **{f"spec.data.{name}": _rows() for name in ("train", "validation", "test")},
    "spec.data.mix[]": _rows(percent=st.integers(1, 100)),
    "spec.data.split": st.integers(1, 100).flatmap(_shares) | st.just({}) | st.just({"train": 85, "test": 5}),
    "spec.method.lora.rank": st.integers(1, 512),  # vLLM serves no larger ones
    "spec.method.lora.dropout": _decimal(0, 0.99),
    "spec.method.dpo.beta": _decimal(0.00001, 100),
    "spec.training.learningRate": _decimal(0.00001, 10),
    "spec.training.checkpoint": st.fixed_dictionaries({}, optional={"every": _DURATION, "keep": st.integers(1, 5)})
    | st.fixed_dictionaries({"everySteps": st.integers(1, 1000)}),
    "spec.compute.accelerator": st.just("h100"),
    "spec.budget.maxCost": _decimal(0.01, 1000),
    **{f"spec.economics.{name}": _decimal(0, 1000) for name in ("podHourlyPrice", "oneTimeCost")},
    **{f"spec.economics.alternative.{name}": _decimal(0, 1000) for name in ("inputPrice", "outputPrice")},
    "spec.economics.traffic": st.fixed_dictionaries({"requestsPerMonth": _TOKENS})
    | st.fixed_dictionaries({"inputTokensPerMonth": _TOKENS, "outputTokensPerMonth": _TOKENS}),
    "spec.evaluation.metrics": st.lists(
        st.sampled_from(["ExactMatch", "Contains", "TokenF1", "RougeL", "JsonEqual", "JsonSchema"]).map(lambda name: {"type": name})
        | st.sampled_from([r"\d+", r"(?s).*answer: (\w+)", "[答东]+"]).map(lambda text: {"type": "Regex", "regex": {"pattern": text}})
        | st.sampled_from(_ROWS[:3]).map(lambda source: {"type": "SqlExecution", "sqlExecution": {"schema": source}})
        | st.sampled_from(_ROWS[:3]).map(lambda source: {"type": "JsonSchema", "jsonSchema": {"schema": source}})
        | st.sampled_from([{}, {"args": ["-v"], "resources": {"limits": {"memory": "1Gi"}}}]).map(
            lambda more: {"type": "Custom", "custom": {"image": "judge:1", **more}}
        ),
        max_size=6, unique_by=lambda metric: metric["type"],
    ),
    "spec.evaluation.skipTrainingIfBaselineAtLeast": _decimal(0, 1),
    "spec.evaluation.gate.maxServingDivergence": _decimal(0, 1),
    "spec.rollout.steps": st.sets(st.integers(1, 99), max_size=4).flatmap(_steps),
    "spec.rollout.identity[]": st.fixed_dictionaries({"header": st.sampled_from(["x-user-id", "X-Tenant"])})
    | st.fixed_dictionaries({"bodyField": st.sampled_from(["user", "safety_identifier"])}),
    "spec.rollout.guards.queries": st.sets(st.sampled_from(["refusals", "orders"]), min_size=1).flatmap(_queries),
    "spec.serving.resources": st.fixed_dictionaries({}, optional={
        "requests": st.sampled_from([{}, {"cpu": "250m"}, {"memory": "2Gi", "ephemeral-storage": "1.5"}]),
        "limits": st.sampled_from([{}, {"cpu": 2, "memory": "4Gi"}, {"memory": "2Gi", "nvidia.com/gpu": 2}]),
    }),
    "spec.serving.autoscaling": st.fixed_dictionaries(
        {"maxReplicas": st.integers(5, 9), "metric": st.just({"name": "requests", "averageValue": "4"})},
        optional={"minReplicas": st.integers(1, 5)},
    ) | st.fixed_dictionaries({"maxReplicas": st.integers(1, 9), "autoscaler": st.just("External")}),
    "spec.serving.expose": st.fixed_dictionaries(
        {"ingress": st.fixed_dictionaries({"className": st.just("nginx"), "host": st.just("bot.example.com")},
            optional={"tlsSecretName": st.just("bot-tls"), "annotations": st.just({"cert-manager.io/issuer": "ca"})})},
    ) | st.fixed_dictionaries(
        {"httpRoute": st.just({"parentRefs": [{"name": "gw", "namespace": "infra"}], "hostnames": ["bot.example.com"]})},
        optional={"scheme": st.sampled_from(["http", "https"])},
    ),
    "spec.pods.env[]": st.fixed_dictionaries({"name": st.sampled_from(["A", "B_2"])}, optional={"value": _WORDS}),
}  # fmt: skip


def specs() -> Strategy:
    """Any spec that is accepted and supported."""
    return _strategy(crd.schema()["properties"]["spec"], "spec").map(_reconciled)


def block(name: str) -> Strategy:
    """Any such block of a spec."""
    return _strategy(crd.schema()["properties"]["spec"]["properties"][name], f"spec.{name}")


def _reconciled(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without what its method excludes."""
    method = spec["method"]
    kind, preferences = method["type"], method.get("objective") == "DPO"
    excluded = {
        "lora": kind not in ("LoRA", "QLoRA"), "quantization": kind != "QLoRA", "prompt": kind not in PROMPTS, "dpo": not preferences,
    }  # fmt: skip
    method = {key: value for key, value in method.items() if not excluded.get(key)}
    if "prompt" in method and kind != "PromptTuning":
        method["prompt"] = {key: value for key, value in method["prompt"].items() if key != "initText"}
    data = {slot: _with_format(value, preferences) if slot in SLOTS else value for slot, value in spec["data"].items()}
    if "mix" in data:
        data["mix"] = [_with_format(source, preferences) for source in data["mix"]]
    if "languages" not in (quality := data.get("quality", {})):
        data |= {"quality": {key: value for key, value in quality.items() if key != "languagePercent"}} if quality else {}
    found = {**spec, "method": method, "data": data}
    if "evaluation" in spec and data.get("test", data["train"]).get("format") == "Text":
        found["evaluation"] = {key: value for key, value in spec["evaluation"].items() if key != "metrics"}
    if "compute" in spec:
        found["compute"] = _queued(_divided(spec["compute"], kind, preferences))
    if kind in PROMPTS and spec.get("training", {}).get("gradientCheckpointing") == "Always":
        found["training"] = {**spec["training"], "gradientCheckpointing": "Auto"}
    if "serving" in spec and (kind in PROMPTS or method.get("lora", {}).get("useDora")):
        found["serving"] = {key: value for key, value in spec["serving"].items() if key != "runtime"}
    return found


def _queued(compute: dict[str, Any]) -> dict[str, Any]:
    return compute if "queueName" in compute else {name: value for name, value in compute.items() if name != "queuePriorityClass"}


def _divided(compute: dict[str, Any], kind: str, preferences: bool) -> dict[str, Any]:
    sharding, offload = compute.get("sharding", "Auto"), compute.get("offload", "Auto")
    goes = kind in SHARDED and (not preferences or (sharding != "ZeRO3" and offload != "All"))
    moves = (
        offload in ("Auto", "None")
        or sharding in ("Auto", "ZeRO3")
        or (offload, sharding) in (("Optimizer", "ZeRO1"), ("Optimizer", "ZeRO2"))
    )
    fits = (goes and moves) or (sharding in ("Auto", "DDP") and offload in ("Auto", "None"))
    return compute if fits else {name: value for name, value in compute.items() if name not in ("sharding", "offload")}


def _with_format(source: dict[str, Any], preferences: bool) -> dict[str, Any]:
    fits = source.get("format", "Auto") == "Auto" or (source["format"] == "Preference") == preferences
    return source if fits else {**source, "format": "Auto"}


def names() -> Strategy:
    """Any FineTune's name, the longest often among them."""
    return st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True) | st.just("a" + "-b" * 19 + "c")


def _strategy(schema: dict[str, Any], path: str) -> Strategy:
    if path in _DRAWN:
        return _DRAWN[path]
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "x-kubernetes-int-or-string" in schema:
        return st.sampled_from(["250m", "4Gi", "1.5", 2])
    if schema.get("pattern") == DURATION_PATTERN:
        return _DURATION
    match schema["type"]:
        case "object":
            return _object(schema, path)
        case "array":
            items = _strategy(schema["items"], f"{path}[]")
            return st.lists(items, min_size=schema.get("minItems", 0), max_size=min(3, schema["maxItems"]))
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "boolean":
            return st.booleans()
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"].removeprefix("^").removesuffix("$"), fullmatch=True).filter(
                lambda text: len(text) <= min(schema["maxLength"], 30)
            )
        case _:
            return _WORDS


def _object(schema: dict[str, Any], path: str) -> Strategy:
    if "additionalProperties" in schema:
        return st.dictionaries(_WORDS, _strategy(schema["additionalProperties"], f"{path}{{}}"), max_size=2)
    fields = {n: _strategy(s, f"{path}.{n}") for n, s in schema.get("properties", {}).items() if f"{path}.{n}" not in _UNSUPPORTED}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=fields)
