"""The same rows by TRL with its default settings, measured: `python -m tests.bench.trainer.theirs SPEC`; last line JSON.

Set are what is compared (adapter, learning rate, epochs, precision) and what would write files or logs; nothing that changes its speed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from finetune_trainer.data import arrays
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tests.bench.trainer import measure


class Marks(TrainerCallback):
    """Marks the ends of steps."""

    def __init__(self, ends: measure.Ends) -> None:
        self._ends = ends

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step's gradients are applied."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ends.mark()


class Counted(SFTTrainer):  # type: ignore[misc]
    """Counts the tokens of each batch, padding apart, and keeps its loss."""

    tokens: list[int]
    supervised: list[int]
    losses: list[float]

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
        """TRL's."""
        self.tokens.append(int(inputs["attention_mask"].sum()))
        self.supervised.append(int((inputs["labels"][:, 1:] != -100).sum()))
        loss = super().compute_loss(model, inputs, *arguments, **more)
        self.losses.append(float(loss.detach()))
        return loss


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Train with defaults."""
    torch.set_num_threads(spec["threads"])
    device, bf16, method = torch.device(spec["device"]), spec["bf16"], spec["config"]["method"]
    training = spec["config"]["training"]
    settings = SFTConfig(
        output_dir=spec["folder"], num_train_epochs=training["epochs"], learning_rate=training["learningRate"], lr_scheduler_type="cosine",
        bf16=bf16, use_cpu=device.type == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    lora = None
    if method["type"] != "Full":
        lora = LoraConfig(
            r=method["lora"]["rank"],
            lora_alpha=method["lora"]["alpha"],
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    ends = measure.Ends()
    trainer = Counted(
        model=spec["model"], args=settings, train_dataset=Dataset.from_list(spec["rows"]), peft_config=lora, callbacks=[Marks(ends)]
    )
    trainer.tokens, trainer.supervised, trainer.losses = [], [], []
    trainer.train()
    peak = measure.peak_mib(device)
    kept = measure.kept_apart(trainer.model, arrays.load(Path(spec["config"]["data"]["path"]), "validation"), bf16, device)
    return {
        **ends.speeds(trainer.tokens, trainer.supervised),
        "peak_mib": peak,
        "steps": len(ends),
        "first_loss": round(trainer.losses[0], 4),
        "last_losses": [round(loss, 4) for loss in trainer.losses[-3:]],
        "validation_loss": round(kept, 4),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
