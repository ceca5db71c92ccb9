"""The API as OpenAI's own client meets it: answers, streams, names, what is refused and what changes nothing."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from contextlib import closing
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import openai
import pytest
import torch
from finetune_trainer.serve import app, fields, protocol
from finetune_trainer.serve.loading import Loaded
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params

from tests.trainer import surface, transcript
from tests.trainer.hosting import NAME, REVISION, Hosted, hosted
from tests.trainer.surface import ASKED, QUESTION, REFUSED, UNCHANGED, asked, joined

PROMPTS = ("This", "Name the old drum.", "A kite, really", "0123456789 " * 8, "é€🙂 and so on", "q")


def chat_ids(loaded: Loaded) -> list[int]:
    text = loaded.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def generated(loaded: Loaded, ids: list[int], count: int) -> list[int]:
    """What transformers generates, without the token that ends it."""
    ends = sorted(loaded.end_ids)
    prompt = torch.tensor([ids])
    found = loaded.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count, eos_token_id=ends, pad_token_id=ends[0]
    )[0, len(ids) :].tolist()
    return found[:-1] if found[-1] in ends else found


def text_of(loaded: Loaded, ids: list[int]) -> str:
    return str(loaded.tokenizer.decode(ids, skip_special_tokens=True))


def test_a_chat_says_what_was_used_and_by_what(client: openai.OpenAI, host: Hosted) -> None:
    answer = client.chat.completions.create(**ASKED, max_tokens=12)
    loaded, ids = host.loaded, chat_ids(host.loaded)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", NAME, REVISION)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == text_of(loaded, generated(loaded, ids, 12))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (len(ids), 12, len(ids) + 12)


def test_a_stream_ends_with_the_usage_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, max_tokens=40)
    chunks = list(client.chat.completions.create(**ASKED, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == whole.choices[0].message.content
    assert (chunks[-1].usage, chunks[-1].choices) == (whole.usage, [])
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [whole.choices[0].finish_reason]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_the_clients_own_accumulation_of_a_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, max_tokens=20, logprobs=True, top_logprobs=2)
    with client.chat.completions.stream(**ASKED, max_tokens=20, logprobs=True, top_logprobs=2) as stream:
        stream.until_done()
        found = stream.current_completion_snapshot
    assert found.choices[0].message.content == whole.choices[0].message.content
    assert found.choices[0].logprobs is not None
    assert whole.choices[0].logprobs is not None
    assert found.choices[0].logprobs.content == whole.choices[0].logprobs.content


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_streamed_is_what_transformers_generates(prompt: str, client: openai.OpenAI, host: Hosted) -> None:
    loaded = host.loaded
    ids = list(loaded.tokenizer(prompt)["input_ids"])
    expected = text_of(loaded, generated(loaded, ids, 48))
    for given in (prompt, ids):
        chunks = client.completions.create(model=NAME, prompt=given, temperature=0, max_tokens=48, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_max_tokens_has_two_names_in_chats_and_a_default(client: openai.OpenAI) -> None:
    def used(**more: Any) -> Any:
        answer = client.chat.completions.create(**ASKED, **more, extra_body={"ignore_eos": True})
        assert answer.choices[0].finish_reason == "length"
        return answer.usage.completion_tokens if answer.usage else None

    assert (used(max_tokens=3), used(max_completion_tokens=4), used()) == (3, 4, 64)


ACCEPTED = ("bot", "ft:llama:ml:bot:1f2e3d4c", "ft:llama:ml:bot:", "ft:llama:ml:bot", "ft:gpt-4o-mini-2024-07-18:acme::bot", "ft:a/b::bot")
UNKNOWN = ("gpt-4o", "ft:llama:ml:bot:0a0b0c0d", "ft:llama:ml:other", "ft:llama:bot", "ft::ml:bot", "bot:1f2e3d4c", "ft:bot", "BOT", "xbot")


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_model_is_asked_for_by_its_name_or_as_openai_names_a_tuned_one(name: str, client: openai.OpenAI) -> None:
    assert client.models.retrieve(name).id == NAME
    assert client.chat.completions.create(**{**ASKED, "model": name}, max_tokens=1).model == NAME
    assert client.completions.create(model=name, prompt="a", max_tokens=1).model == NAME


@pytest.mark.parametrize("name", UNKNOWN)
def test_another_model_is_not_found(name: str, client: openai.OpenAI) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.models.retrieve(name),
        lambda: client.chat.completions.create(**{**ASKED, "model": name}),
        lambda: client.chat.completions.create(**{**ASKED, "model": name}, stream=True),
        lambda: client.completions.create(model=name, prompt="a"),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError, match=re.escape(repr(name))) as refused:
            call()
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("name", ["org/bot-v1.5", "ft:gpt-4o-mini-2024-07-18:acme::8xyz", "a@b+c"])
def test_whatever_name_a_model_is_served_under_is_listed_and_found(name: str, host: Hosted) -> None:
    with hosted(host.loaded, name=name) as found, openai.OpenAI(base_url=found.url, api_key="-", max_retries=0) as client:
        assert [(model.id, model.object, model.owned_by) for model in client.models.list()] == [(name, "model", "finetune")]
        assert client.models.retrieve(name).id == name
        assert client.completions.create(model=name, prompt="a", max_tokens=1).model == name


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("kind", "body", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_the_clients_bad_request(
    kind: str, body: dict[str, Any], param: str, code: str, stream: bool, client: openai.OpenAI
) -> None:
    streamed = {} if "stream_options" in body else {"stream": stream}
    with pytest.raises(openai.BadRequestError) as refused:
        asked(client, kind, **body, **streamed)
    assert (refused.value.param, refused.value.code, refused.value.type) == (param, code, "invalid_request_error")


@pytest.mark.parametrize(("kind", "body"), UNCHANGED.values(), ids=UNCHANGED)
def test_what_changes_nothing_changes_nothing(kind: str, body: dict[str, Any], client: openai.OpenAI) -> None:
    assert asked(client, kind, max_tokens=8, **body).choices == asked(client, kind, max_tokens=8).choices


def test_a_developers_turn_is_a_systems(client: openai.OpenAI) -> None:
    told = [[{"role": role, "content": "Be brief."}, *QUESTION] for role in ("developer", "system", "user")]
    answers = [asked(client, "chat", messages=messages, max_tokens=8) for messages in told]
    assert answers[0].choices == answers[1].choices
    assert answers[0].usage == answers[1].usage != answers[2].usage


def test_an_answer_goes_back_into_the_conversation_as_the_client_gave_it(client: openai.OpenAI) -> None:
    first = asked(client, "chat", max_tokens=8).choices[0].message
    plain = [*QUESTION, {"role": "assistant", "content": first.content}, *QUESTION]
    again = asked(client, "chat", messages=[*QUESTION, first, *QUESTION], max_tokens=8)
    assert again.choices == asked(client, "chat", messages=plain, max_tokens=8).choices


@pytest.mark.parametrize(
    ("hints", "request_type"),
    [
        (chat_params.CompletionCreateParamsBase, protocol.ChatRequest),
        (completion_create_params.CompletionCreateParamsBase, protocol.CompletionRequest),
    ],
)
def test_every_field_that_the_client_has_is_known_here(hints: Any, request_type: type[protocol.Request]) -> None:
    known = request_type.model_fields.keys() | fields.NEUTRAL.keys() | fields.IGNORED
    assert get_type_hints(hints).keys() - known == set()
    assert fields.NEUTRAL.keys() & fields.IGNORED == set()


KINDS: dict[str, tuple[type[protocol.Request], dict[str, Any]]] = {
    "chat": (protocol.ChatRequest, {"model": NAME, "messages": QUESTION}),
    "completion": (protocol.CompletionRequest, {"model": NAME, "prompt": "a"}),
}


def refused_by(kind: type[protocol.Request], document: dict[str, Any]) -> tuple[str | None, str | None] | None:
    """(param, code) with which it is refused; None: it is accepted."""
    try:
        protocol.parse(kind, document)
    except protocol.ApiError as error:
        return error.param, error.code
    return None


@pytest.mark.parametrize(("kind", "needed"), KINDS.values(), ids=KINDS)
def test_whatever_is_not_served_is_accepted_at_its_neutral_values_alone(kind: type[protocol.Request], needed: dict[str, Any]) -> None:
    assert fields.OPENAI.keys() & fields.ELSEWHERE.keys() == set()
    for name, neutral in fields.NEUTRAL.items():
        if name in kind.model_fields:
            continue
        for value in (None, *neutral):
            assert refused_by(kind, {**needed, name: value}) is None, f"{name}: {value}"
        for value in ("json", 17, 0.25, {"a": "b"}, ["a"], *(flag for flag in (True, False) if flag not in neutral)):
            assert refused_by(kind, {**needed, name: value}) == (name, "unsupported_parameter"), f"{name}: {value}"


@pytest.mark.parametrize(("kind", "needed"), KINDS.values(), ids=KINDS)
def test_null_is_as_good_as_nothing(kind: type[protocol.Request], needed: dict[str, Any]) -> None:
    plain = protocol.parse(kind, needed)
    for name in kind.model_fields.keys() - needed.keys():
        assert protocol.parse(kind, {**needed, name: None}) == plain, name
    options = {**needed, "stream": True, "stream_options": {"include_usage": None}}
    assert not protocol.parse(kind, options).wants_usage


TAGS = ("", "ada", 17, 0.5, -1, True, False, None, [], {}, "9" * 5000)
MISSPELT = {
    "temprature": "temperature", "temperatur": "temperature", "temperture": "temperature", "tempersture": "temperature",
    "temperatures": "temperature", "Temperature": "temperature", "max_token": "max_tokens", "max-tokens": "max_tokens",
    "maxTokens": "max_tokens", "topP": "top_p", "numPredict": "num_predict", "responseFormat": "response_format",
    "max_completion_token": "max_completion_tokens", "stream_option": "stream_options",
}  # fmt: skip
OF_THEIR_OWN = (
    "customer", "user_id", "tenant", "message", "document", "function", "mode", "models", "stops", "seeds", "team", "x", "", "é",
    "temperament", "tokens", "max_items", "session_id", "request_id", "conversation", "prompts", "a" * 5000,
)  # fmt: skip


@pytest.mark.parametrize(("kind", "needed"), KINDS.values(), ids=KINDS)
def test_a_clients_own_tag_passes_and_what_is_no_tag_does_not(kind: type[protocol.Request], needed: dict[str, Any]) -> None:
    for name in OF_THEIR_OWN:
        assert [refused_by(kind, {**needed, name: value}) for value in TAGS] == [None] * len(TAGS), name
        for value in ({"a": 1}, ["a"], [None], {"a": {}}):
            assert refused_by(kind, {**needed, name: value}) == (name, "unknown_parameter"), f"{name}: {value}"


def test_a_body_has_no_more_fields_than_are_worth_looking_at() -> None:
    kind, needed = KINDS["chat"]
    tags = {f"tag {index}": 1 for index in range(protocol.MAX_FIELDS - len(needed))}
    assert refused_by(kind, {**needed, **tags}) is None
    assert refused_by(kind, {**needed, **tags, "one more": 1}) == (None, "too_many_fields")


def test_the_first_wrong_field_is_told() -> None:
    kind, needed = KINDS["chat"]
    wrong: dict[str, Any] = {"tools": ["a"], "format": "json", "policy": {"a": 1}}
    for first in wrong:
        assert (refused_by(kind, {**needed, first: wrong[first], **wrong}) or ())[0] == first


@pytest.mark.parametrize(("written", "meant"), MISSPELT.items(), ids=MISSPELT)
def test_a_misspelt_field_is_told_what_it_may_mean(written: str, meant: str) -> None:
    kind, needed = KINDS["chat"]
    with pytest.raises(protocol.ApiError, match=f"{written}; did you mean {meant}") as refused:
        protocol.parse(kind, {**needed, written: 0})
    assert (refused.value.param, refused.value.code) == (written, "unknown_parameter")


def test_special_tokens_are_where_the_endpoint_has_them() -> None:
    for kind, right in (("chat", False), ("completion", True)):
        request, needed = KINDS[kind]
        assert refused_by(request, {**needed, "add_special_tokens": right}) is None
        assert refused_by(request, {**needed, "add_special_tokens": not right}) == ("add_special_tokens", "invalid_value")


PARTS: dict[str, tuple[object, str]] = {
    "null": ([{"type": "text", "text": None}], "messages[0].content[0].text"),
    "a number": ([{"type": "text", "text": "a"}, {"type": "text", "text": 5}], "messages[0].content[1].text"),
    "a list": ([{"type": "text", "text": ["a"]}], "messages[0].content[0].text"),
    "no text": ([{"type": "text"}], "messages[0].content[0].text"),
    "no type": ([{"text": "a"}], "messages[0].content[0].type"),
    "no part": (["a"], "messages[0].content[0]"),
    "a number as content": (5, "messages[0].content"),
    "a part as content": ({"type": "text", "text": "a"}, "messages[0].content"),
}


@pytest.mark.parametrize(("content", "param"), PARTS.values(), ids=PARTS)
def test_a_text_that_is_none_is_refused_where_it_is(content: object, param: str) -> None:
    found = refused_by(protocol.ChatRequest, {"model": NAME, "messages": [{"role": "user", "content": content}]})
    assert found is not None
    assert found[0] == param


@pytest.mark.parametrize(("content", "text"), [(None, ""), ("a", "a"), ([], ""), (surface.PARTS, "Name the small lamp.")])
def test_a_turn_says_its_text_whole_or_in_parts(content: object, text: str) -> None:
    request = protocol.parse(protocol.ChatRequest, {"model": NAME, "messages": [{"role": "assistant", "content": content}]})
    assert [message.text for message in request.messages] == [text]


ELSEWHERE: dict[str, tuple[str, bytes, type[openai.APIStatusError], int]] = {
    "a path nobody serves": ("/embeddings", b"{}", openai.NotFoundError, 404),
    "a method nobody serves": ("/models", b"{}", openai.APIStatusError, 405),
    "no JSON": ("/chat/completions", b"{", openai.BadRequestError, 400),
    "a body without an end": ("/chat/completions", b" " * (4 * 1024 * 1024 + 1), openai.APIStatusError, 413),
}


@pytest.mark.parametrize(("path", "body", "error", "status"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_no_request_should_be_has_its_status(
    path: str, body: bytes, error: type[openai.APIStatusError], status: int, client: openai.OpenAI
) -> None:
    with pytest.raises(error) as refused:
        client.post(path, cast_to=object, content=body)
    assert (refused.value.status_code, refused.value.type) == (status, "invalid_request_error")


# headers, body → status
UNREADABLE: dict[str, tuple[dict[str, str], bytes, int]] = {
    "not compressed at all": ({"Content-Encoding": "gzip"}, b"{}", 400),
    "without its end": ({"Content-Length": "5"}, b"{}", 408),
}


@pytest.mark.parametrize(("headers", "body", "status"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_body_that_cannot_be_read_is_the_clients_failure(
    headers: dict[str, str], body: bytes, status: int, host: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "RECEIVE_SECONDS", 0.3)
    connection = http.client.HTTPConnection(urlsplit(host.url).netloc, timeout=10)
    with closing(connection):
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["error"]["type"]) == (status, "invalid_request_error")


ODD = (
    "[]", "{}", "[[]]", "[{}]", '{"a": {"b": []}}', "true", "0", "-1", "1e400", "NaN", "1.5", "9" * 40, '""', '"\\ud800"', '"\\u0000"',
    '["\\ud800"]', "[true]", "[null]", '{"type": {}}',
)  # fmt: skip


def refusal(client: openai.OpenAI, path: str, body: str) -> openai.APIStatusError | None:
    """Why this body is refused; None: it is answered."""
    try:
        client.post(path, cast_to=object, content=body.encode())
    except openai.APIStatusError as error:
        return error
    return None


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", [protocol.ChatRequest, protocol.CompletionRequest])
def test_no_value_of_any_field_is_the_servers_failure(odd: str, kind: type[protocol.Request], client: openai.OpenAI) -> None:
    chat = kind is protocol.ChatRequest
    needed = {"messages": json.dumps(QUESTION)} if chat else {"prompt": '"a"'}
    plain = {"model": f'"{NAME}"', "max_tokens": "1", **needed}
    for name in (*kind.model_fields, *fields.NEUTRAL, *fields.IGNORED, "nobody_knows"):
        body = ",".join(f"{json.dumps(key)}:{value}" for key, value in {**plain, name: odd}.items())
        refused = refusal(client, "/chat/completions" if chat else "/completions", f"{{{body}}}")
        assert refused is None or refused.status_code in (400, 404), f"{name}: {refused}"


@pytest.mark.parametrize("odd", ODD)
def test_no_value_in_a_turn_is_the_servers_failure(odd: str, client: openai.OpenAI) -> None:
    for turn in (
        odd,
        f'{{"role": {odd}, "content": "a"}}',
        f'{{"role": "user", "content": {odd}}}',
        f'{{"role": "user", "content": [{odd}]}}',
    ):
        refused = refusal(client, "/chat/completions", f'{{"model": "{NAME}", "max_tokens": 1, "messages": [{turn}]}}')
        assert refused is None or refused.status_code == 400, f"{turn}: {refused}"


def test_the_table_in_the_docs_is_what_the_server_does(client: openai.OpenAI) -> None:
    table = surface.table(client)
    assert surface.WRONG not in table
    page = transcript.PAGE.read_text()
    assert page.startswith(transcript.HEAD + table + transcript.NOTES), "make transcript writes it anew"
