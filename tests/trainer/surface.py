"""What of OpenAI's API is served, what changes nothing, and what is refused and how: each row is asked for with OpenAI's client.

The tests hold every row against the tiny model; docs/openai.md has the table, which no row of it depends on the model for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai

from tests.trainer.hosting import NAME, REVISION

WRONG = "**not so**"
QUESTION: list[Any] = [{"role": "user", "content": "Name the small lamp."}]
ASKED: dict[str, Any] = {"model": NAME, "messages": QUESTION, "temperature": 0}
ENDLESS = {"ignore_eos": True}


def joined(chunks: Any) -> str:
    """The text of a chat's stream."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def asked(client: openai.OpenAI, kind: str, **body: Any) -> Any:
    """The answer to `body`, of which what is not said is as in ASKED."""
    if kind == "chat":
        return client.chat.completions.create(**{**ASKED, **body})
    return client.completions.create(**{"model": NAME, "prompt": "This", "temperature": 0, **body})


def _text(client: openai.OpenAI, **body: Any) -> str:
    return str(asked(client, "chat", **{"max_tokens": 16, **body}).choices[0].message.content)


def _used(client: openai.OpenAI, kind: str = "chat", **body: Any) -> int:
    return int(asked(client, kind, extra_body=ENDLESS, **body).usage.completion_tokens)


def _usage_last(client: openai.OpenAI) -> bool:
    *before, last = asked(client, "chat", max_tokens=8, stream=True, stream_options={"include_usage": True})
    return last.usage == asked(client, "chat", max_tokens=8).usage and not any(chunk.usage for chunk in before)


def _stops(client: openai.OpenAI, several: bool) -> bool:
    text = _text(client)
    stop = text[6:9]
    return _text(client, stop=["no such thing", stop] if several else stop) == text[: text.find(stop)]


def _several(client: openai.OpenAI) -> bool:
    once, again = (asked(client, "chat", n=3, temperature=1, seed=7, max_tokens=16).choices for _ in range(2))
    return once == again and [choice.index for choice in once] == [0, 1, 2] and len({choice.message.content for choice in once}) == 3


def _chat_logprobs(client: openai.OpenAI) -> bool:
    choice = asked(client, "chat", max_tokens=4, logprobs=True, top_logprobs=2, extra_body=ENDLESS).choices[0]
    return [len(each.top_logprobs) for each in choice.logprobs.content] == [2] * 4


def _logprobs(client: openai.OpenAI) -> bool:
    told = asked(client, "completions", max_tokens=4, logprobs=2, extra_body=ENDLESS).choices[0].logprobs
    return len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 4


@dataclass(frozen=True)
class Served:
    """What is sent, as the table writes it, and whether it is answered as it should be."""

    sent: str
    holds: Callable[[openai.OpenAI], bool]


SERVED: dict[str, Served] = {
    "chat": Served("chat.completions.create(messages=…)", lambda c: bool(asked(c, "chat").choices[0].message.role == "assistant")),
    "chat, streamed": Served("stream=True", lambda c: joined(asked(c, "chat", max_tokens=16, stream=True)) == _text(c)),
    "usage at a stream's end": Served("stream_options={'include_usage': True}", _usage_last),
    "completions": Served("completions.create(prompt='…')", lambda c: _used(c, "completions") == 16),
    "completions, streamed": Served(
        "stream=True",
        lambda c: "".join(x.choices[0].text for x in asked(c, "completions", stream=True)) == asked(c, "completions").choices[0].text,
    ),
    "a prompt of token ids": Served("prompt=[5, 6, 7]", lambda c: bool(asked(c, "completions", prompt=[5, 6, 7]).usage.prompt_tokens == 3)),
    "the list of models": Served("models.list()", lambda c: [model.id for model in c.models.list()] == [NAME]),
    "a model": Served("models.retrieve(name)", lambda c: c.models.retrieve(NAME).id == NAME),
    "a tuned model's long name": Served(
        f"model='ft:smollm2:ml:{NAME}:{REVISION}'",
        lambda c: (
            asked(c, "chat", model=f"ft:smollm2:ml:{NAME}:{REVISION}", max_tokens=4).choices == asked(c, "chat", max_tokens=4).choices
        ),
    ),
    "how long an answer may be": Served("max_tokens=3", lambda c: _used(c, max_tokens=3) == 3),
    "the same in newer words": Served("max_completion_tokens=3", lambda c: _used(c, max_completion_tokens=3) == 3),
    "the likeliest token each time": Served("temperature=0", lambda c: len({_text(c, seed=seed) for seed in (1, 2)}) == 1),
    "draws that repeat": Served("temperature=1, seed=7", lambda c: len({_text(c, temperature=1, seed=7) for _ in range(2)}) == 1),
    "draws from the likely tokens": Served("top_p=0.0001", lambda c: _text(c, temperature=1, top_p=0.0001) == _text(c)),
    "several answers": Served("n=3, seed=7", _several),
    "a stop string": Served("stop='…'", lambda c: _stops(c, several=False)),
    "several": Served("stop=['…', '…']", lambda c: _stops(c, several=True)),
    "log-probabilities": Served("logprobs=True, top_logprobs=2", _chat_logprobs),
    "log-probabilities of a completion": Served("logprobs=2", _logprobs),
    "a developer's turn, as a system's": Served(
        "messages=[{'role': 'developer', …}, …]",
        lambda c: len({_text(c, messages=[{"role": r, "content": "Be brief."}, *QUESTION]) for r in ("developer", "system")}) == 1,
    ),
    "going on after the end of the turn": Served("extra_body={'ignore_eos': True}", lambda c: _used(c, max_tokens=40) == 40),
}
PARTS = [{"type": "text", "text": "Name the "}, {"type": "text", "text": "small lamp."}]
UNCHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "a user's name": ("chat", {"user": "ada", "safety_identifier": "ada", "metadata": {"a": "b"}}),
    "a field by which the router may know the user": ("chat", {"extra_body": {"customer": "ada"}}),
    "a client's own tags": ("chat", {"extra_body": {"tenant": 17, "share": 0.5, "trial": True, "tags": [], "context": {}}}),
    "how it is billed and cached": ("chat", {"service_tier": "auto", "prompt_cache_key": "a"}),
    "a guess at the answer": ("chat", {"prediction": {"type": "content", "content": "a"}}),
    "no tools": ("chat", {"tools": [], "tool_choice": "none", "parallel_tool_calls": True}),
    "plain text": ("chat", {"response_format": {"type": "text"}, "modalities": ["text"], "verbosity": "medium"}),
    "no penalty": ("chat", {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "top_p": 1, "n": 1, "store": False}),
    "nulls": ("chat", {"stop": None, "seed": None, "logprobs": None, "tools": None, "response_format": None, "extra_body": {"odd": None}}),
    "nulls of other servers' fields": ("chat", {"extra_body": {"ignore_eos": None, "guided_json": None, "top_k": None}}),
    "no reasoning": ("chat", {"reasoning_effort": "none", "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}),
    "other servers' fields at rest": ("chat", {"extra_body": {"top_k": -1, "stop_token_ids": [], "skip_special_tokens": True}}),
    "others of them": ("completions", {"extra_body": {"use_beam_search": False, "length_penalty": 1, "repeat_penalty": 1.0}}),
    "one of one": ("completions", {"best_of": 1, "n": 1, "echo": False, "suffix": None}),
    "a name in a turn": ("chat", {"messages": [{**QUESTION[0], "name": "ada"}]}),
    "text in parts": ("chat", {"messages": [{"role": "user", "content": PARTS}]}),
}  # fmt: skip


Refused = tuple[str, dict[str, Any], str, str]
CALLED = {"role": "tool", "content": "a", "tool_call_id": "1"}
LONG = [{"role": "user", "content": "7 " * 3000}]
NO_TEXT = {"role": "user", "content": [{"type": "text", "text": None}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
REFUSED: dict[str, Refused] = {
    "a prompt longer than the context": ("chat", {"messages": LONG}, "messages", "context_length_exceeded"),
    "a completion's prompt longer than it": ("completions", {"prompt": "7 " * 3000}, "prompt", "context_length_exceeded"),
    "an answer longer than it": ("chat", {"max_tokens": 2048}, "max_tokens", "context_length_exceeded"),
    "the same in newer words": ("chat", {"max_completion_tokens": 2048}, "max_completion_tokens", "context_length_exceeded"),
    "both words for one length": ("chat", {"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_value"),
    "no length at all": ("chat", {"max_tokens": 0}, "max_tokens", "invalid_value"),
    "a temperature above 2": ("chat", {"temperature": 2.5}, "temperature", "invalid_value"),
    "a share above 1": ("chat", {"top_p": 1.5}, "top_p", "invalid_value"),
    "more answers than 16": ("chat", {"n": 17}, "n", "invalid_value"),
    "an empty stop string": ("chat", {"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    "more stop strings than anybody needs": ("chat", {"stop": list("abcdefghijklmnopq")}, "stop", "invalid_value"),
    "no messages": ("chat", {"messages": []}, "messages", "invalid_value"),
    "a turn without a role": ("chat", {"messages": [{"content": "a"}]}, "messages[0].role", "missing_required_parameter"),
    "a tool's turn": ("chat", {"messages": [*QUESTION, CALLED]}, "messages[1]", "invalid_value"),
    "a turn that called tools": (
        "chat", {"messages": [*QUESTION, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[1]", "invalid_value",
    ),
    "a picture": (
        "chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "invalid_value",
    ),
    "a part without its text": ("chat", {"messages": [NO_TEXT]}, "messages[0].content[0].text", "invalid_value"),
    "tools": ("chat", {"tools": [TOOL]}, "tools", "unsupported_parameter"),
    "a tool that must be called": ("chat", {"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    "functions": ("chat", {"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    "an answer in JSON": ("chat", {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    "an answer by a schema": (
        "chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "response_format",
        "unsupported_parameter",
    ),
    "penalties": ("chat", {"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    "a bias": ("chat", {"logit_bias": {"5": 10}}, "logit_bias", "unsupported_parameter"),
    "spoken answers": ("chat", {"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    "an answer to be stored": ("chat", {"store": True}, "store", "unsupported_parameter"),
    "likely tokens without log-probabilities": ("chat", {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    "more likely tokens than 20": ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    "more likely tokens than 5": ("completions", {"logprobs": 6}, "logprobs", "invalid_value"),
    "a stream's options without a stream": ("chat", {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    "the prompt in the answer": ("completions", {"echo": True}, "echo", "unsupported_parameter"),
    "the best of several": ("completions", {"best_of": 3}, "best_of", "unsupported_parameter"),
    "two prompts": ("completions", {"prompt": ["a", "b"]}, "prompt", "invalid_value"),
    "an empty prompt": ("completions", {"prompt": ""}, "prompt", "invalid_value"),
    "no prompt": ("completions", {"prompt": None}, "prompt", "invalid_value"),
    "a token nobody has": ("completions", {"prompt": [100000]}, "prompt", "invalid_value"),
    "a misspelt field": ("chat", {"extra_body": {"temprature": 0}}, "temprature", "unknown_parameter"),
    "a field in another case": ("chat", {"extra_body": {"maxTokens": 5}}, "maxTokens", "unknown_parameter"),
    "what nobody knows, and is no tag": ("chat", {"extra_body": {"policy": {"deny": ["a"]}}}, "policy", "unknown_parameter"),
    "another server's field": ("chat", {"extra_body": {"min_tokens": 4}}, "min_tokens", "unsupported_parameter"),
    "another server's text": ("chat", {"extra_body": {"guided_json": '{"type": "object"}'}}, "guided_json", "unsupported_parameter"),
    "another server's form": ("chat", {"extra_body": {"format": "json"}}, "format", "unsupported_parameter"),
    "another server's length": ("chat", {"extra_body": {"num_predict": 5}}, "num_predict", "unsupported_parameter"),
    "a chat's length of a completion": (
        "completions", {"extra_body": {"max_completion_tokens": 5}}, "max_completion_tokens", "unsupported_parameter",
    ),
}  # fmt: skip
UNKNOWN: dict[str, Refused] = {"a model that is not there": ("chat", {"model": "gpt-4o"}, "model", "model_not_found")}


def table(client: openai.OpenAI) -> str:
    """Markdown, each row as it was just answered."""
    served = [_row(what, each.sent, "yes" if each.holds(client) else WRONG) for what, each in SERVED.items()]
    unchanged = [_row(what, _written(body), _unchanged(client, kind, body)) for what, (kind, body) in UNCHANGED.items()]
    refused = [_row(what, _written(body), _refusal(client, kind, body)) for what, (kind, body, *_) in (UNKNOWN | REFUSED).items()]
    heads = (("Served", "holds"), ("Accepted, and changes nothing", "answer"), ("Refused", "the client raises, `code`, `param`"))
    parts = [
        f"| {title} | sent | {answer} |\n|---|---|---|\n" + "\n".join(rows)
        for (title, answer), rows in zip(heads, (served, unchanged, refused), strict=True)
    ]
    return "\n\n".join(parts) + "\n"


def _unchanged(client: openai.OpenAI, kind: str, body: dict[str, Any]) -> str:
    same = asked(client, kind, max_tokens=8, **body).choices == asked(client, kind, max_tokens=8).choices
    return "the same" if same else WRONG


def _refusal(client: openai.OpenAI, kind: str, body: dict[str, Any]) -> str:
    try:
        asked(client, kind, **body)
    except openai.APIStatusError as error:
        return f"{type(error).__name__}, `{error.code}`, `{error.param}`"
    return WRONG


def _row(*cells: str) -> str:
    first, sent, answer = cells
    return f"| {first} | `{sent}` | {answer} |"


def _written(body: dict[str, Any]) -> str:
    """Keyword arguments, in short."""
    text = ", ".join(f"{name}={value!r}" for name, value in body.items()).replace("|", "\\|")
    return text if len(text) <= 90 else f"{text[:89]}…"
