"""OpenAI's requests: what is accepted, what is refused and how.

Invariant: a field that would change the answer and is not supported is refused by name, never ignored; a field at its
neutral value is accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

MAX_STOPS = 16


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


def _text(content: object) -> object:
    """Content as text: a string, or OpenAI's list of text parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise ValueError("only parts of type text are supported")
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _listed(value: object) -> object:
    return [] if value is None else [value] if isinstance(value, str) else value


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text)]


class StreamOptions(BaseModel):
    """Whether the last event tells the usage."""

    include_usage: bool = False


class Request(BaseModel):
    """What both endpoints share. A `temperature` below 0.00001 is greedy."""

    model_config = ConfigDict(extra="allow")
    NEUTRAL: ClassVar[dict[str, tuple[object, ...]]] = {
        "best_of": (1,), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,), "tools": ([],),
        "functions": ([],), "response_format": ({"type": "text"},), "suffix": ("",), "echo": (False,),
        "top_logprobs": (0,), "repetition_penalty": (1,), "min_p": (0,), "top_k": (0, -1), "logprobs": (False, 0),
    }  # fmt: skip

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=1)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed)] = Field(default=[], max_length=MAX_STOPS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, document: Any) -> Any:
        if isinstance(document, dict):
            for name, neutral in cls.NEUTRAL.items():
                value = document.get(name)
                if value is not None and value not in neutral:
                    raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported")
        return document

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage event."""
        return self.stream_options is not None and self.stream_options.include_usage


R = TypeVar("R", bound=Request)


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(Request):
    """`POST /v1/completions`: one prompt, as text or as token ids."""

    prompt: str | list[int] | Annotated[list[str], Field(min_length=1, max_length=1)]


def parse(kind: type[R], document: object) -> R:
    """`document` as a request. Raises ApiError 400 that names the first wrong field."""
    if not isinstance(document, dict):
        raise ApiError(400, "the request body must be a JSON object")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        param = _param(first["loc"])
        raise ApiError(400, f"{param}: {first['msg']}", param=param, code="invalid_value") from error


def check_model(asked: str, served: str) -> None:
    """Raise ApiError 404 unless the served model is asked for."""
    if asked != served:
        raise ApiError(
            404, f"The model {asked!r} does not exist; this server has {served!r}.", param="model", code="model_not_found"
        )  # fmt: skip


def _param(location: tuple[int | str, ...]) -> str:
    """`messages.0.role` as OpenAI writes it: `messages[0].role`; parts that are types of a union are left out."""
    known = [part for part in location if isinstance(part, int) or part.isidentifier()]
    named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in known)
    name = named.lstrip(".") or "body"
    return "prompt" if name.startswith("prompt") else name
