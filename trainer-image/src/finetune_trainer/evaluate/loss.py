"""Metric Loss: bits per byte of the reference answers, computed in-process, so that models with different tokenizers
compare.

For one row: the negative log2-likelihood of the reference turn's tokens (with the token that ends the turn), given the
conversation before it, divided by the UTF-8 bytes of the reference. The score is its negative: larger is better. Of a
plain text all tokens count that another comes before; a long one is read in pieces, each for itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetune_trainer.data.encoders import RowEncoder
from finetune_trainer.data.formats import TEXT, Row, RowError, content_digest
from finetune_trainer.evaluate.rows import ScoredRow, TestRow
from finetune_trainer.exits import UserError
from finetune_trainer.serve.loading import Loaded
from finetune_trainer.serve.prefix import begin

BATCH_TOKENS = 4096  # padded tokens read at once
MAX_ROWS = 16


def loss_rows(loaded: Loaded, rows: Sequence[TestRow], done: Callable[[int], None]) -> list[ScoredRow]:
    """Every row with its score; `done` is told how many are finished. Raises UserError for an unusable template."""
    encoder = RowEncoder(loaded.tokenizer)
    pieces = [(row, *piece) for row, one in enumerate(rows) for piece in _pieces(encoder, one, loaded.max_model_len)]
    left = Counter(row for row, _, _ in pieces)
    bits = [0.0] * len(rows)
    order = sorted(range(len(pieces)), key=lambda index: len(pieces[index][1]))
    for batch in batches(order, [len(ids) for _, ids, _ in pieces], BATCH_TOKENS):
        logits = read(loaded, [pieces[index][1] for index in batch])
        for (row, ids, first), of_piece in zip([pieces[index] for index in batch], logits, strict=True):
            bits[row] += _row_bits(of_piece, ids, first)
            left[row] -= 1
        done(len(rows) - sum(count > 0 for count in left.values()))
    return [ScoredRow(row.id, None, {"Loss": -bits[index] / max(1, len(row.reference.encode()))}) for index, row in enumerate(rows)]


def loss_dtype() -> torch.dtype | None:
    """float32 on a CPU, where rows are few and differences small; else what serving uses (None)."""
    return None if torch.cuda.is_available() else torch.float32


def encode(encoder: RowEncoder, row: TestRow, longest: int) -> tuple[list[int], int]:
    """Token ids up to the end of the reference turn, and where it begins; of a plain text all of them, however many, and where those
    begin that count. Raises UserError."""
    messages = (*row.messages, {"role": TEXT if row.plain else "assistant", "content": row.reference})
    try:
        encoded = encoder.encode(Row("test", 0, messages, content_digest(messages)))
    except RowError as error:
        raise UserError("TestRowInvalid", f"test row {row.id}: {error}") from error
    if row.plain:
        return list(encoded.ids), max(1, encoded.mask.index(True))
    last = max(index for index, supervised in enumerate(encoded.mask) if supervised)
    first = last
    while first > 0 and encoded.mask[first - 1]:
        first -= 1
    ids = list(encoded.ids[: last + 1])
    if first == 0 or len(ids) > longest:
        raise UserError("TestRowInvalid", f"test row {row.id}: {len(ids)} tokens do not fit into {longest}")
    return ids, first


def _pieces(encoder: RowEncoder, row: TestRow, longest: int) -> list[tuple[list[int], int]]:
    """What `encode` gives; of a plain text in pieces that are read at once, the first token of each of which counts for nothing."""
    ids, first = encode(encoder, row, longest)
    if not row.plain:
        return [(ids, first)]
    most = min(longest, BATCH_TOKENS)
    cut = [(ids[start : start + most], 1 if start else first) for start in range(0, len(ids), most)]
    return [(piece, begin) for piece, begin in cut if len(piece) > begin]


def batches(order: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """`order` in groups of at most so many padded tokens; a row that is longer is alone."""
    groups: list[list[int]] = []
    for index in order:
        longest = max(lengths[i] for i in (*(groups[-1] if groups else ()), index))
        if groups and len(groups[-1]) < MAX_ROWS and longest * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@torch.inference_mode()
def read(loaded: Loaded, rows: Sequence[Sequence[int]], **told: Any) -> torch.Tensor:
    """Logits (rows, columns, vocabulary) of rows of token ids, padded on the right, where a causal model does not look. The model is
    `told` what else its forward takes."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for index, ids in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids)
        mask[index, : len(ids)] = 1
    cache, mask, positions = begin(loaded.prefix, len(rows), mask.to(loaded.device))
    output: Any = loaded.model(
        input_ids=tokens.to(loaded.device), attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **told
    )
    logits: torch.Tensor = output.logits
    return logits


def _row_bits(logits: torch.Tensor, ids: list[int], first: int) -> float:
    """Bits of ids[first:], from logits (columns, vocabulary) of one row."""
    targets = torch.tensor(ids[first:], device=logits.device)
    nats = torch.nn.functional.cross_entropy(logits[first - 1 : len(ids) - 1].float(), targets, reduction="sum")
    return float(nats) / math.log(2)
