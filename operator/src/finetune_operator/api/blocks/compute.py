"""`spec.compute`: the gang that trains."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.rule import Node, Rule
from finetune_operator.api.types import LabelName, Quantity, SpecModel, Word

SHARDED: Final = ("Full", "LoRA")


class Compute(SpecModel):
    """The gang that trains. Changing it moves the next attempt and never retrains."""

    accelerator: Annotated[Word | None, LIVE] = Field(
        default=None, description="A profile of the operator's: h100, h200, a100-80, …; absent: CPU."
    )
    nodes: Annotated[int, LIVE] = Field(default=1, ge=1, le=512, description="Pods of the gang, torchrun's nnodes.")
    gpus_per_node: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=16, description="Of each rank, each pod that scores and each server; default 1 with an accelerator, else 0."
    )
    sharding: Annotated[Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3"], LIVE] = Field(
        default="Auto", description="What ranks divide among them instead of holding it each; Auto: the least that fits, DDP on CPUs."
    )
    offload: Annotated[Literal["Auto", "None", "Optimizer", "All"], LIVE] = Field(
        default="Auto",
        description="What of it lies in the host's memory, under ZeRO; Auto: only what must; All: with ZeRO3, parameters too.",
    )
    queue_name: Annotated[LabelName | None, LIVE] = Field(
        default=None, description="Kueue's LocalQueue, which admits the gangs that train from then on."
    )
    queue_priority_class: Annotated[LabelName | None, LIVE] = Field(
        default=None, description="Kueue's WorkloadPriorityClass: which gangs the queue admits first, and which it stops for others."
    )
    cpu: Annotated[Quantity | None, LIVE] = Field(default=None, description="CPU request of each pod.")
    memory: Annotated[Quantity | None, LIVE] = Field(default=None, description="Memory request and limit of each pod.")
    threads: Annotated[int | None, LIVE] = Field(default=None, ge=1, le=256, description="Threads of each rank on CPU; default 1.")

    @property
    def gpus_each(self) -> int:
        """Accelerators of each pod that has any."""
        return self.gpus_per_node or (1 if self.accelerator else 0)


def shardable(kind: str, objective: str | None, sharding: str) -> bool:
    """Whether a method's ranks can divide it so. Before DPO's first step the whole base model reads all answers."""
    return kind in SHARDED and (objective != "DPO" or sharding != "ZeRO3")


def layout(compute: Node) -> tuple[str, str]:
    """(sharding, offload) that are asked for."""
    return compute.get("sharding", "Auto"), compute.get("offload", "Auto")


def _offload_fits(compute: Node) -> bool:
    sharding, offload = layout(compute)
    return offload in ("Auto", "None") or sharding in ("Auto", "ZeRO3") or (offload == "Optimizer" and sharding != "DDP")


RULES: Final = (
    Rule(
        "spec.compute", "queuePriorityClass",
        "!has(self.queuePriorityClass) || has(self.queueName)",
        "belongs to queueName; name the queue, or remove it",
        lambda compute: "queueName" in compute or "queuePriorityClass" not in compute,
    ),
    Rule(
        "spec.compute", "offload",
        "!has(self.offload) || self.offload in ['Auto', 'None'] || self.sharding in ['Auto', 'ZeRO3'] || "  # a default is judged bare
        "(self.offload == 'Optimizer' && self.sharding != 'DDP')",
        "Optimizer belongs to sharding ZeRO1, ZeRO2 or ZeRO3, and All to ZeRO3; use Auto, or another sharding",
        _offload_fits,
    ),
)  # fmt: skip
