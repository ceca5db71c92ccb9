"""Raw rows of any format → conversations, and plain texts.

Invariant: a row either becomes a conversation that ends with a non-empty assistant turn, or a text that is not empty, or an error in words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from finetune_trainer.data.reading import RawRow
from finetune_trainer.exits import UserError
from finetune_trainer.methods import PREFERENCE

FIELDS = {
    PREFERENCE: ("chosen", "rejected"),
    "Messages": ("messages",),
    "PromptCompletion": ("prompt", "completion"),
    "InstructionInputOutput": ("instruction", "output"),
    "InputOutput": ("input", "output"),
    "Text": ("text",),
}  # what each format must have, the first that fits wins; a text has no field of the others
OTHERS = frozenset(field for name, fields in FIELDS.items() if name != "Text" for field in fields)
TEXT = "text"  # the role of a plain text, which is in no conversation
VISIBLE = re.compile("[^\\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
ROLES = ("system", "user", "assistant")
KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
SHOWN = 60  # characters of a word of the user's own
Message = dict[str, str]


class RowError(Exception):
    """Why one row cannot be used; the text is shown to the user beside the row number."""


@dataclass(frozen=True)
class Row:
    """One conversation with where it came from; `digest` identifies its content (sha256, hex). Where answers are compared, `messages`
    ends with the preferred one, and `rejected` is the conversation with the other. A plain text is one message of the role TEXT.
    `schema` is the JSON schema of the answer that the row brings, as text; it is no part of the content."""

    source: str
    row: int
    messages: tuple[Message, ...]
    digest: str
    rejected: tuple[Message, ...] = ()
    schema: str = ""

    @property
    def response(self) -> str:
        """The last assistant turn, or all of a plain text."""
        return self.messages[-1]["content"]

    @property
    def plain(self) -> bool:
        """Whether it is a plain text."""
        return any(message["role"] == TEXT for message in self.messages[:1])

    @property
    def learnt(self) -> str:
        """What is learnt of it, in words."""
        return "field text" if self.plain else "the answer"


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why."""

    source: str
    row: int
    reason: str


def detect(name: str, rows: Iterable[RawRow]) -> str:
    """The format most of `rows` (a file's first) look like. Raises UserError if none is recognised."""
    votes: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    broken = ""
    for raw in rows:
        if isinstance(raw.value, dict):
            keys.update(map(str, raw.value))
            votes.update([shape] if (shape := shape_of(raw.value)) else [])
        broken = broken or (f"; row {raw.row}: {raw.error}" if raw.error else "")
    if not keys:
        raise UserError(
            "FormatUnknown", f"{name}: none of the first rows is a JSON object{broken}", "Write one JSON object a line, in UTF-8."
        )
    if not votes:
        seen = ", ".join(_short(key) for key, _ in keys.most_common(8))
        raise UserError(
            "FormatUnknown",
            f"{name}: no known format (fields found: {seen}{broken})",
            "Use messages, prompt+completion, instruction(+input)+output, input+output, prompt+chosen+rejected, or text alone.",
        )
    return votes.most_common(1)[0][0]


def shape_of(value: dict[str, object]) -> str:
    """The format whose fields `value` has, or ''."""
    shape = next((name for name, fields in FIELDS.items() if all(field in value for field in fields)), "")
    return "" if shape == "Text" and not OTHERS.isdisjoint(value) else shape


def convert(raw: RawRow, wanted: str) -> Row:
    """The conversation (or plain text) of a raw row, of a pair both; what identifies a pair is its prompt and its chosen answer. Raises
    RowError."""
    value = _fields(raw, wanted)
    if wanted == PREFERENCE:
        chosen, rejected = _compared(value)
        return Row(raw.source, raw.row, chosen, content_digest(chosen), rejected, _schema(value))
    messages = (plain_text(value),) if wanted == "Text" else tuple(check(CONVERTERS[wanted](value)))
    return Row(raw.source, raw.row, messages, content_digest(messages), schema=_schema(value))


def _fields(raw: RawRow, wanted: str) -> dict[str, object]:
    """What a raw row has, if it is not of another format."""
    if raw.error:
        raise RowError(raw.error)
    if not isinstance(raw.value, dict):
        raise RowError(f"not a JSON object but {_kind(raw.value)}")
    shape = shape_of(raw.value)
    if shape not in ("", wanted) and not set(FIELDS[wanted]) <= set(raw.value):
        raise RowError(f"it is {shape}, but the file is {wanted}: keep one format a file")
    return raw.value


def check(messages: list[Message]) -> list[Message]:
    """`messages` if they are a conversation to learn from."""
    if len(messages) < 2:
        raise RowError("a conversation needs a user and an assistant turn")
    if messages[-1]["role"] != "assistant":
        raise RowError(f"the last turn is {messages[-1]['role']}, not assistant")
    for position, message in enumerate(messages):
        if not VISIBLE.search(message["content"]):
            raise RowError(f"turn {position + 1} ({message['role']}) is empty")
        if message["role"] == "system" and position > 0:
            raise RowError("a system turn may only come first")
        if position and messages[position - 1]["role"] == message["role"]:
            raise RowError(f"turns {position} and {position + 1} are both {message['role']}")
    if not any(message["role"] == "user" for message in messages):
        raise RowError("there is no user turn")
    return messages


def plain_text(value: dict[str, object]) -> Message:
    """The text of a row of plain text."""
    content = _text(value, "text")
    if not VISIBLE.search(content):
        raise RowError("field text is empty")
    return {"role": TEXT, "content": content}


def content_digest(messages: Iterable[Message]) -> str:
    """sha256 (hex) of the conversation with white space at the ends of turns left out."""
    plain = [[message["role"], message["content"].strip()] for message in messages]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")).hexdigest()


def _kind(value: object) -> str:
    """What a value is in JSON's words."""
    return KINDS.get(type(value), type(value).__name__)


def _short(word: str) -> str:
    return word if len(word) <= SHOWN else word[: SHOWN - 1] + "…"


def _text(value: dict[str, object], key: str) -> str:
    if key not in value:
        raise RowError(f"field {key} is missing")
    found = value[key]
    if not isinstance(found, str):
        raise RowError(f"field {key} is {_kind(found)}, not text")
    try:
        found.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"field {key} holds half of a surrogate pair") from None
    return found


def _schema(value: dict[str, object]) -> str:
    """The field json_schema: an object, or the text of one; whether it is a schema, who scores by it asks."""
    found = value.get("json_schema")
    if found is None:
        return ""
    if isinstance(found, str):
        return _text(value, "json_schema")
    if not isinstance(found, dict | bool):
        raise RowError(f"field json_schema is {_kind(found)}, not an object")
    return json.dumps(found)


def _optional_text(value: dict[str, object], key: str) -> str:
    return "" if value.get(key) is None else _text(value, key)


def _turns(found: object, key: str) -> list[Message]:
    if not isinstance(found, list) or not found:
        raise RowError(f"field {key} is not a list of turns")
    turns = []
    for position, turn in enumerate(found, start=1):
        if not isinstance(turn, dict):
            raise RowError(f"turn {position} of {key} is not an object")
        role = turn.get("role")
        if role not in ROLES:
            raise RowError(f"turn {position} of {key} has role {_short(repr(role))}, not one of {', '.join(ROLES)}")
        if turn.get("weight") not in (None, 1):
            raise RowError(f"turn {position} of {key} has a weight that is not 1: every answer of a row is learnt from")
        try:
            turns.append({"role": str(role), "content": _text(turn, "content")})
        except RowError as error:
            raise RowError(f"turn {position} of {key}: {error}") from None
    return turns


def _with_system(value: dict[str, object], turns: list[Message]) -> list[Message]:
    system = _optional_text(value, "system")
    return [{"role": "system", "content": system}, *turns] if system.strip() else turns


def _pair(prompt: str, response: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _messages(value: dict[str, object]) -> list[Message]:
    if "messages" not in value:
        raise RowError("field messages is missing")
    return _turns(value["messages"], "messages")


def _prompt_completion(value: dict[str, object], key: str = "completion") -> list[Message]:
    prompt, completion = value.get("prompt"), value.get(key)
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*_turns(prompt, "prompt"), *_turns(completion, key)]
    return _with_system(value, _pair(_text(value, "prompt"), _text(value, key)))


def _instruction(value: dict[str, object]) -> list[Message]:
    instruction, context = _text(value, "instruction"), _optional_text(value, "input")
    prompt = f"{instruction}\n\n{context}" if context.strip() else instruction
    return _with_system(value, _pair(prompt, _text(value, "output")))


def _input_output(value: dict[str, object]) -> list[Message]:
    return _with_system(value, _pair(_text(value, "input"), _text(value, "output")))


def _compared(value: dict[str, object]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The conversations with the chosen and with the rejected answer."""
    chosen, rejected = (_answered(value, key) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen and rejected answer different conversations: only their last turns may differ")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise RowError("chosen and rejected are the same answer")
    return chosen, rejected


def _answered(value: dict[str, object], key: str) -> tuple[Message, ...]:
    """The field `prompt` (text or turns) with the answer in field `key`, or without a prompt all of the conversation that is there."""
    if key not in value:
        raise RowError(f"field {key} is missing")
    prompt, answer = value.get("prompt"), value[key]
    if isinstance(prompt, list) and isinstance(answer, str):
        value = {**value, key: [{"role": "assistant", "content": answer}]}
    try:
        turns = _turns(answer, key) if prompt is None else _prompt_completion(value, key)
        return tuple(check(turns))
    except RowError as error:
        raise RowError(f"{error} (with the {key} answer)") from error


CONVERTERS: dict[str, Callable[[dict[str, object]], list[Message]]] = {
    "Messages": _messages,
    "PromptCompletion": _prompt_completion,
    "InstructionInputOutput": _instruction,
    "InputOutput": _input_output,
}
