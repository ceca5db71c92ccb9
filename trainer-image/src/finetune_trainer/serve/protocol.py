"""OpenAI's requests: what is accepted, what is refused and how.

Invariant: a field that would change the answer and is not supported is refused by name, never ignored, also where its name is
misspelt; a field at its neutral value is accepted. What nobody knows may be a client's own tag, by which `rollout.identity` may find
the user: it passes unless something is in it that no tag has, an object or a list.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from finetune_trainer.serve.fields import IGNORED, NEUTRAL, Names

MAX_FIELDS = 1000  # each name that nobody knows is compared with all that are known, misspelt too
MAX_STOPS = 16
MAX_CHOICES = 16  # an empty queue takes as many for each slot
MAX_CHAT_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
_FINE_TUNED = re.compile(r"ft:[^:]+:[^:]*:(.*)")
_IN_MESSAGES = frozenset({"role", "content", "name", "annotations"})


class ApiError(Exception):
    """An answer in OpenAI's error form. `param` names the field that is wrong."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON document."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _parts(content: object) -> object:
    """Content as OpenAI's list of parts."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _listed(value: object) -> object:
    return [] if value is None else [value] if isinstance(value, str) else value


class Part(BaseModel):
    """A piece of a turn's text."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation. `name` and `annotations` are ignored: a chat template has no place for them."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts)]

    @property
    def text(self) -> str:
        """What the turn says."""
        return "".join(part.text for part in self.content)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, document: Any) -> Any:
        if isinstance(document, dict):
            for name in document.keys() - _IN_MESSAGES:
                if document[name]:
                    raise ValueError(f"{name} is not supported")
        return document


class StreamOptions(BaseModel):
    """Whether the last event tells the usage. `include_obfuscation` is ignored: nothing is hidden by padding here."""

    include_usage: bool | None = None


class Request(BaseModel):
    """What both endpoints share. A `temperature` below 0.00001 is greedy."""

    model_config = ConfigDict(extra="ignore")
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed)] = Field(default=[], max_length=MAX_STOPS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, document: Any) -> Any:
        if isinstance(document, dict):
            for name, value in document.items():
                if name not in cls.model_fields and name not in IGNORED:
                    _check_supported(str(name), value)
        return document

    @model_validator(mode="after")
    def _consistent(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is only allowed with stream", param="stream_options", code="invalid_value")
        return self

    @property
    def length_field(self) -> str:
        """The field that says how long the answer may be."""
        return "max_tokens"

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens are told beside each of the answer's; None: no log-probability is asked for."""
        raise NotImplementedError

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage event."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


R = TypeVar("R", bound=Request)


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_CHAT_LOGPROBS)
    add_special_tokens: Literal[False] | None = None  # the template writes them

    @model_validator(mode="after")
    def _consistent_chat(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs is only allowed with logprobs", param="top_logprobs", code="invalid_value")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ApiError(400, "max_tokens and max_completion_tokens are one: give one of them", param="max_tokens", code="invalid_value")
        return self

    @property
    def length_field(self) -> str:
        """The newer name where it is used."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def alternatives(self) -> int | None:
        """As `top_logprobs` says, if `logprobs` asks for any."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Request):
    """`POST /v1/completions`: one prompt, as text or as token ids."""

    prompt: str | list[int] | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_COMPLETION_LOGPROBS)
    add_special_tokens: Literal[True] | None = None

    @property
    def alternatives(self) -> int | None:
        """As `logprobs` says."""
        return self.logprobs


def parse(kind: type[R], document: object) -> R:
    """`document` as a request. Raises ApiError 400 that names the first wrong field."""
    if not isinstance(document, dict):
        raise ApiError(400, "the request body must be a JSON object")
    if len(document) > MAX_FIELDS:
        raise ApiError(400, f"the request body has {len(document)} fields, and may have {MAX_FIELDS}", code="too_many_fields")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        param = _param(first["loc"])
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise ApiError(400, f"{param}: {first['msg']}", param=param, code=code) from error


def check_model(asked: str, served: str, revision: str) -> None:
    """Raise ApiError 404 unless the served model is asked for: by its name, or as OpenAI names what was tuned.

    `ft:BASE:ORGANISATION:NAME`, `…:NAME:` and `…::NAME` are the model whatever its revision, `…:NAME:REVISION` is that one alone.
    BASE and ORGANISATION are not compared: the address says whose model it is."""
    found = _FINE_TUNED.fullmatch(asked)
    tuned = found[1] if found else None
    if asked != served and tuned not in (served, f"{served}:", f":{served}", f"{served}:{revision}"):
        raise ApiError(
            404, f"The model {asked!r} does not exist; this server has {served!r}.", param="model", code="model_not_found"
        )  # fmt: skip


_SERVED = ChatRequest.model_fields | CompletionRequest.model_fields
_NAMES = Names(_SERVED.keys() | NEUTRAL.keys(), (name for name, field in _SERVED.items() if not field.is_required()))


def _check_supported(name: str, value: object) -> None:
    if value is None or value in NEUTRAL.get(name, ()):
        return
    if name in NEUTRAL:
        raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    meant = _NAMES.meant(name)
    if meant or (isinstance(value, dict | list) and value):
        hint = f"; did you mean {meant}?" if meant else ""
        raise ApiError(400, f"Unrecognized request argument supplied: {name}{hint}", param=name, code="unknown_parameter")


def _param(location: tuple[int | str, ...]) -> str:
    """`messages.0.role` as OpenAI writes it: `messages[0].role`; parts that are types of a union are left out."""
    known = [part for part in location if isinstance(part, int) or part.isidentifier()]
    named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in known)
    name = named.lstrip(".") or "body"
    return "prompt" if name.startswith("prompt") else name
