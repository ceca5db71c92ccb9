"""How much a tuned model has forgotten: general text, before and after.

Perplexity is e to the mean negative log-likelihood of a token; forgetting is its rise in percent. The divergence is KL(base‖tuned) of the
next token, over the base model's likeliest tokens and all others taken as one: never more than the whole divergence, and equal to it
where a vocabulary has no more tokens than that. So a few megabytes are kept of the base model, and one model is in memory at a time:
the order is base first, then the same network with the adapter upon it, or, where all weights were trained, the other model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.evaluate import general
from finetune_trainer.evaluate.general import Text
from finetune_trainer.evaluate.loss import batches, read
from finetune_trainer.evaluate.statistics import Interval, ratio
from finetune_trainer.exits import JsonObject, UserError
from finetune_trainer.serve.loading import Loaded

LIKELIEST = 1024  # tokens whose chances are kept
BATCH_TOKENS = 512  # padded, at once: the logits of a large vocabulary are what takes memory here
LEAST_TEXTS = 20  # of fewer a bootstrap's interval is too narrow for its name
PASS_SECONDS = 30.0  # after that no more texts are begun: what was read by then is compared
MOST = 1e9  # a rise in percent, or a perplexity, is not told more exactly beyond this
DIGITS = 6


@dataclass(frozen=True)
class Said:
    """What a model gives each of n tokens: the negative log-likelihood in nats (n), the `top` ids (n, k) that it finds likeliest with
    their log-probabilities (n, k), and that of all others together (n; minus infinity where there are none)."""

    nats: torch.Tensor
    top: torch.Tensor
    likely: torch.Tensor
    rest: torch.Tensor


@dataclass(frozen=True)
class Compared:
    """One text before and after: nats of all its tokens, divergence in nats by token, and of how many the likeliest token is the same."""

    text: Text
    base: float
    tuned: float
    divergence: tuple[float, ...]
    agreed: int


def remember(base: Loaded, texts: Sequence[Text], clock: Callable[[], float] = time.monotonic) -> list[Said]:
    """What `base` says of the texts, of as many as its time allows, in their order."""
    said: list[Said] = []
    begun = clock()
    for batch in batches(range(len(texts)), [len(text.ids) for text in texts], BATCH_TOKENS):
        if said and clock() - begun > PASS_SECONDS:
            break
        for index, logits in zip(batch, _logits(base, [texts[index] for index in batch]), strict=True):
            said.append(_said(logits, _targets(texts[index], logits)))
    return said


def compare(tuned: Loaded, texts: Sequence[Text], said: Sequence[Said]) -> list[Compared]:
    """The texts of which the base model `said` something, read by the tuned one."""
    found: list[Compared] = []
    texts = texts[: len(said)]
    for batch in batches(range(len(texts)), [len(text.ids) for text in texts], BATCH_TOKENS):
        for index, logits in zip(batch, _logits(tuned, [texts[index] for index in batch]), strict=True):
            found.append(_compared(texts[index], said[index], logits))
    return found


def summary(found: Sequence[Compared], confidence_percent: float) -> JsonObject:
    """`{percent, low, high, texts, tokens, base, tuned, kl, klP95, agreement, prompts, kinds}`; intervals are of a bootstrap over texts,
    `kinds` has the same figures of each kind of text. Raises UserError where a likelihood is no number, or of too few texts."""
    if not all(math.isfinite(value) for text in found for value in (text.base, text.tuned, *text.divergence)):
        raise UserError("NotFinite", "the likelihood of general text is no number")
    if len(found) < LEAST_TEXTS:
        why = f"{len(found)} general texts were read in the time, of those that the model's context has room for: too few to tell"
        raise UserError("TooFewTexts", why, "More compute.cpu, or an accelerator, reads more of them.")
    of_kind = {
        kind: [one for one in found if one.text.kind == kind] for kind in general.kinds([one.text for one in found])
    }  # fmt: skip
    return {
        **_figures(found, confidence_percent),
        "prompts": general.digest([one.text.name for one in found]),
        "kinds": {kind: _figures(those, confidence_percent) for kind, those in of_kind.items()},
    }


def _figures(found: Sequence[Compared], confidence_percent: float) -> dict[str, Any]:
    tokens = [float(one.text.tokens) for one in found]
    divergence = torch.tensor([value for one in found for value in one.divergence], dtype=torch.float64)
    rise = _ratio([one.tuned - one.base for one in found], tokens, confidence_percent)
    return {
        **{name: _rounded(_percent(value)) for name, value in (("percent", rise.mean), ("low", rise.low), ("high", rise.high))},
        "texts": len(found),
        "tokens": int(sum(tokens)),
        "base": _perplexity(_ratio([one.base for one in found], tokens, confidence_percent)),
        "tuned": _perplexity(_ratio([one.tuned for one in found], tokens, confidence_percent)),
        "kl": _rounded(float(divergence.mean())),
        "klP95": _rounded(float(divergence.quantile(0.95))),
        "agreement": _rounded(sum(one.agreed for one in found) / sum(tokens)),
    }


def _ratio(values: Sequence[float], tokens: Sequence[float], confidence_percent: float) -> Interval:
    interval = ratio(values, tokens, confidence_percent)
    if interval is None:
        raise UserError("NoGeneralText", "no general text fits into the model's context")
    return interval


def _percent(nats: float) -> float:
    """The relative rise of perplexity, in percent, of so many more nats a token."""
    return min(MOST, 100 * math.expm1(min(nats, 100.0)))


def _perplexity(nats: Interval) -> JsonObject:
    low, middle, high = (_rounded(min(MOST, math.exp(min(value, 100.0)))) for value in (nats.low, nats.mean, nats.high))
    return {"perplexity": middle, "low": low, "high": high}


def _logits(loaded: Loaded, texts: Sequence[Text]) -> list[torch.Tensor]:
    """By text, the logits (tokens, vocabulary) of the tokens that count."""
    logits = read(loaded, [text.ids for text in texts])
    return [logits[index, text.first - 1 : len(text.ids) - 1].float() for index, text in enumerate(texts)]


def _targets(text: Text, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(text.ids[text.first :], device=like.device)


def _said(logits: torch.Tensor, targets: torch.Tensor) -> Said:
    chances = logits.log_softmax(-1)
    likely, top = chances.topk(min(LIKELIEST, chances.shape[-1]))
    return Said(_nats(chances, targets), top.int().cpu(), likely.cpu(), _rest(chances, top).cpu())


def _compared(text: Text, base: Said, logits: torch.Tensor) -> Compared:
    chances = logits.log_softmax(-1)
    top = base.top.long().to(chances.device)
    likely, rest = chances.gather(-1, top).cpu(), _rest(chances, top).cpu()
    others = torch.where(base.rest.isinf(), 0.0, base.rest.exp() * (base.rest - rest))
    divergence = ((base.likely.exp() * (base.likely - likely)).sum(-1) + others).clamp(min=0)
    return Compared(
        text, float(base.nats.double().sum()), float(_nats(chances, _targets(text, chances)).double().sum()), tuple(divergence.tolist()),
        int((likely[:, 0] >= chances.max(-1).values.cpu()).sum()),
    )  # fmt: skip


def _nats(chances: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -chances.gather(-1, targets[:, None])[:, 0].cpu()


def _rest(chances: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """The log-probability of all tokens but the `top` ones."""
    return chances.scatter(-1, top, -math.inf).logsumexp(-1)


def _rounded(value: float) -> float:
    return round(value, DIGITS)
