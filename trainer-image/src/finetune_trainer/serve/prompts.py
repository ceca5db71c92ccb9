"""Requests to token ids and sampling settings, within the model's length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from finetune_trainer.data.templates import RENDERING
from finetune_trainer.serve.generation import Sampling
from finetune_trainer.serve.protocol import ApiError, ChatRequest, CompletionRequest, Request

COMPLETION_DEFAULT_TOKENS = 16  # OpenAI's default of the older endpoint
ROLES = {"developer": "system"}  # the same in newer words, which templates do not know
GREEDY_BELOW = 1e-5  # logits divided by less overflow float32


@dataclass(frozen=True)
class Limits:
    """Longest sequence, and the answer's length when none is asked for (tokens)."""

    max_model_len: int
    max_new_tokens: int


def chat_prompt(tokenizer: Any, request: ChatRequest) -> list[int]:
    """The conversation through the model's chat template, ready for the assistant's turn. Raises ApiError."""
    if not tokenizer.chat_template:
        raise ApiError(400, "this model has no chat template; use /v1/completions", param="messages")
    messages = [{"role": ROLES.get(m.role, m.role), "content": m.text} for m in request.messages]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **RENDERING)
    except TemplateError as error:
        raise ApiError(400, f"messages: the model's chat template refuses them: {error}", param="messages") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def completion_prompt(tokenizer: Any, request: CompletionRequest) -> list[int]:
    """The prompt's token ids. Raises ApiError for ids outside the vocabulary."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    first = prompt[0] if prompt else None
    if isinstance(first, str):
        return list(tokenizer(first)["input_ids"])
    ids = [int(token) for token in prompt]
    if any(not 0 <= token < len(tokenizer) for token in ids):
        raise ApiError(400, "prompt: a token id is outside the vocabulary", param="prompt", code="invalid_value")
    return ids


def sampling(request: Request, prompt_tokens: int, limits: Limits) -> Sampling:
    """How to generate. Raises ApiError where prompt and answer do not fit into the model."""
    room = limits.max_model_len - prompt_tokens
    field = "messages" if isinstance(request, ChatRequest) else "prompt"
    if prompt_tokens == 0:
        raise ApiError(400, f"{field}: the prompt is empty", param=field, code="invalid_value")
    if room < 1:
        raise ApiError(
            400, f"{field}: {prompt_tokens} tokens leave no room in a context of {limits.max_model_len}", param=field,
            code="context_length_exceeded",
        )  # fmt: skip
    name = request.length_field
    asked: int | None = getattr(request, name)
    if asked is not None and asked > room:
        raise ApiError(
            400, f"{name}: {prompt_tokens} prompt tokens and {asked} new ones exceed the context of {limits.max_model_len}",
            param=name, code="context_length_exceeded",
        )  # fmt: skip
    default = limits.max_new_tokens if isinstance(request, ChatRequest) else COMPLETION_DEFAULT_TOKENS
    return Sampling(
        max_tokens=asked or min(default, room),
        temperature=_temperature(request.temperature),
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed, stop=tuple(request.stop), ignore_end=bool(request.ignore_eos),
        logprobs=request.alternatives,
    )  # fmt: skip


def _temperature(asked: float | None) -> float:
    """OpenAI's default where none is asked for; 0, which is greedy, for what is too low to divide by."""
    if asked is None:
        return 1.0
    return asked if asked >= GREEDY_BELOW else 0.0
