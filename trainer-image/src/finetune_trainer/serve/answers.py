"""OpenAI's answers: documents and stream events of both endpoints, built from plain values."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.serve.generation import Finished

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Answer:
    """One answer's identity; `chat` chooses the form."""

    chat: bool
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        """The document of an answer that is not streamed."""
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {**self._head(""), "choices": [_choice(content, finished.reason)], "usage": usage(finished)}

    def opening(self) -> bytes:
        """The first event of a chat stream; nothing for plain completions."""
        return self._event({"delta": {"role": "assistant", "content": ""}}, None) if self.chat else b""

    def piece(self, text: str) -> bytes:
        """An event with more text."""
        return self._event({"delta": {"content": text}} if self.chat else {"text": text}, None)

    def closing(self, finished: Finished, with_usage: bool) -> bytes:
        """The event with the reason of the end, the usage if asked for, and the end mark."""
        last = self._event({"delta": {}} if self.chat else {"text": ""}, finished.reason)
        if with_usage:
            last += event({**self._head(".chunk"), "choices": [], "usage": usage(finished)})
        return last + DONE

    def _event(self, content: dict[str, Any], reason: str | None) -> bytes:
        return event({**self._head(".chunk"), "choices": [_choice(content, reason)]})

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def event(document: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage(finished: Finished) -> dict[str, int]:
    """Token counts; the completion's include the one that ended it."""
    prompt, completion = finished.prompt_tokens, finished.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}
