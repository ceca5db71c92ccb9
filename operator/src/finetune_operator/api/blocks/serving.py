"""`spec.serving`: how the model serves, to whom, and with how many pods."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.blocks.expose import Expose
from finetune_operator.api.blocks.resources import Resources, of_container
from finetune_operator.api.fields import LIVE, REDEPLOY
from finetune_operator.api.rule import Node, Rule
from finetune_operator.api.types import Name, Quantity, SpecModel, Word

ServedName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]*$")]


class ApiKeys(SpecModel):
    """The routers admit only who sends one of these as `Authorization: Bearer KEY`."""

    secret_name: Annotated[Name, LIVE] = Field(
        description="Secret whose entry `keys` has lines of a name and a key. A changed one counts within a minute or two."
    )


class Tls(SpecModel):
    """Users are served over TLS, at port 443 alone."""

    secret_name: Annotated[Name, LIVE] = Field(
        description="Secret of type kubernetes.io/tls, as cert-manager makes it; a renewed certificate is used without a restart."
    )


class PodMetric(SpecModel):
    """A metric of the arm's pods, from the cluster's custom metrics."""

    name: Annotated[Word, LIVE] = Field(description="As its adapter calls it.")
    average_value: Annotated[Quantity, LIVE] = Field(description="Of each pod.")


class Autoscaling(SpecModel):
    """The replicas of each arm follow its load; `replicas` does not count then. While users are moved no arm falls below what the present one had."""

    min_replicas: Annotated[int, LIVE] = Field(default=1, ge=1, le=1000)
    max_replicas: Annotated[int, LIVE] = Field(ge=1, le=1000, description="Of each arm; two arms run while users are moved.")
    target_cpu: Annotated[int | None, LIVE] = Field(
        alias="targetCPUUtilizationPercentage", default=None, ge=1, le=1000,
        description="Of resources.requests.cpu, on average over the pods; default 80 without a metric.",
    )  # fmt: skip
    metric: PodMetric | None = Field(default=None, description="Instead of the CPU, which says little of a server on GPUs.")
    autoscaler: Annotated[Literal["HPA", "External"], LIVE] = Field(
        default="HPA", description="External: none is made; yours (KEDA) sets the replicas of the arm's Deployment."
    )


class Serving(SpecModel):
    """How the model serves; absent: train only."""

    runtime: Annotated[Literal["Auto", "Transformers", "vLLM"], REDEPLOY] = Field(
        default="Auto", description="Auto: vLLM with an accelerator, else Transformers; always the latter for trained prompts and DoRA."
    )
    image: Annotated[Annotated[str, Field(max_length=512)] | None, REDEPLOY] = Field(
        default=None, description="Replaces the server's image; started with `finetune-trainer serve`'s arguments, port and probe."
    )
    replicas: Annotated[int, LIVE] = Field(
        default=1, ge=1, le=1000,
        description="Of each arm, with gpusPerNode GPUs each; two arms run while users are moved. An autoscaler that names the FineTune sets it.",
    )  # fmt: skip
    autoscaling: Autoscaling | None = None
    resources: Annotated[Resources | None, REDEPLOY] = None
    model_name: Annotated[ServedName | None, REDEPLOY] = Field(default=None, description="Default: the FineTune's name.")
    api_keys: ApiKeys | None = None
    tls: Tls | None = None
    expose: Expose | None = None


def _cpu_is_requested(serving: Node) -> bool:
    scaling = serving.get("autoscaling")
    by_cpu = scaling is not None and "metric" not in scaling and scaling.get("autoscaler", "HPA") == "HPA"
    return not by_cpu or "cpu" in (serving.get("resources", {}).get("requests") or {})


RULES: Final = (
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
    *of_container("spec.serving.resources", lent=True),
)  # fmt: skip
