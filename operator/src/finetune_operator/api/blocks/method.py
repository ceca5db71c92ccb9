"""`spec.method`: which weights train, on what objective."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.fields import RETRAIN
from finetune_operator.api.rule import Rule, number
from finetune_operator.api.types import Decimal, SpecModel, Word

PROMPTS: Final = ("PromptTuning", "PrefixTuning", "PTuning")


class Lora(SpecModel):
    """Low-rank adapters."""

    rank: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=1024, description="Default 16.")
    alpha: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=4096, description="Default 32.")
    dropout: Annotated[Decimal | None, RETRAIN] = Field(default=None, description="Default 0.")
    target_modules: Annotated[list[Word] | None, RETRAIN] = Field(
        default=None,
        max_length=64,
        description="Ends of layers' names; `experts.down_proj` and the like for a MoE's experts. Default: all linear layers but the head, a MoE's router and its experts.",
    )
    use_rslora: Annotated[bool | None, RETRAIN] = Field(
        default=None, description="Scale by alpha / √rank instead of alpha / rank; default false."
    )
    use_dora: Annotated[bool | None, RETRAIN] = Field(
        default=None, description="Train magnitudes too (DoRA), which vLLM does not serve; default false."
    )


class Prompt(SpecModel):
    """Trained tokens before every prompt."""

    virtual_tokens: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=4096, description="Default 20.")
    init_text: Annotated[Annotated[str, Field(min_length=1, max_length=4096)] | None, RETRAIN] = Field(
        default=None, description="For PromptTuning: they begin as this text's tokens; default: as random ones."
    )


class Dpo(SpecModel):
    """Direct preference optimisation."""

    beta: Annotated[Decimal | None, RETRAIN] = Field(
        default=None, description='How close to the base model to stay: larger is closer; default "0.1".'
    )


class Method(SpecModel):
    """Which weights train, on what objective."""

    type: Annotated[Literal["Full", "LoRA", "QLoRA", "PromptTuning", "PrefixTuning", "PTuning"], RETRAIN]
    objective: Annotated[Literal["SFT", "DPO"] | None, RETRAIN] = Field(
        default=None, description="DPO learns from rows of format Preference, SFT from all others; default SFT."
    )
    lora: Lora | None = None
    quantization: Annotated[Literal["NF4", "Int8"] | None, RETRAIN] = Field(
        default=None, description="How QLoRA keeps the frozen base while it trains; default NF4 (4 bits, doubly quantised)."
    )
    prompt: Prompt | None = None
    dpo: Dpo | None = None


RULES: Final = (
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
    number(
        "spec.method.lora", "dropout", "double(self.dropout) >= 0.0 && double(self.dropout) < 1.0", "must be at least 0 and below 1",
        lambda share: 0 <= share < 1,
    ),
)  # fmt: skip
