"""A trained prompt as the server holds it: keys and values that stand before every row.

Whatever was trained (embeddings of virtual tokens, an encoder's, or keys and values themselves), a causal model makes the same keys
and values of it for every request: they are made once, and each row's cache begins with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Prefix:
    """By layer, keys and values (1, heads, tokens, size)."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def tokens(self) -> int:
        """Columns that every row's cache begins with."""
        return int(self.layers[0][0].shape[2])

    def cache(self, rows: int) -> Any:
        """A new cache of so many rows that holds the prefix."""
        from transformers import DynamicCache

        found = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            found.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return found


def of(wrapped: Any) -> Prefix:
    """The prefix of a model that PEFT has put a trained prompt upon."""
    with torch.inference_mode():
        prompt = wrapped.get_prompt(1)
        if isinstance(prompt, torch.Tensor):
            prompt = _read(wrapped.get_base_model(), prompt)
        return Prefix(tuple((layer.keys.clone(), layer.values.clone()) for layer in prompt.layers))


def begin(prefix: Prefix | None, rows: int, mask: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(cache, mask, positions) to read `rows` rows with, of which `mask` (rows, columns) says where tokens are: the mask has the
    columns of the prefix before, positions are those of the row's own columns."""
    from transformers import DynamicCache

    if prefix is None:
        return DynamicCache(), mask, (mask.cumsum(-1) - 1).clamp(min=0)
    whole = torch.cat([mask.new_ones(rows, prefix.tokens), mask], dim=1)
    return prefix.cache(rows), whole, (whole.cumsum(-1) - 1)[:, prefix.tokens :]


def _read(network: Any, embeddings: torch.Tensor) -> Any:
    """The cache after reading `embeddings` (1, tokens, hidden)."""
    from transformers import DynamicCache

    cache = DynamicCache()
    network(inputs_embeds=embeddings.to(network.get_input_embeddings().weight.dtype), past_key_values=cache, use_cache=True)
    return cache
