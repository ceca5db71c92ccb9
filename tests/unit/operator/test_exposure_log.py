"""The Lua that marks requests for an A/B test's log, in LuaJIT, against Python's own HMAC. What Envoy makes of it: tests/router."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Rollout
from finetune_operator.build import exposure_log
from finetune_operator.build.exposure_log import Exposures
from finetune_operator.traffic import Backend, Source, Structure
from hypothesis import given
from hypothesis import strategies as st
from lupa.luajit21 import LuaRuntime

from tests.unit.operator.helpers import make_spec

KEY = b"correct horse battery staple"
OLD, NEW = Backend("a", "a", "r1"), Backend("b", "b", "r2")
SPLIT = Structure(OLD, NEW, "salt", (Source(body_field="user"), Source(header="x-user-id")))
PATHS = ("/v1/chat/completions",)
# A stand-in for Envoy's handle: what the filter is told, headers, an answer in chunks; it gives back the metadata.
HANDLE = """function(context, sent, chunks, encoding)
  local found, clock = nil, 1000
  local metadata, wrapped, headers, info, handle = {}, {}, {}, {}, {}
  function metadata:set(space, key, value) found = found or {}; found[key] = value end
  function metadata:get(space) return found end
  function wrapped:get(name) return context[name] end
  function headers:get(name) return sent[name] end
  function info:dynamicMetadata() return metadata end
  function handle:filterContext() return wrapped end
  function handle:headers() return headers end
  function handle:streamInfo() return info end
  function handle:timestamp() clock = clock + 7; return clock end
  function handle:bodyChunks()
    local at = 0
    return function()
      at = at + 1
      local text = chunks[at]
      if not text then return nil end
      local chunk = {}
      function chunk:length() return #text end
      function chunk:getBytes(from, count) return string.sub(text, from + 1, from + count) end
      return chunk
    end
  end
  envoy_on_request(handle)
  sent = {["content-encoding"] = encoding}
  envoy_on_response(handle)
  return found
end"""


def filter_under(key: bytes) -> tuple[Any, Any]:
    """(the Lua, the stand-in's function) of a router that was started with this key."""
    lua = LuaRuntime(encoding=None)
    lua.execute("local key = ...; os.getenv = function(name) return name == 'FINETUNE_EXPOSURE_KEY' and key or nil end", key)
    lua.execute(exposure_log.SCRIPT)
    return lua, lua.eval(HANDLE)


RUNNING = filter_under(KEY)


def marked(
    sent: Mapping[str, str], chunks: tuple[bytes, ...] = (), running: tuple[Any, Any] = RUNNING, encoding: str | None = None
) -> dict[str, Any]:
    """The metadata of a request with these headers that is answered so."""
    lua, handle = running
    told = exposure_log.context(Exposures("a1b2c3d4", 30), SPLIT, PATHS)
    given = {":method": "POST", ":path": PATHS[0], **sent}
    found = handle(_lua(lua, told), _lua(lua, given), lua.table_from(list(chunks)), encoding and encoding.encode())
    return {k.decode(): v.decode() if isinstance(v, bytes) else v for k, v in found.items()} if found else {}


def _lua(lua: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({k.encode(): _lua(lua, v) for k, v in value.items()})
    if isinstance(value, list):
        return lua.table_from([_lua(lua, v) for v in value])
    return value.encode() if isinstance(value, str) else value


def hashed(user: str, key: bytes = KEY) -> str:
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[: exposure_log.USER_DIGITS]


@given(st.text(min_size=1, max_size=300).filter(lambda t: "\0" not in t))
def test_a_user_is_a_keyed_hash_of_what_the_routes_hash(user: str) -> None:
    assert marked({"x-user-id": user})["user"] == hashed(user)


@given(st.binary(min_size=16, max_size=200).map(lambda b: b.replace(b"\0", b"x")).filter(lambda b: b.strip() == b))
def test_every_key_is_one(key: bytes) -> None:
    found = marked({"x-user-id": "ada"}, running=filter_under(key))
    assert found["user"] == hashed("ada", key)
    assert found["key"] == hashed("", key)[: exposure_log.KEY_DIGITS]


@pytest.mark.parametrize("key", [b"", b"fifteen letters", b"   fifteen letters\n"])
def test_without_a_key_that_cannot_be_guessed_nobody_is_marked(key: bytes) -> None:
    assert marked({"x-user-id": "ada"}, running=filter_under(key)) == {}


def test_a_newline_behind_a_key_is_no_part_of_it() -> None:
    assert marked({"x-user-id": "ada"}, running=filter_under(KEY + b"\n"))["user"] == hashed("ada")


def test_the_first_source_that_names_somebody_counts_as_it_does_for_the_routes() -> None:
    assert marked({"x-finetune-user": "ada", "x-user-id": "bob"})["user"] == hashed("ada")
    assert marked({"x-finetune-user": "", "x-user-id": "bob"})["user"] == hashed("bob")


NOT_MARKED: dict[str, Mapping[str, str]] = {
    "nobody": {},
    "an empty name": {"x-user-id": ""},
    "another path": {"x-user-id": "ada", ":path": "/v1/embeddings"},
    "another method": {"x-user-id": "ada", ":method": "GET"},
}


@pytest.mark.parametrize("case", NOT_MARKED)
def test_who_is_not_marked(case: str) -> None:
    assert marked(NOT_MARKED[case]) == {}


WHOLE = b'{"id": "chatcmpl-1", "choices": [%s], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "details": {"x": 1}}}'
# chunks of an answer → its id, tokens of the prompt, tokens of the answer
ANSWERS: dict[str, tuple[tuple[bytes, ...], tuple[Any, Any, Any]]] = {
    "whole": ((WHOLE % b"",), ("chatcmpl-1", 3, 4)),
    "in many chunks": ((WHOLE[:30], *(bytes([b]) for b in WHOLE[30:])), ("chatcmpl-1", 3, 4)),
    "a long one": ((WHOLE[:20], b"x" * 100_000, WHOLE[20:]), ("chatcmpl-1", 3, 4)),
    "without usage": ((b'data: {"id":"c-1"}\n\n', b"data: [DONE]\n\n"), ("c-1", None, None)),
    "usage that is null": ((b'{"id":"c-1","usage":null}',), ("c-1", None, None)),
    "what an answer quotes": ((rb'{"id":"c-1","text":"\"usage\": {\"completion_tokens\": 99}"}',), ("c-1", None, None)),
    "no JSON": ((b"<html>",), (None, None, None)),
    "an id with an escape": ((rb'{"id":"c\"1"}',), (None, None, None)),
    "empty chunks": ((b"", b'{"id":"c-1"}', b""), ("c-1", None, None)),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_read_of_an_answer(case: str) -> None:
    chunks, (response, prompt, completion) = ANSWERS[case]
    found = marked({"x-user-id": "ada"}, chunks)
    assert (found.get("response"), found.get("prompt_tokens"), found.get("completion_tokens")) == (response, prompt, completion)
    assert found["first_ms"] == 7


def test_of_a_compressed_answer_the_time_alone_is_read() -> None:
    found = marked({"x-user-id": "ada"}, (WHOLE % b"",), encoding="gzip")
    assert "first_ms" in found
    assert not {"response", "completion_tokens"} & found.keys()


def asked(**experiment: Any) -> Callable[[Rollout | None], Exposures | None]:
    spec = Spec.model_validate(make_spec(rollout={"experiment": experiment} if experiment else {}))
    return lambda running: exposure_log.wanted(spec, running)


def test_a_log_is_kept_only_where_it_is_asked_for() -> None:
    running = Rollout(name="a1b2c3d4", arm="b", revision="r2", stable="a", state="Holding", weight=30)
    assert asked()(running) is None
    assert asked(weight=30)(running) is None
    log = asked(weight=30, log={"secretName": "ab"})
    assert log(running) == Exposures("a1b2c3d4", 30)
    assert log(None) is None
    assert exposure_log.context(log(running), Structure(OLD, None, "salt", SPLIT.identity), PATHS) is None
