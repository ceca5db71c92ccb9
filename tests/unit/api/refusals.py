"""What must be refused, with a part of the message: by the API server (tests/integration/test_crd.py) and by `load_spec`
(tests/unit/api/test_load.py) alike."""

# ruff: noqa: E501 - one case, one line: it reads as a table
from __future__ import annotations

import copy
from typing import Any

Manifest = dict[str, Any]


def make_finetune(name: str = "support-bot", **spec: Any) -> Manifest:
    """The smallest FineTune, with these blocks of the spec in place of its own."""
    smallest = {
        "model": {"source": "image:///opt/models/m"},
        "data": {"train": {"source": "configmap://rows/train.jsonl"}},
        "method": {"type": "LoRA"},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTune",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**smallest, **spec},
    }


def full_finetune() -> Manifest:
    """DESIGN's example, less what is not supported yet."""
    return make_finetune(
        model={"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "revision": "0e9e39f", "secretName": "hf-token"},
        data={
            "train": {"source": "pvc://datasets/support.jsonl", "format": "Auto"},
            "split": {"train": 80, "validation": 10, "test": 10, "seed": 17},
            "quality": {"minResponseCharacters": 10, "maxTokens": 4000, "onTooLong": "Drop", "maxInvalidPercent": 5, "deduplicate": True},
        },
        method={"type": "LoRA", "lora": {"rank": 16, "alpha": 32}, "objective": "SFT"},
        training={
            "epochs": 3, "learningRate": "2e-4", "maxSequenceLength": 2048, "tokensPerStep": 32768, "seed": 17,
            "earlyStopping": {"patience": 3}, "checkpoint": {"every": "15m", "keep": 2},
        },
        compute={"accelerator": "h100", "nodes": 2, "gpusPerNode": 8, "sharding": "Auto", "cpu": 8, "memory": "64Gi"},
        storage={"size": "200Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany", "retain": True},
        retries={"error": 2, "outOfMemory": 2, "infrastructure": 10},
        deadlines={"admission": "7d", "schedule": "12h", "start": "2h", "fetch": "3d", "prepare": "36h", "scoring": "8h"},
        economics={
            "alternative": {"name": "gpt-4.1-mini", "inputPrice": "0.40", "outputPrice": "1.60"}, "traffic": {"requestsPerMonth": 20000000},
            "podHourlyPrice": "21.20", "oneTimeCost": "4000",
        },
        evaluation={
            "metrics": [
                {"type": "ExactMatch"}, {"type": "SqlExecution", "sqlExecution": {"schema": "configmap://shop/schema.sql"}},
                {"type": "Regex", "regex": {"pattern": r"answer: (\w+)"}}, {"type": "JsonEqual"},
                {"type": "JsonSchema", "jsonSchema": {"schema": "configmap://shop/answer.json"}},
                {"type": "Custom", "custom": {
                    "image": "registry.example.com/icd@sha256:0", "command": ["/score"], "args": ["--strict"], "timeout": "20m",
                    "resources": {"requests": {"memory": "512Mi", "cpu": 1}, "limits": {"memory": "1Gi", "cpu": "1000m", "a/gpu": 1}},
                }},
            ],
            "skipTrainingIfBaselineAtLeast": "0.95",
            "gate": {"minScore": "0.9", "minImprovement": "0.05", "maxForgettingPercent": 5, "maxServingDivergence": "0.005"},
        },
        serving={"runtime": "Auto", "image": "", "replicas": 2, "resources": {}, "modelName": "support-bot"},
        rollout={
            "steps": [{"weight": 10, "hold": "30m"}, {"weight": 50, "hold": "1h"}, {"weight": 100}],
            "identity": [{"header": "x-user-id"}, {"bodyField": "user"}, {"bodyField": "safety_identifier"}, {"header": "Authorization"}],
            "guards": {
                "maxErrorRatePercent": 2, "maxLatencyRegressionPercent": 25, "minRequests": 200, "onInsufficient": "Extend", "maxExtension": "1h",
                "maxErrorRegressionPercent": 25, "maxTimeToFirstTokenRegressionPercent": 25, "maxTimePerOutputTokenRegressionPercent": 25,
                "maxUnusableRegressionPercent": 25,
                "queries": [
                    {
                        "name": "refusals", "max": "0.05",
                        "query": 'label_replace(sum(rate(refused{pod=~"${pods}"}[${window}])), "arm", "${1}", "pod", ".*-${arm}-(.*)")',
                    },
                ],
            },
            "experiment": {"weight": 50, "duration": "14d", "log": {"secretName": "support-bot-ab"}},
            "bake": "1h",
        },
        pods={
            "serviceAccountName": "trainer", "imagePullSecrets": [], "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "affinity": {}, "annotations": {"team": "ml"},
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        },
        retrain="",
        suspend=False,
    )  # fmt: skip


def changed(base: Manifest, path: str, value: Any) -> Manifest:
    """A copy with one field set; a number in the path is a place in a list, and blocks on the way are made."""
    made = copy.deepcopy(base)
    node: Any = made
    *above, last = path.split(".")
    for part in above:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return made


_BASE = make_finetune()
_ROWS = "spec.data.train"
_INGRESS = {"className": "nginx", "host": "bot.example.com"}
_METRIC = {"type": "ExactMatch"}
_QUERY = {"name": "q", "query": "up"}


def _custom(resources: Manifest) -> Manifest:
    """With a metric whose image has these resources."""
    return changed(_BASE, "spec.evaluation.metrics", [{"type": "Custom", "custom": {"image": "a:1", "resources": resources}}])


# What is wrong → (the object, a part of the message).
REFUSED: dict[str, tuple[Manifest, str]] = {
    "a name of 41 characters": (make_finetune("a" * 41), "metadata.name: must be a DNS label of at most 40 characters"),
    "a name that starts with a digit": (make_finetune("1a"), "metadata.name: must be a DNS label"),
    "a name with a dot": (make_finetune("a.b"), "metadata.name: must be a DNS label"),
    "shares that sum to 110": (changed(_BASE, "spec.data.split", {"train": 90}), "spec.data.split: train, validation and test must sum to 100"),
    "a LoRA block without LoRA": (changed(_BASE, "spec.method", {"type": "Full", "lora": {"rank": 8}}), "spec.method.lora: belongs to method.type LoRA"),
    "a rank that vLLM cannot serve": (
        changed(changed(_BASE, "spec.method.lora", {"rank": 513}), "spec.serving", {"runtime": "vLLM"}), "spec.method.lora.rank: vLLM serves ranks up to 512",
    ),
    "a model name that looks like an option": (changed(_BASE, "spec.serving", {"modelName": "--port"}), "spec.serving.modelName"),
    "a dropout of 1": (changed(_BASE, "spec.method.lora", {"dropout": "1"}), "spec.method.lora.dropout: must be at least 0"),
    "a learning rate of 0": (changed(_BASE, "spec.training", {"learningRate": "0.0"}), "spec.training.learningRate: must be above 0"),
    "a negative learning rate": (changed(_BASE, "spec.training", {"learningRate": "-1e-4"}), "spec.training.learningRate: must be above 0"),
    "both checkpoint triggers": (
        changed(_BASE, "spec.training.checkpoint", {"every": "1m", "everySteps": 5}), "every and everySteps exclude each other"
    ),
    "a checkpoint every 0 seconds": (changed(_BASE, "spec.training.checkpoint", {"every": "0s"}), "spec.training.checkpoint.every: must be above 0"),
    "SqlExecution without a schema": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "SqlExecution"}]), "spec.evaluation.metrics[].sqlExecution: belongs to type SqlExecution"
    ),
    "Regex without a pattern": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "Regex"}]), "spec.evaluation.metrics[].regex: belongs to type Regex"
    ),
    "Contains with a pattern": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "Contains", "regex": {"pattern": "a"}}]), "spec.evaluation.metrics[].regex: belongs to type Regex"
    ),
    "two metrics of one type": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "Regex", "regex": {"pattern": text}} for text in ("a", "b")]),
        "spec.evaluation.metrics: two have the same type",
    ),
    "an empty pattern": (changed(_BASE, "spec.evaluation.metrics", [{"type": "Regex", "regex": {"pattern": ""}}]), "spec.evaluation.metrics[0].regex.pattern"),
    "a pattern of 1,001 characters": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "Regex", "regex": {"pattern": "a" * 1001}}]), "spec.evaluation.metrics[0].regex.pattern"
    ),
    "Custom without an image": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "Custom"}]), "spec.evaluation.metrics[].custom: belongs to type Custom"
    ),
    "an image for ExactMatch": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "ExactMatch", "custom": {"image": "a:1"}}]),
        "spec.evaluation.metrics[].custom: belongs to type Custom",
    ),
    "an image that has no time": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "Custom", "custom": {"image": "a:1", "timeout": "0s"}}]),
        "spec.evaluation.metrics[].custom.timeout: must be above 0",
    ),
    "an image that asks for more than it may have": (
        _custom({"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}),
        "spec.evaluation.metrics[].custom.resources.requests: what is requested may not be above its limit",
    ),
    "an image that asks for a device and has no limit of it": (
        _custom({"requests": {"nvidia.com/gpu": 1}}), "spec.evaluation.metrics[].custom.resources.requests: what is requested may not be above"
    ),
    "an image that asks for fewer devices than it may have": (
        _custom({"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": "2"}}),
        "spec.evaluation.metrics[].custom.resources.requests: what is requested may not be above",
    ),
    "an image that asks for something that there is none of": (
        _custom({"limits": {"gpu": 1}}), "spec.evaluation.metrics[].custom.resources: a resource is cpu, memory"
    ),
    "an image that asks for half a device": (
        _custom({"limits": {"nvidia.com/gpu": "500m"}}), "spec.evaluation.metrics[].custom.resources: devices are counted in whole numbers"
    ),
    "a memory that is no quantity, beside a limit": (
        changed(_BASE, "spec.serving", {"resources": {"requests": {"memory": "2Gb"}, "limits": {"memory": "4Gi"}}}),
        "spec.serving.resources.requests.memory",
    ),
    "an image whose memory is no quantity": (
        _custom({"limits": {"memory": "1Gb"}}), "spec.evaluation.metrics[0].custom.resources.limits.memory"
    ),
    "a server that asks for more than it may have": (
        changed(_BASE, "spec.serving", {"resources": {"requests": {"cpu": "2500m"}, "limits": {"cpu": 2}}}),
        "spec.serving.resources.requests: what is requested may not be above its limit",
    ),
    "a server that asks for something that there is none of": (
        changed(_BASE, "spec.serving", {"resources": {"requests": {"ram": "1Gi"}}}), "spec.serving.resources: a resource is cpu, memory"
    ),
    "a server that asks for half a device": (
        changed(_BASE, "spec.serving", {"resources": {"limits": {"nvidia.com/gpu": "0.5"}}}), "spec.serving.resources: devices are counted"
    ),
    "JsonEqual with a schema": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "JsonEqual", "jsonSchema": {"schema": "configmap://a/b"}}]),
        "spec.evaluation.metrics[].jsonSchema: belongs to type JsonSchema",
    ),
    "ExactMatch with a schema": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "ExactMatch", "sqlExecution": {"schema": "configmap://a/b"}}]),
        "spec.evaluation.metrics[].sqlExecution: belongs to type SqlExecution",
    ),
    "steps that fall": (changed(_BASE, "spec.rollout.steps", [{"weight": 50}, {"weight": 10}, {"weight": 100}]), "spec.rollout.steps: weights must grow"),
    "steps that stand still": (changed(_BASE, "spec.rollout.steps", [{"weight": 50}, {"weight": 50}, {"weight": 100}]), "spec.rollout.steps: weights must grow"),
    "steps that end at 50": (changed(_BASE, "spec.rollout.steps", [{"weight": 10}, {"weight": 50}]), "the last must be 100"),
    "an identity that is nothing": (changed(_BASE, "spec.rollout.identity", [{}]), "spec.rollout.identity[]: name either a header or a bodyField"),
    "an identity that is two things": (
        changed(_BASE, "spec.rollout.identity", [{"header": "x-user-id", "bodyField": "user"}]), "spec.rollout.identity[]: name either a header or a bodyField"
    ),
    "an identity from a header of the routers": (
        changed(_BASE, "spec.rollout.identity", [{"header": "X-FineTune-User"}]), "spec.rollout.identity[].header: x-finetune- begins the routers' own"
    ),
    "two queries of one name": (changed(_BASE, "spec.rollout.guards.queries", [{**_QUERY, "max": "1"}] * 2), "spec.rollout.guards.queries: two have the same name"),
    "a query without a limit": (changed(_BASE, "spec.rollout.guards.queries", [_QUERY]), "spec.rollout.guards.queries[]: needs max, min, or both"),
    "a query that nothing passes": (
        changed(_BASE, "spec.rollout.guards.queries", [{**_QUERY, "min": "2e-1", "max": "0.1"}]), "spec.rollout.guards.queries[].min: must not be above max"
    ),
    "a query with a misspelt placeholder": (
        changed(_BASE, "spec.rollout.guards.queries", [{**_QUERY, "query": 'up{pod=~"${pod}"}', "max": "1"}]),
        "spec.rollout.guards.queries[].query: names a placeholder that there is not; there are ${arm}, ${revision}",
    ),
    "an archive without its digest": (changed(_BASE, "spec.model.source", "https://example.com/m.tar"), "spec.model.revision: an https:// model is an archive"),
    "mixed-in rows of a volume behind a Secret": (
        changed(_BASE, "spec.data.mix", [{"source": "pvc://a/b", "percent": 10, "secretName": "s"}]),
        "spec.data.mix[].secretName: belongs to a source of https://",
    ),
    "mixed-in data of no share": (changed(_BASE, "spec.data.mix", [{"source": "pvc://a/b", "percent": 0}]), "spec.data.mix"),
    "rows of a volume behind a Secret": (changed(_BASE, f"{_ROWS}.secretName", "s"), "spec.data.train.secretName: belongs to a source of https://"),
    "rows that are half alike": (changed(_BASE, "spec.data.quality", {"nearDuplicatePercent": 49}), "spec.data.quality.nearDuplicatePercent"),
    "a language by its name": (changed(_BASE, "spec.data.quality", {"languages": ["english"]}), "spec.data.quality.languages"),
    "how sure, of no language": (changed(_BASE, "spec.data.quality", {"languagePercent": 95}), "set languages"),
    "no language at all": (changed(_BASE, "spec.data.quality", {"languages": []}), "spec.data.quality.languages"),
    "plain text for DPO": (
        changed(changed(_BASE, "spec.method.objective", "DPO"), f"{_ROWS}.format", "Text"),
        "spec.method.objective: DPO learns from rows of format Preference",
    ),
    "answers to plain text": (
        changed(changed(_BASE, "spec.evaluation", {"metrics": [{"type": "ExactMatch"}]}), f"{_ROWS}.format", "Text"),
        "spec.evaluation.metrics: score answers, and test rows of format Text have none; remove metrics",
    ),
    "answers to plain text of a test split": (
        changed(changed(_BASE, "spec.evaluation", {"metrics": [{"type": "ExactMatch"}]}), "spec.data.test", {"source": "pvc://a/b", "format": "Text"}),
        "spec.evaluation.metrics: score answers",
    ),
    "preferences for SFT": (changed(_BASE, f"{_ROWS}.format", "Preference"), "spec.method.objective: DPO learns from rows of format Preference"),
    "messages for DPO": (
        changed(changed(_BASE, "spec.method.objective", "DPO"), "spec.data.test", {"source": "pvc://a/b", "format": "Messages"}),
        "spec.method.objective: DPO learns from rows of format Preference",
    ),
    "preferences mixed in for SFT": (
        changed(_BASE, "spec.data.mix", [{"source": "pvc://a/b", "percent": 10, "format": "Preference"}]),
        "spec.method.objective: DPO learns from rows of format Preference",
    ),
    "a serving that is nearer than the same": (
        changed(_BASE, "spec.evaluation", {"gate": {"maxServingDivergence": "-0.001"}}),
        "spec.evaluation.gate.maxServingDivergence: must not be below 0",
    ),
    "a beta of 0": (changed(changed(_BASE, "spec.method.objective", "DPO"), "spec.method.dpo", {"beta": "0"}), "spec.method.dpo.beta: must be above 0"),
    "a DPO block without DPO": (changed(_BASE, "spec.method.dpo", {"beta": "0.2"}), "spec.method.dpo: belongs to method.objective DPO"),
    "a quantised LoRA": (changed(_BASE, "spec.method.quantization", "NF4"), "spec.method.quantization: belongs to method.type QLoRA"),
    "a prompt without prompt tuning": (changed(_BASE, "spec.method.prompt", {"virtualTokens": 8}), "spec.method.prompt: belongs to method.type PromptTuning"),
    "a text that a prefix begins as": (
        changed(_BASE, "spec.method", {"type": "PrefixTuning", "prompt": {"initText": "Be brief."}}),
        "spec.method.prompt.initText: belongs to method.type PromptTuning",
    ),
    "a trained prompt behind vLLM": (
        changed(changed(_BASE, "spec.method", {"type": "PTuning"}), "spec.serving", {"runtime": "vLLM"}), "spec.serving.runtime: vLLM serves neither",
    ),
    "DoRA behind vLLM": (
        changed(changed(_BASE, "spec.method.lora", {"useDora": True}), "spec.serving", {"runtime": "vLLM"}), "spec.serving.runtime: vLLM serves neither",
    ),
    "a model behind a Secret": (changed(_BASE, "spec.model.secretName", "s"), "spec.model.secretName: not supported yet"),
    "a model from a bucket": (changed(_BASE, "spec.model.source", "s3://a/b"), "spec.model.source: not supported yet"),
    "a model from a registry": (changed(_BASE, "spec.model.source", "oci://a/b"), "spec.model.source: not supported yet"),
    "a quantised base that ranks divide": (
        changed(changed(_BASE, "spec.method", {"type": "QLoRA"}), "spec.compute.sharding", "ZeRO2"), "spec.compute.sharding: ZeRO divides",
    ),
    "a prompt's optimizer on the host": (
        changed(changed(_BASE, "spec.method", {"type": "PTuning"}), "spec.compute", {"offload": "Optimizer"}), "spec.compute.sharding: ZeRO divides",
    ),
    "preferences under ZeRO-3": (
        changed(changed(_BASE, "spec.method", {"type": "LoRA", "objective": "DPO"}), "spec.compute.sharding", "ZeRO3"),
        "spec.compute.sharding: ZeRO divides",
    ),
    "a trained prompt behind which layers are computed again": (
        changed(changed(_BASE, "spec.method", {"type": "PTuning"}), "spec.training.gradientCheckpointing", "Always"),
        "spec.training.gradientCheckpointing: activations behind a trained prompt are not computed again; use Auto or Never",
    ),
    "an offload of what is not divided": (
        changed(_BASE, "spec.compute", {"sharding": "DDP", "offload": "Optimizer"}), "spec.compute.offload: Optimizer belongs to",
    ),
    "an offload of whole parameters": (
        changed(_BASE, "spec.compute", {"sharding": "ZeRO2", "offload": "All"}), "spec.compute.offload: Optimizer belongs to",
    ),
    "a priority in no queue": (changed(_BASE, "spec.compute", {"queuePriorityClass": "high"}), "spec.compute.queuePriorityClass: belongs to queueName"),
    "a queue whose name is no label": (changed(_BASE, "spec.compute.queueName", "t" * 64), "spec.compute.queueName"),
    "a budget of nothing": (changed(_BASE, "spec.budget", {"maxCost": "0.0"}), "spec.budget.maxCost: must be above 0"),
    "an experiment of no time": (
        changed(_BASE, "spec.rollout.experiment", {"weight": 50, "duration": "0m"}), "spec.rollout.experiment.duration: must be above 0"
    ),
    **{
        f"no time to wait: deadlines.{name}": (changed(_BASE, "spec.deadlines", {name: "0s"}), f"spec.deadlines.{name}: must be above 0")
        for name in ("admission", "schedule", "start", "fetch", "prepare", "scoring")
    },
    "a budget of no time": (changed(_BASE, "spec.budget", {"maxDuration": "0h"}), "spec.budget.maxDuration: must be above 0"),
    "a price below nothing": (changed(_BASE, "spec.economics", {"podHourlyPrice": "-1"}), "spec.economics.podHourlyPrice: must be from 0 to 1e12"),
    "what was paid once, beyond measure": (changed(_BASE, "spec.economics", {"oneTimeCost": "1e13"}), "spec.economics.oneTimeCost: must be from 0 to 1e12"),
    "prompts that one is paid for": (
        changed(_BASE, "spec.economics.alternative", {"name": "x", "inputPrice": "-0.1", "outputPrice": "0.1"}),
        "spec.economics.alternative.inputPrice: must be from 0 to 1e12",
    ),
    "answers that one is paid for": (
        changed(_BASE, "spec.economics.alternative", {"name": "x", "inputPrice": "0.1", "outputPrice": "-0.1"}),
        "spec.economics.alternative.outputPrice: must be from 0 to 1e12",
    ),
    "an alternative without a name": (changed(_BASE, "spec.economics.alternative", {"name": "", "inputPrice": "1", "outputPrice": "1"}), "spec.economics.alternative.name"),
    "an alternative that answers for nothing": (changed(_BASE, "spec.economics.alternative", {"name": "x", "inputPrice": "1"}), "spec.economics.alternative"),
    "traffic of nothing": (changed(_BASE, "spec.economics", {"traffic": {}}), "spec.economics.traffic: name either requestsPerMonth"),
    "traffic without answers": (
        changed(_BASE, "spec.economics.traffic", {"inputTokensPerMonth": 7}), "spec.economics.traffic: name either requestsPerMonth"
    ),
    "traffic that is said twice": (
        changed(_BASE, "spec.economics.traffic", {"requestsPerMonth": 7, "inputTokensPerMonth": 7}), "spec.economics.traffic: name either requestsPerMonth"
    ),
    "a provider": (changed(_BASE, "spec.provider", {"type": "OpenAI"}), "spec.provider: not supported yet"),
    "a schema from the web": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "SqlExecution", "sqlExecution": {"schema": "https://example.com/s.sql"}}]),
        "sqlExecution.schema: not supported yet",
    ),
    "a JSON schema from the internet": (
        changed(_BASE, "spec.evaluation.metrics", [{"type": "JsonSchema", "jsonSchema": {"schema": "https://example.com/s.json"}}]),
        "jsonSchema.schema: not supported yet",
    ),
    # Types and bounds, without a rule of their own.
    "no model": ({**_BASE, "spec": {k: v for k, v in _BASE["spec"].items() if k != "model"}}, "spec.model"),
    "no spec": ({k: v for k, v in _BASE.items() if k != "spec"}, "spec"),
    "a source without a scheme": (changed(_BASE, f"{_ROWS}.source", "train.jsonl"), "spec.data.train.source"),
    "a ConfigMap without a key": (changed(_BASE, f"{_ROWS}.source", "configmap://rows"), "spec.data.train.source"),
    "a number where a decimal text belongs": (changed(_BASE, "spec.training", {"learningRate": 0.1}), "spec.training.learningRate"),
    "a duration without a unit": (changed(_BASE, "spec.rollout.bake", "30"), "spec.rollout.bake"),
    "no pods in the gang": (changed(_BASE, "spec.compute.nodes", 0), "spec.compute.nodes"),
    "a quantity that is none": (changed(_BASE, "spec.storage.size", "10 GB"), "spec.storage.size"),
    "fewer replicas at most than at least": (
        changed(_BASE, "spec.serving", {"autoscaling": {"minReplicas": 3, "maxReplicas": 2, "autoscaler": "External"}}),
        "spec.serving.autoscaling.maxReplicas: must be at least minReplicas",
    ),
    "two metrics to scale by": (
        changed(_BASE, "spec.serving", {"autoscaling": {"maxReplicas": 2, "targetCPUUtilizationPercentage": 50, "metric": {"name": "m", "averageValue": "1"}}}),
        "spec.serving.autoscaling.metric: and targetCPUUtilizationPercentage exclude each other",
    ),
    "a share of a CPU that nobody requests": (
        changed(_BASE, "spec.serving", {"autoscaling": {"maxReplicas": 2}, "resources": {"requests": {"memory": "1Gi"}}}),
        "spec.serving.autoscaling: the CPU is measured by resources.requests.cpu",
    ),
    "no way in": (changed(_BASE, "spec.serving", {"expose": {}}), "spec.serving.expose: name either an ingress or an httpRoute"),
    "both ways in": (
        changed(_BASE, "spec.serving", {"expose": {"ingress": _INGRESS, "httpRoute": {"parentRefs": [{"name": "gw"}], "hostnames": ["a.b"]}}}),
        "spec.serving.expose: name either an ingress or an httpRoute",
    ),
    **{
        f"a host that is none: {host}": (changed(_BASE, "spec.serving", {"expose": {"ingress": {**_INGRESS, "host": host}}}), "spec.serving.expose.ingress.host")
        for host in ("Bot.example.com", "bot_1.example.com", "*.example.com", "10.0.0.1", "bot..com", "-bot.com", "bot.com.", "b" * 64 + ".com", "https://bot.com")
    },
    "a host of a route that is none": (
        changed(_BASE, "spec.serving", {"expose": {"httpRoute": {"parentRefs": [{"name": "gw"}], "hostnames": ["10.0.0.1"]}}}), "hostnames",
    ),
    "a route without a Gateway": (
        changed(_BASE, "spec.serving", {"expose": {"httpRoute": {"parentRefs": [], "hostnames": ["a.b"]}}}), "parentRefs",
    ),
    "no steps at all": (changed(_BASE, "spec.rollout.steps", []), "spec.rollout.steps"),
    "a field deep in a body": (changed(_BASE, "spec.rollout.identity", [{"bodyField": "metadata.user"}]), "spec.rollout.identity"),
    "a field without a name": (changed(_BASE, "spec.rollout.identity", [{"bodyField": ""}]), "spec.rollout.identity"),
    "a header that no request has": (changed(_BASE, "spec.rollout.identity", [{"header": "x user"}]), "spec.rollout.identity"),
    "an experiment with all users": (changed(_BASE, "spec.rollout.experiment", {"weight": 100}), "spec.rollout.experiment.weight"),
    "a log without a key": (changed(_BASE, "spec.rollout.experiment", {"weight": 50, "log": {}}), "spec.rollout.experiment.log.secretName"),
    "a query that asks nothing": (changed(_BASE, "spec.rollout.guards.queries", [{"name": "q", "query": "", "max": "1"}]), "spec.rollout.guards.queries"),
    "a query's name that is none": (
        changed(_BASE, "spec.rollout.guards.queries", [{"name": "too many", "query": "up", "max": "1"}]), "spec.rollout.guards.queries"
    ),
    "a decimal that fills the memory": (changed(_BASE, "spec.training", {"learningRate": "1e999999999"}), "spec.training.learningRate"),
}  # fmt: skip
