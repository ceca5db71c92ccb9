"""OpenAI's answers: documents and stream events of both endpoints, built from plain values."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.serve.generation import Finished, Piece
from finetune_trainer.serve.logprobs import Spelled, TokenLogprob

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Choice:
    """A finished one, its tokens where they were asked for."""

    text: str
    tokens: Sequence[TokenLogprob]
    finished: Finished


@dataclass(frozen=True)
class Answer:
    """One answer's identity; `chat` chooses the form, `fingerprint` names what serves, `logprobs` and `usage` (of a stream) say
    what was asked for."""

    chat: bool
    model: str
    fingerprint: str | None = None
    logprobs: bool = False
    usage: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The document of an answer that is not streamed."""
        told = [self._choice(i, self._content(c.text), c.tokens, c.finished.reason) for i, c in enumerate(choices)]
        return {**self._head(""), "choices": told, "usage": usage([c.finished for c in choices])}

    def opening(self, index: int) -> bytes:
        """The first event of a chat stream's choice; nothing for plain completions."""
        return self._event(index, {"delta": {"role": "assistant", "content": ""}}, (), None) if self.chat else b""

    def piece(self, index: int, piece: Piece) -> bytes:
        """An event with more text."""
        return self._event(index, {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}, piece.tokens, None)

    def end(self, index: int, finished: Finished) -> bytes:
        """The event with the reason of a choice's end."""
        return self._event(index, {"delta": {}} if self.chat else {"text": ""}, (), finished.reason)

    def closing(self, finished: Sequence[Finished]) -> bytes:
        """The usage if asked for, and the end mark."""
        used = event({**self._head(".chunk"), "choices": [], "usage": usage(finished)}) if self.usage else b""
        return used + DONE

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}

    def _event(self, index: int, content: dict[str, Any], tokens: Sequence[TokenLogprob], reason: str | None) -> bytes:
        counted = {"usage": None} if self.usage else {}
        return event({**self._head(".chunk"), "choices": [self._choice(index, content, tokens or None, reason)], **counted})

    def _choice(
        self, index: int, content: dict[str, Any], tokens: Sequence[TokenLogprob] | None, reason: str | None
    ) -> dict[str, Any]:  # fmt: skip
        form = chat_logprobs if self.chat else completion_logprobs
        told = form(tokens) if self.logprobs and tokens is not None else None
        return {"index": index, **content, "logprobs": told, "finish_reason": reason}

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint,
        }  # fmt: skip


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    content = [{**_entry(t.spelled, t.logprob), "top_logprobs": [_entry(*other) for other in t.others]} for t in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a completion's choice; `top_logprobs` always has the token itself too."""
    return {
        "tokens": [t.spelled.text for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{**{other.text: logprob for other, logprob in t.others}, t.spelled.text: t.logprob} for t in tokens],
        "text_offset": [t.offset for t in tokens],
    }


def event(document: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage(finished: Sequence[Finished]) -> dict[str, int]:
    """Token counts over all choices of one prompt; the completion's include those that ended them."""
    prompt, completion = finished[0].prompt_tokens, sum(each.completion_tokens for each in finished)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _entry(spelled: Spelled, logprob: float) -> dict[str, Any]:
    return {"token": spelled.text, "logprob": logprob, "bytes": None if spelled.bytes is None else list(spelled.bytes)}
