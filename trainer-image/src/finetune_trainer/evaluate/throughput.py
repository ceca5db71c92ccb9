"""How fast a server answered the test rows: what its throughput is known by before any user comes.

Time runs while at least one question is open, from the first of a pod's questions to its last answer; of an evaluation that was interrupted
the pods' times are summed. It holds what a server needs to warm up and the end, when fewer questions are open.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic.alias_generators import to_camel

from finetune_trainer.config import ServerConfig
from finetune_trainer.evaluate.client import Reply
from finetune_trainer.exits import JsonObject


@dataclass(frozen=True)
class Answering:
    """`rows` were answered in so many seconds, with at most `concurrency` open at once; tokens are all prompts' and all answers'. The
    rest says of what server; `runtime` is None where nobody told."""

    rows: int
    seconds: float
    input_tokens: int
    output_tokens: int
    concurrency: int
    accelerator: str | None = None
    accelerators: int | None = None
    runtime: str | None = None

    def told(self) -> JsonObject:
        """As the result says it (docs/contracts.md)."""
        return {to_camel(name): value for name, value in asdict(self).items() if value is not None}

    def of(self, server: ServerConfig | None) -> bool:
        """Was it such a server?"""
        return (self.accelerator, self.accelerators, self.runtime) == _server(server)


def measured(replies: Collection[Reply], concurrency: int, server: ServerConfig | None = None) -> Answering | None:
    """None where nothing was answered, or where the server does not count tokens."""
    answered = [reply for reply in replies if reply.answer is not None]
    counted = [(r.input_tokens, r.output_tokens) for r in answered if r.input_tokens is not None and r.output_tokens is not None]
    prompts, answers = sum(pair[0] for pair in counted), sum(pair[1] for pair in counted)
    seconds = round(sum(reply.seconds for reply in replies), 3)
    if len(counted) < len(answered) or not (prompts and answers and seconds):
        return None
    return Answering(len(answered), seconds, prompts, answers, concurrency, *_server(server))


def _server(server: ServerConfig | None) -> tuple[str | None, int | None, str | None]:
    return (server.accelerator, server.accelerators, server.runtime) if server else (None, None, None)


def read(result: JsonObject) -> Answering | None:
    """What an evaluation's result says of it, as far as this trainer knows it: a newer one may have written more."""
    told: Any = result.get("answering")
    return Answering(**{f.name: told[to_camel(f.name)] for f in fields(Answering) if to_camel(f.name) in told}) if told else None
