"""What OpenAI's client gets: stop strings, log-probabilities, draws, streams side by side, streams that break off.

Held against references that know nothing of the server: a search in the finished text, torch's log_softmax over the whole text read
anew, transformers' greedy generation.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import math
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from aiohttp import ClientConnectionResetError
from finetune_trainer.serve import logprobs
from finetune_trainer.serve.answers import Answer
from finetune_trainer.serve.batch import Batch
from finetune_trainer.serve.engine import Engine, QueueFull
from finetune_trainer.serve.generation import Generation, Sampling
from finetune_trainer.serve.text import StopStrings
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from devcluster import loopback
from tests.trainer import lives
from tests.trainer.hosting import NAME, Hosted, hosted
from tests.trainer.support import running, wait_until
from tests.trainer.surface import ASKED, asked, joined
from tests.trainer.test_openai import PROMPTS, chat_ids, generated, text_of

DRAWN: dict[str, Any] = {"temperature": 1.3, "seed": 11, "extra_body": {"ignore_eos": True}}


def cut(pieces: list[str], stops: list[str]) -> tuple[str, int, bool]:
    """(text, pieces taken, whether it was stopped): after each piece the whole text is searched."""
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        found = [at for stop in stops if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], count, True
    return "".join(pieces), len(pieces), False


@pytest.mark.parametrize("seed", range(200))
def test_stop_strings_cut_as_a_search_in_the_whole_text_does(seed: int) -> None:
    draw = random.Random(seed)
    pieces = ["".join(draw.choices("abc", k=draw.randrange(4))) for _ in range(12)]
    stops = ["".join(draw.choices("abc", k=draw.randrange(1, 6))) for _ in range(draw.randrange(4))]
    expected, taken, hit = cut(pieces, stops)
    found, given = StopStrings(stops), []
    for count, piece in enumerate(pieces, 1):
        given.append(found.add(piece))
        assert expected.startswith("".join(given)), "no part of a stop string is given out"
        if found.hit:
            assert count == taken
            break
    assert found.hit == hit
    assert "".join(given) + ("" if hit else found.rest()) == expected


def drawn_pieces(client: openai.OpenAI, count: int = 60) -> list[str]:
    """An answer in its tokens' texts, as a stream without stop strings gives it."""
    chunks = asked(client, "chat", **DRAWN, max_tokens=count, stream=True)
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]


@pytest.mark.parametrize("seed", range(3))
def test_a_stop_string_ends_an_answer_whole_and_streamed_alike(seed: int, client: openai.OpenAI) -> None:
    draw = random.Random(seed)
    text = "".join(drawn_pieces(client))
    places = [draw.randrange(len(text) - 5) for _ in range(3)]
    stops = [text[at : at + length] for at, length in zip(places, (1, 3, 5), strict=True)]
    for stop in (*stops, stops, ["never\n\n\nthere", stops[2]]):
        expected, _, _ = cut(list(text), [stop] if isinstance(stop, str) else stop)
        request = {**DRAWN, "max_tokens": 60, "stop": stop}
        whole = asked(client, "chat", **request).choices[0]
        chunks = list(asked(client, "chat", **request, stream=True))
        assert (whole.message.content, whole.finish_reason) == (expected, "stop")
        assert (joined(chunks), chunks[-1].choices[0].finish_reason) == (expected, "stop")


def test_a_stop_string_that_never_comes_changes_nothing(client: openai.OpenAI) -> None:
    plain = asked(client, "chat", **DRAWN, max_tokens=30)
    text = plain.choices[0].message.content
    almost = text[-1] + "\x00"  # the end could become one
    assert asked(client, "chat", **DRAWN, max_tokens=30, stop=almost).choices == plain.choices
    chunks = asked(client, "chat", **DRAWN, max_tokens=30, stop=[almost, "\x01"], stream=True)
    assert joined(chunks) == text


def test_a_stop_string_ends_the_count_of_tokens_too(client: openai.OpenAI, host: Hosted) -> None:
    """A token of the tiny model is a byte."""
    answer = asked(client, "chat", **DRAWN, max_tokens=60, logprobs=True).choices[0]
    text, ids = answer.message.content, tokens_of(host, answer.logprobs.content)
    stop = next(text[at : at + 2] for at in range(10, 58) if text[at : at + 2].isascii() and text.find(text[at : at + 2]) == at)
    found = asked(client, "chat", **DRAWN, max_tokens=60, stop=stop)
    assert found.usage.completion_tokens == next(count for count in range(60) if stop in text_of(host.loaded, ids[:count]))


@functools.cache
def vocabulary(tokenizer: Any) -> dict[str, int]:
    """Tokens by what they spell."""
    speller = logprobs.Speller(tokenizer)
    return {speller.spell(token).text: token for token in range(len(tokenizer))}


def tokens_of(host: Hosted, told: list[Any]) -> list[int]:
    return [vocabulary(host.loaded.tokenizer)[each.token] for each in told]


def reference(host: Hosted, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities (tokens, vocabulary) before each of the answer's tokens, from reading everything at once."""
    logits = lives.served_logits(host.loaded, [*prompt, *answer])
    return torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)


SAMPLED: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0}, "drawn": DRAWN, "drawn from the likely": {**DRAWN, "top_p": 0.3}}


@pytest.mark.parametrize("how", SAMPLED.values(), ids=SAMPLED)
def test_a_chats_log_probabilities_are_the_models(how: dict[str, Any], client: openai.OpenAI, host: Hosted) -> None:
    answer = asked(client, "chat", **how, max_tokens=24, logprobs=True, top_logprobs=20)
    told = answer.choices[0].logprobs.content
    tokens = tokens_of(host, told)
    assert len(tokens) == 24
    assert text_of(host.loaded, tokens) == answer.choices[0].message.content
    for each, token, row in zip(told, tokens, reference(host, chat_ids(host.loaded), tokens), strict=True):
        assert each.logprob == pytest.approx(float(row[token]), abs=1e-4)
        values, places = row.topk(20)
        assert [one.logprob for one in each.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
        assert set(tokens_of(host, each.top_logprobs)) == set(places.tolist())


def test_a_completions_log_probabilities_are_the_models(client: openai.OpenAI, host: Hosted) -> None:
    answer = asked(client, "completions", **DRAWN, max_tokens=40, logprobs=3).choices[0]
    told, ids = answer.logprobs, vocabulary(host.loaded.tokenizer)
    tokens = [ids[text] for text in told.tokens]
    expected = reference(host, list(host.loaded.tokenizer("This")["input_ids"]), tokens)
    assert told.token_logprobs == pytest.approx([float(row[token]) for row, token in zip(expected, tokens, strict=True)], abs=1e-4)
    for top, token, row in zip(told.top_logprobs, tokens, expected, strict=True):
        assert {ids[text] for text in top} == {*row.topk(3).indices.tolist(), token}
    plain = [(text, offset) for text, offset in zip(told.tokens, told.text_offset, strict=True) if len(text) == 1 and text.isascii()]
    assert len(plain) > 5
    assert all(answer.text[offset] == text for text, offset in plain)


def test_none_but_the_tokens_own_is_told_where_no_others_are_asked_for(client: openai.OpenAI) -> None:
    chat = asked(client, "chat", max_tokens=4, logprobs=True).choices[0].logprobs.content
    assert [each.top_logprobs for each in chat] == [[]] * 4
    told = asked(client, "completions", max_tokens=4, logprobs=0).choices[0].logprobs
    assert told.top_logprobs == [{text: logprob} for text, logprob in zip(told.tokens, told.token_logprobs, strict=True)]
    assert asked(client, "chat", max_tokens=4, logprobs=False).choices[0].logprobs is None
    assert asked(client, "completions", max_tokens=4).choices[0].logprobs is None


@pytest.mark.parametrize("stopped", [False, True], ids=["to its length", "to a stop string"])
def test_streamed_log_probabilities_come_with_their_text_and_are_those_of_the_whole_answer(
    stopped: bool, client: openai.OpenAI, host: Hosted
) -> None:  # fmt: skip
    text = "".join(drawn_pieces(client, 40))
    request = {**DRAWN, "max_tokens": 40, "logprobs": True, "top_logprobs": 2}
    if stopped:
        request["stop"] = text[25:28]
    whole = asked(client, "chat", **request).choices[0]
    chunks = [chunk.choices[0] for chunk in asked(client, "chat", **request, stream=True)]
    told = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert told == whole.logprobs.content
    assert text_of(host.loaded, tokens_of(host, told)) == whole.message.content
    given, seen = "", []
    for chunk in chunks:
        given += chunk.delta.content or ""
        seen += tokens_of(host, chunk.logprobs.content) if chunk.logprobs else []
        assert text_of(host.loaded, seen) == given


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary marks spaces and writes single bytes by number, as Llama 2's does."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "▁the", "é"]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


SPELLED: dict[str, tuple[str, list[int]]] = {
    "▁the": (" the", [*b" the"]),
    "a": ("a", [*b"a"]),
    "é": ("é", [*"é".encode()]),
    "<0x41>": ("A", [0x41]),
    "<0xE2>": (r"\xe2", [0xE2]),
    "</s>": ("</s>", [*b"</s>"]),
}


@pytest.mark.parametrize(("piece", "spelled"), SPELLED.items(), ids=SPELLED)
def test_a_token_spells_what_it_is_within_a_text(piece: str, spelled: tuple[str, list[int]]) -> None:
    tokenizer = sentencepiece()
    found = logprobs.Speller(tokenizer).spell(tokenizer.convert_tokens_to_ids(piece))
    assert (found.text, list(found.bytes or ())) == spelled


def test_every_byte_of_a_vocabulary_of_bytes_is_spelled(host: Hosted) -> None:
    assert {char: byte for byte, char in bytes_to_unicode().items()} == logprobs.BYTE_OF
    speller = logprobs.Speller(host.loaded.tokenizer)
    found = [speller.spell(token) for token in range(3, len(host.loaded.tokenizer))]
    assert {each.bytes for each in found} == {(byte,) for byte in range(256)}
    assert len({each.text for each in found}) == 256


class Counting:
    """A tokenizer that counts what it is asked."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.asked = tokenizer, collections.Counter[str]()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._tokenizer, name)


def test_each_token_is_spelled_once_whatever_asks_for_it(host: Hosted) -> None:
    tokenizer = Counting(host.loaded.tokenizer)
    engine = Engine(replace(host.loaded, tokenizer=tokenizer), 2)
    requests = [Generation([5], Sampling(8, temperature=0, ignore_end=True, logprobs=20), lambda _: None) for _ in range(4)]
    engine.start()
    engine.submit(*requests[:3])
    wait_until("three answers", lambda: all(each.tokens == 8 for each in requests[:3]))
    assert tokenizer.asked["encode"] == 1
    spelled = tokenizer.asked["convert_ids_to_tokens"]
    engine.submit(requests[3])
    engine.stop(30)
    assert requests[3].tokens == 8
    assert (tokenizer.asked["encode"], tokenizer.asked["convert_ids_to_tokens"]) == (1, spelled), "a later request finds them"
    assert 0 < spelled <= len(host.loaded.tokenizer)


def test_what_cannot_be_is_told_in_a_number_that_json_has(host: Hosted) -> None:
    scores = logprobs.Scores(logprobs.Speller(host.loaded.tokenizer), 2)
    scores.add(7, torch.tensor([0.0, *[-math.inf] * 9]), 0, "a")
    [found] = scores.before(None)
    assert (found.logprob, [logprob for _, logprob in found.others]) == (logprobs.IMPOSSIBLE, [0.0, logprobs.IMPOSSIBLE])


async def test_temperature_0_is_greedy_and_a_seed_draws_the_same_among_others(concurrent: openai.AsyncOpenAI) -> None:
    async def drawn(seed: int, temperature: float = 1.2) -> str:
        answer = await concurrent.chat.completions.create(**{**ASKED, "temperature": temperature}, seed=seed, max_tokens=24)
        return str(answer.choices[0].message.content)

    alone = await drawn(7)
    among = await asyncio.gather(*(drawn(seed) for seed in (1, 7, 2, 3)))
    assert among[1] == alone
    assert len(set(among)) == 4
    assert len({await drawn(seed, 0.0) for seed in (1, 2, 3)}) == 1


def test_several_answers_are_each_whole_and_streamed_alike(client: openai.OpenAI, host: Hosted) -> None:
    request = {"temperature": 1.3, "seed": 5, "max_tokens": 20, "n": 3, "logprobs": True, "top_logprobs": 1}
    whole = asked(client, "chat", **request)
    alone = [asked(client, "chat", **{**request, "seed": seed, "n": 1}) for seed in (5, 6, 7)]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [choice.message.content for choice in whole.choices] == [each.choices[0].message.content for each in alone]
    assert whole.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert whole.usage.completion_tokens == sum(each.usage.completion_tokens for each in alone)
    chunks = list(asked(client, "chat", **request, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        assert [each.finish_reason for each in own if each.finish_reason] == [choice.finish_reason]
        told = [token.token for each in own if each.logprobs for token in each.logprobs.content]
        assert told == [token.token for token in choice.logprobs.content]
    assert len({choice.message.content for choice in asked(client, "chat", n=3, max_tokens=8).choices}) == 1, "greedy"


def test_several_answers_are_queued_together_or_not_at_all(host: Hosted) -> None:
    engine = Engine(host.loaded, 1)
    requests = [Generation([5], Sampling(1), print) for _ in range(17)]
    with pytest.raises(QueueFull):
        engine.submit(*requests)
    assert engine.waiting == 0
    engine.submit(*requests[:16])
    assert engine.waiting == 16
    with pytest.raises(QueueFull):
        engine.submit(requests[16])


async def test_streams_side_by_side_are_each_whole_and_right(concurrent: openai.AsyncOpenAI, host: Hosted) -> None:
    loaded, order = host.loaded, []
    lengths = (60, 20, 45, 9, 33, 1)

    async def streamed(index: int) -> tuple[str, int]:
        request = {"model": NAME, "prompt": PROMPTS[index], "temperature": 0, "max_tokens": lengths[index]}
        stream = await concurrent.completions.create(**request, stream=True, stream_options={"include_usage": True})
        parts, used = [], 0
        async for chunk in stream:
            order.append(index)
            parts += [choice.text for choice in chunk.choices]
            used = chunk.usage.completion_tokens if chunk.usage else used
        return "".join(parts), used

    found = await asyncio.gather(*(streamed(index) for index in range(len(PROMPTS))))
    for index, (text, used) in enumerate(found):
        ids = generated(loaded, list(loaded.tokenizer(PROMPTS[index])["input_ids"]), lengths[index])
        assert text == text_of(loaded, ids)
        assert used in (len(ids), len(ids) + 1)
    assert order.index(1) < len(order) - 1 - order[::-1].index(0), "the second began before the first had ended"
    turns = sum(one != other for one, other in itertools.pairwise(order))
    assert turns > 20, "they take turns at every token"


def test_a_client_that_goes_away_in_the_middle_of_a_stream_frees_its_slot(host: Hosted) -> None:
    with hosted(host.loaded, slots=1) as found, openai.OpenAI(base_url=found.url, api_key="-", max_retries=0) as client:
        stream = client.completions.create(
            model=NAME, prompt="This", temperature=0, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        [long] = found.engine._batch.rows
        stream.close()
        assert client.completions.create(model=NAME, prompt="This", max_tokens=3, temperature=0, timeout=30).usage
        assert long.cancelled
        assert long.tokens < 2000
        wait_until("nothing is held", lambda: found.server.held == found.engine.running == 0, 5)
        counted(found, "499", "/v1/completions")


def test_a_client_that_is_seen_to_be_gone_at_a_write_is_no_failure_of_the_server(host: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> bytes:
        raise ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(Answer, "piece", gone)
    with hosted(host.loaded) as found, openai.OpenAI(base_url=found.url, api_key="-", max_retries=0) as client:
        with pytest.raises((openai.APIError, httpx2.RemoteProtocolError)):
            list(client.chat.completions.create(**ASKED, stream=True))
        counted(found, "499", "/v1/chat/completions")


def counted(found: Hosted, code: str, path: str) -> None:
    """Wait until one request has ended so: the client may know it before the server has counted it."""
    line = f'finetune_server_requests_total{{code="{code}",path="{path}"}} 1.0'
    wait_until(line, lambda: line in found.server.metrics.exposition().decode(), 5)


def test_a_failure_in_the_middle_of_a_stream_is_the_clients_error(host: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = itertools.count()
    step = Batch.step

    def failing(batch: Batch) -> torch.Tensor:
        if next(steps) in (4, 5):
            raise RuntimeError("no memory")
        return step(batch)

    monkeypatch.setattr(Batch, "step", failing)
    with hosted(host.loaded) as found, openai.OpenAI(base_url=found.url, api_key="-", max_retries=0) as client:
        stream = client.chat.completions.create(**ASKED, max_tokens=40, stream=True)
        with pytest.raises(openai.APIError, match="no memory"):
            list(stream)
        counted(found, "500", "/v1/chat/completions")
        with pytest.raises(openai.InternalServerError, match="no memory"):
            client.chat.completions.create(**ASKED, max_tokens=4)
        assert client.chat.completions.create(**ASKED, max_tokens=4).usage, "the next one is answered"


def test_what_cannot_be_taken_now_says_when_to_try_again(host: Hosted) -> None:
    with hosted(host.loaded) as found, openai.OpenAI(base_url=found.url, api_key="-", max_retries=0) as client:
        found.server.ready = False
        with pytest.raises(openai.InternalServerError) as refused:
            client.models.list()
    assert (refused.value.status_code, refused.value.code, refused.value.response.headers["retry-after"]) == (503, "loading", "5")


@pytest.fixture
def process(work: Path, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A server of its own, ready, and its address."""
    (port,) = loopback.free_ports(1)
    argv = ["serve", "--model", str(work / "models" / "tiny"), "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    with running(tmp_path / "server", [*argv, "--threads", "1"]) as stage:
        url = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client:

            def ready() -> bool:
                try:
                    return bool(client.models.list().data)
                except openai.APIError:
                    return not stage.process.is_alive()

            wait_until("readiness", ready)
        yield stage, url


async def test_streams_under_way_are_finished_when_the_server_is_asked_to_end(process: tuple[Any, str]) -> None:
    stage, url = process
    request: dict[str, Any] = {**ASKED, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
    begun = asyncio.Semaphore(0)

    async def streamed(client: openai.AsyncOpenAI) -> list[Any]:
        chunks = []
        async for chunk in await client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
            chunks.append(chunk)
            begun.release()
        return chunks

    async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as client:
        streams = [asyncio.create_task(streamed(client)) for _ in range(3)]
        whole = asyncio.create_task(client.chat.completions.create(**request))
        for _ in range(12):
            await begun.acquire()
        stage.signal(signal.SIGTERM)
        assert not any(stream.done() for stream in streams)
        async with httpx2.AsyncClient() as late:
            while (await late.get(url.replace("/v1", "/readyz"))).status_code != 503:
                await asyncio.sleep(0.02)
            told = await late.get(f"{url}/models")
        assert (told.status_code, told.headers["connection"]) == (200, "close"), "who comes all the same is told to come again elsewhere"
        answer = await whole
        for chunks in await asyncio.gather(*streams):
            assert joined(chunks) == answer.choices[0].message.content
            assert chunks[-1].usage == answer.usage
    stage.ends(0)
