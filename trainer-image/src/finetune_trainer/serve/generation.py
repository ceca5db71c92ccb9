"""One request's generation, from tokens in to pieces of text out, and how a token is chosen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from finetune_trainer.serve.logprobs import Scores, Speller, TokenLogprob
from finetune_trainer.serve.text import Detokenizer, StopStrings


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `seed` None draws from the system. `logprobs` asks for every token's
    log-probability and for so many others that might have been in its place; None asks for neither."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    logprobs: int | None = None

    def drawn_apart(self, index: int) -> Sampling:
        """For one of several answers: of a seed each makes another."""
        return self if self.seed is None else replace(self, seed=self.seed + index)


@dataclass(frozen=True)
class Piece:
    """Some more text of the answer, and the tokens that end in it where they were asked for."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer: `reason` is `stop` or `length`; times are seconds of the monotonic clock."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    submitted: float
    first_token: float
    last_token: float


@dataclass(frozen=True)
class Failed:
    """The answer cannot be given; the message is for the log and the user."""

    message: str


Event = Piece | Finished | Failed


@dataclass(eq=False)
class Generation:
    """A request in the engine. `emit` is called from the engine's thread; `cancelled` may be set from any."""

    prompt: list[int]
    sampling: Sampling
    emit: Callable[[Event], None]
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    tokens: int = 0
    first_token: float = 0.0
    last: int = 0

    def begin(self, tokenizer: Any, speller: Speller, end_ids: frozenset[int]) -> None:
        """Make ready to take tokens (in the engine's thread)."""
        self._text, self._stops = Detokenizer(tokenizer), StopStrings(self.sampling.stop)
        self._end_ids = frozenset() if self.sampling.ignore_end else end_ids
        self._random = _generator(self.sampling)
        self._scores = None if self.sampling.logprobs is None else Scores(speller, self.sampling.logprobs)
        self._decoded = self._given = 0  # characters: of all tokens, of the pieces

    def take(self, token: int, logits: torch.Tensor) -> bool:
        """Add the next token, chosen from `logits` (float32, vocabulary), give out its text; whether the answer ends with it."""
        now = time.monotonic()
        self.first_token = self.first_token or now
        self.tokens, self.last = self.tokens + 1, token
        if token in self._end_ids:
            return self._finish("stop", now, "")
        text = self._text.add(token)
        if self._scores is not None:
            self._scores.add(token, logits, self._decoded, text)
        self._decoded += len(text)
        piece = self._stops.add(text)
        if self._stops.hit:
            return self._finish("stop", now, piece)
        if self.tokens >= self.sampling.max_tokens:
            return self._finish("length", now, piece)
        self._give(piece)
        return False

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from this row's logits (float32, vocabulary)."""
        if self.sampling.temperature <= 0:
            return int(logits.argmax())
        return sample(logits, self.sampling.temperature, self.sampling.top_p, self._random)

    def fail(self, message: str) -> None:
        """Tell the request that it failed."""
        self.emit(Failed(message))

    def _finish(self, reason: str, now: float, piece: str) -> bool:
        tail = piece
        if not self._stops.hit:
            tail += self._stops.add(self._text.rest())
            reason = "stop" if self._stops.hit else reason
            tail += self._stops.rest()
        self._give(tail, ended=not self._stops.hit)
        self.emit(Finished(reason, len(self.prompt), self.tokens, self.submitted, self.first_token, now))
        return True

    def _give(self, piece: str, *, ended: bool = False) -> None:
        """Emit more text with the tokens that begin in it; with all that are left where the answer `ended`."""
        self._given += len(piece)
        tokens = () if self._scores is None else self._scores.before(None if ended else self._given)
        if piece or tokens:
            self.emit(Piece(piece, tokens))


def sample(logits: torch.Tensor, temperature: float, top_p: float, random: torch.Generator | None) -> int:
    """Draw a token from softmax(logits / temperature) restricted to the smallest set of mass `top_p`."""
    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)  # of equal ones the first, as argmax takes it
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=random)])
    return int(torch.multinomial(probabilities, 1, generator=random))


def _generator(sampling: Sampling) -> torch.Generator | None:
    if sampling.temperature <= 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed & 0x7FFFFFFFFFFFFFFF)
    return generator
