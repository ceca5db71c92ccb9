"""Direct preference optimisation: pairs of answers → how much more the model prefers the chosen one than the base model does.

For a pair, with log-probabilities of whole answers, π of the model and ρ of the base model:
loss = −log σ(β·((π_chosen − ρ_chosen) − (π_rejected − ρ_rejected)))    (Rafailov et al. 2023, equation 7)
The base model's are computed once, before training changes anything, so no second model is kept, whatever trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from finetune_trainer.data.preference import PairArrays
from finetune_trainer.train import objective, plan
from finetune_trainer.train.device import sent
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.objective import Reader, precision


@dataclass(frozen=True)
class ReferredPairs:
    """Pairs with the base model's log-probabilities of their answers (pairs, 2): chosen, rejected."""

    pairs: PairArrays
    reference: torch.Tensor

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each pair, both conversations together."""
        return self.pairs.lengths


@dataclass(frozen=True)
class Dpo:
    """The mean loss over pairs (nats)."""

    reader: Reader
    beta: float

    def widths(self, data: ReferredPairs) -> npt.NDArray[np.int64]:
        return data.lengths if self.reader.packs else data.pairs.widths + 2 * self.reader.virtual_tokens

    def count(self, data: ReferredPairs, rows: Sequence[int]) -> int:
        return len(rows)

    def loss(self, model: Any, data: ReferredPairs, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        policy = log_probabilities(model, data.pairs, rows, self.reader, device)
        return loss_sum(policy, sent(data.reference[list(rows)], device), self.beta)


def loss_sum(policy: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """The sum of the losses of pairs, from log-probabilities (pairs, 2): chosen, rejected."""
    gained = policy - reference
    return -functional.logsigmoid(beta * (gained[:, 0] - gained[:, 1])).sum()


def log_probabilities(model: Any, pairs: PairArrays, rows: Sequence[int], reader: Reader, device: torch.device) -> torch.Tensor:
    """Log-probabilities (rows, 2) of the supervised tokens of each chosen and rejected answer, in one pass over both."""
    answers = [answer for row in rows for answer in pairs.pair(row)]
    batch = objective.pack(answers, reader, device)
    losses = objective.token_losses(model, batch, reader)
    return -torch.zeros(len(answers), device=device).index_add(0, batch.rows, losses).view(-1, 2)


@torch.no_grad()
def refer(
    base: Any, pairs: PairArrays, reader: Reader, ranks: Ranks, pass_tokens: int, bf16: bool, beat: Callable[[], None]
) -> torch.Tensor:  # fmt: skip
    """The base model's log-probabilities (pairs, 2) of all `pairs`, computed by all ranks together."""
    found = torch.zeros(len(pairs), 2, device=ranks.device)
    base.eval()
    widths = pairs.lengths if reader.packs else pairs.widths
    every = plan.batches(range(len(pairs)), widths, pass_tokens, ranks.world_size, reader.packs)
    for rows in plan.share(every, widths, ranks.rank, ranks.world_size):
        with precision(bf16, ranks.device):
            found[list(rows)] = log_probabilities(base, pairs, rows, reader, ranks.device)
        beat()
    return ranks.sum(found).cpu()
