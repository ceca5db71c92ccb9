"""How far the model as served is from the model as trained, on answers of the sealed test split.

As trained: the base in the bits that it had beside the gradients, what trained in float32 beside it, read in training's precision. As
served: what the server loads, in the server's precision. The divergence is KL(trained‖served) of the next token over the whole
vocabulary, each answer given as it is wanted.
Invariant: one network is in memory at a time, and of the first one no more than KEPT_BYTES; the same network twice diverges by 0.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from finetune_trainer import layout
from finetune_trainer.config import ComputeConfig, FidelityConfig, MethodConfig, ModelConfig, TrainingConfig
from finetune_trainer.data.encoders import RowEncoder
from finetune_trainer.evaluate.loss import encode, read
from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import JsonObject, UserError
from finetune_trainer.hardware import uses_bf16
from finetune_trainer.serve.loading import Loaded, adapted, check, context, load
from finetune_trainer.train import remainder
from finetune_trainer.train.adapters import virtual_tokens
from finetune_trainer.train.model import load_base, stored_dtype
from finetune_trainer.train.objective import can_keep_logits, precision

ROW_TOKENS = 128  # of one answer, from its beginning: many answers say more than a long one
LEAST_TOKENS = 100  # of fewer a mean says little, and what 99 % stay below nothing
MOST_TOKENS = 2048
KEPT_BYTES = 2**28  # of logits
PASS_SECONDS = 30.0  # after that no more answers are begun, if there are enough tokens
LONGEST_SECONDS = 600.0  # after that none are, however few there are
SLICE = 16  # tokens compared at once, in float64
MOST = 1e9
DIGITS = 9

Reader = Callable[["Answer"], torch.Tensor]  # → float32 logits (tokens, vocabulary), each of which predicts a token that counts


@dataclass(frozen=True)
class Answer:
    """The token ids of a test row, of which the last `tokens` are its answer's and count."""

    ids: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Made:
    """How an artifact was made, as its revision.json says."""

    method: MethodConfig
    training: TrainingConfig

    @property
    def bf16(self) -> bool:
        """Whether its passes were in bfloat16, on accelerators as there are here."""
        return uses_bf16(self.training, ComputeConfig.model_validate({"gpusPerNode": int(torch.cuda.is_available())}))


def measure(model: ModelConfig, adapter: Path | None, test: Sequence[TestRow], asked: FidelityConfig) -> JsonObject:
    """The figures of `summary` and how the two were read, of an adapter upon the folder of `model`, or of that folder where all weights
    trained. Raises UserError where one of the two cannot be had, OutOfMemory, or Infrastructure and OSError where the volume fails."""
    for folder in (model.path, *([adapter] if adapter else [])):
        check(folder)
    how = made(adapter or model.path)
    network, tokenizer = as_trained(model, adapter, how), _tokenizer(model.path)
    longest = context(network) - virtual_tokens(network)[0]
    kept = enough(remember(trained_reader(network, how.bf16), answers(tokenizer, test, longest)))
    del network
    gc.collect()
    loaded = as_served(model.path, adapter, merged=asked.merged)
    found = summary(compare(served_reader(loaded), kept))
    words = {"trained": _trained_words(how), "served": _served_words(how, loaded, merged=asked.merged)}
    return {**found, **words, "merged": asked.merged, "rounding": _rounds_alone(how, merged=asked.merged)}


def made(artifact: Path) -> Made:
    """Raises UserError where an artifact does not say how it was made."""
    try:
        told = json.loads((artifact / layout.ARTIFACT_MANIFEST).read_text())
        return Made(MethodConfig.model_validate(told["method"]), TrainingConfig.model_validate(told["training"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError("ArtifactUnknown", f"{artifact} does not say how it was trained: {error}", "Train it again.") from error


def answers(tokenizer: Any, test: Iterable[TestRow], longest: int) -> Iterator[Answer]:
    """The beginnings of the answers of those rows that fit into `longest` tokens."""
    encoder = RowEncoder(tokenizer)
    for row in test:
        with suppress(UserError):
            ids, first = encode(encoder, row, longest)
            end = min(len(ids), first + ROW_TOKENS, longest)
            yield Answer(tuple(ids[:end]), end - first)


def as_trained(model: ModelConfig, adapter: Path | None, how: Made) -> Any:
    """The network as its last validation read it. Raises UserError where weights are no longer there as they trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if adapter is None:
        network = load_base(model, False, device)
        remainder.add(network, model.path)
        return network.eval()
    base = load_base(model, how.bf16, device, how.method.quantized_as)
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=False).eval()


def as_served(model: Path, adapter: Path | None, *, merged: bool) -> Loaded:
    """What the server loads: the adapter `merged`, or as vLLM has it, in the server's precision beside weights that are not quantised."""
    if merged:
        return load(model, adapter)
    loaded = load(model, None, dtype=vllm_dtype(model))
    if adapter is None:
        return loaded
    return replace(loaded, model=adapted(loaded.model, adapter, quantized=False).to(dtype=loaded.model.dtype).eval())


def vllm_dtype(model: Path) -> torch.dtype | None:
    """What vLLM, which is told of none, computes in: the 16 bits in which the weights are stored, else (None) what any server would."""
    stored = stored_dtype(model)
    return stored if stored in (torch.float16, torch.bfloat16) else None


def trained_reader(network: Any, bf16: bool) -> Reader:
    """Reads one row after another, as training does."""

    @torch.inference_mode()
    def logits(answer: Answer) -> torch.Tensor:
        ids = torch.tensor([answer.ids], device=network.device)
        with precision(bf16, ids.device):
            found = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **_kept(network, answer)).logits
        return _last(found, answer)

    return logits


def served_reader(loaded: Loaded) -> Reader:
    """Reads one row after another, as the server does."""
    return lambda answer: _last(read(loaded, [answer.ids], **_kept(loaded.model, answer)), answer)


def remember(
    logits: Reader, every: Iterable[Answer], clock: Callable[[], float] = time.monotonic
) -> list[tuple[Answer, torch.Tensor]]:  # fmt: skip
    """The answers with their logits on the CPU, of as many as time, MOST_TOKENS and KEPT_BYTES allow: a slow machine reads LEAST_TOKENS
    all the same, for up to LONGEST_SECONDS."""
    kept: list[tuple[Answer, torch.Tensor]] = []
    begun, tokens, room = clock(), 0, MOST_TOKENS
    for answer in every:
        allowed = PASS_SECONDS if tokens >= LEAST_TOKENS else LONGEST_SECONDS
        if tokens >= room or (kept and clock() - begun > allowed):
            break
        found = logits(answer).cpu()
        room = max(1, min(MOST_TOKENS, KEPT_BYTES // found[0].nbytes))
        kept.append(_cut(answer, found, room - tokens))
        tokens += kept[-1][0].tokens
    return kept


def enough(kept: list[tuple[Answer, torch.Tensor]]) -> list[tuple[Answer, torch.Tensor]]:
    """The same. Raises UserError where they have fewer than LEAST_TOKENS."""
    tokens = sum(answer.tokens for answer, _ in kept)
    if tokens < LEAST_TOKENS:
        found = f"the answers of the test split that were read have {tokens} tokens, and a mean of fewer than {LEAST_TOKENS} says little"
        raise UserError("TooFewTokens", found, f"Give the test split more rows; a slow machine reads for {LONGEST_SECONDS:g} s.")
    return kept


def compare(logits: Reader, kept: Sequence[tuple[Answer, torch.Tensor]]) -> list[torch.Tensor]:
    """By answer (tokens, 2): KL(kept‖read) in nats, and 1 where another token is the likeliest."""
    found: list[torch.Tensor] = []
    for answer, known in kept:
        read_now = logits(answer)
        pairs = zip(torch.split(known, SLICE), torch.split(read_now, SLICE), strict=True)
        found.append(torch.cat([_diverges(one.to(other.device), other).cpu() for one, other in pairs]))
    return found


def summary(found: Sequence[torch.Tensor]) -> JsonObject:
    """`{kl, klP99, klMax, differs, tokens, rows}`: the mean, what 99 % of the tokens stay below, the largest, and the share of tokens of
    which another one is likeliest. Raises UserError where there is nothing to compare, or a likelihood is no number."""
    if not found:
        raise UserError("NoAnswers", "no answer of the test split fits into the model's context")
    divergence, differs = torch.cat(list(found)).unbind(-1)
    if not bool(divergence.isfinite().all()):
        raise UserError("NotFinite", "the likelihood of an answer's token is no number")
    worst = divergence.quantile(0.99), divergence.max()
    return {
        **{name: _rounded(float(value)) for name, value in zip(("kl", "klP99", "klMax"), (divergence.mean(), *worst), strict=True)},
        "differs": _rounded(float(differs.mean())),
        "tokens": len(divergence),
        "rows": len(found),
    }


def _kept(network: Any, answer: Answer) -> dict[str, int]:
    """What has a network compute the logits of an answer alone, if it can."""
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    return {"logits_to_keep": answer.tokens + 1} if can_keep_logits(base) else {}


def _last(logits: torch.Tensor, answer: Answer) -> torch.Tensor:
    return logits[0, -answer.tokens - 1 : -1].float()


def _cut(answer: Answer, logits: torch.Tensor, room: int) -> tuple[Answer, torch.Tensor]:
    """An answer with no more than `room` of its first tokens."""
    less = max(0, answer.tokens - room)
    return (Answer(answer.ids[:-less], answer.tokens - less), logits[:-less].clone()) if less else (answer, logits)


def _diverges(trained: torch.Tensor, served: torch.Tensor) -> torch.Tensor:
    before, after = trained.double().log_softmax(-1), served.double().log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1).clamp(min=0)
    return torch.stack([divergence, (trained.argmax(-1) != served.argmax(-1)).double()], dim=-1)


def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)


def _rounds_alone(how: Made, *, merged: bool) -> bool:
    """Was nothing quantised that is served as it was? Int8 quantises what it multiplies, too, which no server does."""
    return how.method.quantized_as is None or (merged and how.method.quantized_as != "Int8")


def _trained_words(how: Made) -> str:
    passes = f"read in {_named(torch.bfloat16 if how.bf16 else torch.float32)}"
    if how.method.type == "Full":
        return f"all weights in float32, {passes}"
    base = f"a base quantised as {how.method.quantized_as}" if how.method.quantized_as else "the base"
    return f"{how.method.type} in float32 beside {base}, {passes}"


def _served_words(how: Made, loaded: Loaded, *, merged: bool) -> str:
    dtype = _named(loaded.model.dtype)
    if how.method.type == "Full":
        return f"all weights in {dtype}"
    if loaded.prefix is not None:
        return f"{how.method.type} as keys and values in {dtype}"
    if not merged:
        return f"the adapter beside the base as it was, all in {dtype}"
    base = f"what quantisation as {how.method.quantized_as} left of the base" if how.method.quantized_as else "the base"
    return f"the adapter merged into {base}, in {dtype}"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(value: float) -> float:
    return round(min(MOST, value), DIGITS)
