"""`spec.training`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.fields import LIVE, RETRAIN
from finetune_operator.api.rule import Rule, number, some_time
from finetune_operator.api.types import Decimal, Duration, SpecModel


class EarlyStopping(SpecModel):
    """Stop when the validation loss no longer falls."""

    patience: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=1, le=1000, description="Validations without a better loss; default 3."
    )


class CheckpointPolicy(SpecModel):
    """How often, and how many are kept."""

    every: Annotated[Duration | None, LIVE] = Field(default=None, description="Default 15m.")
    every_steps: Annotated[int | None, LIVE] = Field(default=None, ge=1, le=1000000, description="Instead of `every`.")
    keep: Annotated[int | None, LIVE] = Field(default=None, ge=1, le=100, description="Default 2; the best one is kept besides.")


class Training(SpecModel):
    """The optimisation."""

    epochs: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=1000, description="Default 3.")
    learning_rate: Annotated[Decimal | None, RETRAIN] = Field(
        default=None, description='Default "2e-4"; Full "1e-5", PromptTuning "3e-2", PrefixTuning "1e-2", PTuning "1e-3"; DPO "5e-6".'
    )
    max_sequence_length: Annotated[int | None, RETRAIN] = Field(default=None, ge=16, le=1048576, description="Tokens; default 2048.")
    tokens_per_step: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=16, le=67108864, description="Default: what leaves at least 50 steps an epoch, at most 32768."
    )
    seed: Annotated[int | None, RETRAIN] = Field(default=None, ge=0, le=2147483647, description="Default 17.")
    gradient_checkpointing: Annotated[Literal["Auto", "Always", "Never"] | None, LIVE] = Field(
        default=None,
        description="Whether a layer keeps its input alone and computes its activations again: less memory, a third to a half more time. "
        "Auto, the default: where nothing fits without it, before anything is offloaded; not on CPUs.",
    )
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointPolicy | None = None


RULES: Final = (
    number(
        "spec.training", "learningRate", "double(self.learningRate) > 0.0 && double(self.learningRate) <= 1000.0",
        'must be above 0 and at most 1000; "2e-4" is usual for LoRA', lambda rate: 0 < rate <= 1000,
    ),
    Rule(
        "spec.training.checkpoint", "",
        "!(has(self.every) && has(self.everySteps))",
        "every and everySteps exclude each other; remove one",
        lambda policy: not ("every" in policy and "everySteps" in policy),
    ),
    some_time("spec.training.checkpoint", "every"),
)  # fmt: skip
