"""The trainer against plain torch: all logits of one row at a time, torch's cross-entropy, clipping and AdamW."""

from __future__ import annotations

from pathlib import Path

import torch
from finetune_trainer.data import arrays
from finetune_trainer.train import optimizer
from finetune_trainer.train.model import trained
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.numerics.conftest import Measured
from tests.numerics.subjects import configured, farthest, relative
from tests.trainer import lives


def test_losses_and_weights_are_plain_torchs(work: Path, plain_model: Path, tmp_path: Path, measured: Measured) -> None:
    ours = lives.train(
        configured(work, plain_model, "Full", training__evaluateEverySteps=10_000, training__weightDecay=0.1, training__warmupPercent=20),
        tmp_path,
    )  # fmt: skip
    settings, plan, data = ours.run.training, ours.run.steps, arrays.load(work / "data" / "SFT", "train")
    assert settings.weight_decay == 0.1
    model = AutoModelForCausalLM.from_pretrained(work / "models" / "tiny", dtype=torch.float32)
    norms = [value for name, value in model.named_parameters() if "norm" in name]
    others = [value for name, value in model.named_parameters() if "norm" not in name]
    assert len(norms) == 5
    adam = torch.optim.AdamW([{"params": others}, {"params": norms, "weight_decay": 0}], weight_decay=settings.weight_decay)
    losses = []
    for step in range(plan.total_steps):
        for group in adam.param_groups:
            group["lr"] = optimizer.learning_rate(step, plan.total_steps, settings)
        total, count = torch.zeros(()), 0
        for row in plan.rows(step):
            ids, mask = (torch.from_numpy(values.copy()) for values in data.row(row))
            targets = torch.where(mask, ids.long(), -100)[1:]
            total = total + functional.cross_entropy(model(ids.long()[None]).logits[0, :-1], targets, reduction="sum")
            count += int((targets != -100).sum())
        loss = total / count
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        adam.step()
        losses.append(loss.item())
    measured("SFT Full: loss of each step, plain torch (relative)", relative(list(ours.losses.values()), losses), 1e-4)
    apart = farthest(trained(ours.run.model), dict(model.named_parameters())) / settings.learning_rate
    measured("SFT Full: weights at the end, plain torch (learning rates)", apart, 0.1)
