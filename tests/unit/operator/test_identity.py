"""The Lua that reads identities from bodies, in a Lua 5.1, against Python's own JSON. What Envoy makes of it: tests/router."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from finetune_operator.build.identity import BODY_BYTES, SCRIPT, USER_HEADER, context, headers
from finetune_operator.traffic import Backend, Source, Structure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lupa.lua51 import LuaRuntime

USER, SAFETY, TENANT = Source(body_field="user"), Source(body_field="safety_identifier"), Source(header="x-tenant")
LUA = LuaRuntime(encoding=None)
LUA.execute(SCRIPT)
# A stand-in for Envoy's handle: headers in a table, the body as a string; it says what was asked of it.
HANDLE = LUA.eval(
    """function(context, sent, text)
      local added, buffered = {}, false
      local headers = {}
      function headers:get(name) return sent[string.lower(name)] end
      function headers:add(name, value) added[#added + 1] = {name, value} end
      local body = {}
      function body:length() return #text end
      function body:getBytes(from, count) return string.sub(text, from + 1, from + count) end
      local handle, wrapped = {}, {}
      function wrapped:get(name) return context[name] end
      function handle:filterContext() return wrapped end
      function handle:headers() return headers end
      function handle:body()
        buffered = true
        return text and body
      end
      envoy_on_request(handle)
      return added, buffered
    end"""
)


def structure(*sources: Source) -> Structure:
    return Structure(Backend("a", "a", "r1"), None, "salt", sources)


def asked(
    body: bytes | str | None, sources: Sequence[Source] = (USER,), sent: Mapping[str, str] | None = None, method: str = "POST"
) -> tuple[str | None, bool]:
    """The user whom the filter names (None: nobody), and whether it held the body."""
    text = body.encode() if isinstance(body, str) else body
    length = {} if text is None else {"content-length": str(len(text))}
    given = {":method": method, **length, **(sent or {})}
    table = {k.encode(): v.encode() for k, v in given.items()}
    added, buffered = HANDLE(_lua(context(structure(*sources))), LUA.table_from(table), text)
    pairs = [(pair[1].decode(), pair[2].decode("utf-8", "surrogateescape")) for pair in added.values()]
    assert all(name == USER_HEADER for name, _ in pairs)
    assert len(pairs) <= 1
    return (pairs[0][1] if pairs else None), buffered


def _lua(value: Any) -> Any:
    """A value as Envoy hands a protobuf Struct to Lua."""
    if isinstance(value, dict):
        return LUA.table_from({k.encode(): _lua(v) for k, v in value.items()})
    if isinstance(value, list):
        return LUA.table_from([_lua(v) for v in value])
    return value.encode() if isinstance(value, str) else value


NAMED: Mapping[str, tuple[str | bytes, str | None]] = {
    "a chat completion": ('{"model": "m", "messages": [{"role": "user", "content": "hi"}], "user": "ada"}', "ada"),
    "without any space": ('{"a":1,"user":"ada","b":[{}]}', "ada"),
    "with space everywhere": (' \r\n{\t"user" \n:\t"ada" \n } \n', "ada"),
    "a field of that name inside another": ('{"metadata": {"user": "eve"}, "messages": [{"user": "eve"}]}', None),
    "a text that looks like the field": (r'{"prompt": "\"user\": \"eve\",", "user": "ada"}', "ada"),
    "brackets in texts": ('{"prompt": "}]{[", "tools": [{"d": "]}"}], "user": "ada"}', "ada"),
    "a backslash before the quote that ends a text": (r'{"prompt": "\\", "user": "ada"}', "ada"),
    "the field twice": ('{"user": "ada", "user": "bob"}', "bob"),
    "the field twice, then as no text": ('{"user": "ada", "user": null}', None),
    "an escaped name and value": (r'{"us\u0065r": "\u0061d\u0061"}', "ada"),
    "letters beyond ASCII": ('{"user": "ünï名😀"}', "ünï名😀"),
    "the same, escaped": (json.dumps({"user": "ünï名😀"}), "ünï名😀"),
    "half of a surrogate pair": (r'{"user": "a\ud83db"}', "a\ufffdb"),
    "control characters": (r'{"user": "a\r\nx-evil: 1\u0000\u007f"}', "a%0D%0Ax-evil: 1%00%7F"),
    "spaces around it, which a header has not": ('{"user": " \\tada "}', "ada"),
    "nothing but spaces": ('{"user": "  "}', None),
    "an empty one": ('{"user": ""}', None),
    "a number": ('{"user": 7}', None),
    "null": ('{"user": null}', None),
    "a list": ('{"user": ["ada"]}', None),
    "an object": ('{"user": {"id": "ada"}}', None),
    "no such field": ('{"model": "m"}', None),
    "an empty object": ("{}", None),
    "a list of objects": ('[{"user": "ada"}]', None),
    "a text": ('"user"', None),
    "only spaces": ("  \n ", None),
    "no JSON": ("user=ada", None),
    "cut off in a name": ('{"user": "ada", "mo', None),
    "cut off in an object": ('{"user": "ada", "a": {"b": 1', None),
    "cut off behind the field": ('{"user": "ada"', None),
    "more behind the object": ('{"user": "ada"} {"user": "bob"}', None),
    "a name that is none": ('{user: "ada"}', None),
    "an escape that is none": (r'{"user": "\x41"}', None),
    "digits that are none": (r'{"user": "\u00zz"}', None),
    "bytes that are no UTF-8": (b'{"user": "a\xff"}', "a\udcff"),
    "a byte of zero": (b'{"a": "\x00", "user": "ada"}', "ada"),
    "two commas": ('{"a": 1,, "user": "ada"}', None),
}


@pytest.mark.parametrize(("body", "user"), NAMED.values(), ids=NAMED)
def test_who_is_named_in_a_body(body: str | bytes, user: str | None) -> None:
    assert asked(body)[0] == user


WORDS = st.text(max_size=12)
NAMES = st.sampled_from(["user", "safety_identifier", "model", "us\\er", 'us"er', "ユーザー", ""]) | WORDS
SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | WORDS
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(NAMES, st.lists(st.dictionaries(NAMES, SCALARS)), max_size=3)


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, VALUES, max_size=5), SCALARS, st.booleans(), st.sampled_from([None, 2]))
def test_any_json_is_read_as_python_reads_it(fields: dict[str, Any], user: Any, ascii_only: bool, indent: int | None) -> None:
    fields["user"] = user
    text = json.dumps(dict(reversed(fields.items())), ensure_ascii=ascii_only, indent=indent)
    assert asked(text.encode("utf-8", "replace"))[0] == named(user)


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary() | st.text('{}[]":,\\u user09ad ').map(str.encode))
def test_no_bytes_make_it_fail(body: bytes) -> None:
    found, _ = asked(body)
    try:
        read = json.loads(body)
    except ValueError:
        return  # the server will say so: nothing hangs on whom it names
    assert found == named(read.get("user") if isinstance(read, dict) else None)


def named(user: Any) -> str | None:
    """The identity that a field's value makes."""
    if not isinstance(user, str):
        return None
    text = user.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(f"%{ord(c):02X}" if ord(c) < 32 or ord(c) == 127 else c for c in text.strip(" \t")) or None


def test_sources_are_asked_in_their_order() -> None:
    both, one = '{"safety_identifier": "s-1", "user": "ada"}', '{"safety_identifier": "s-1"}'
    assert asked(both, (USER, SAFETY))[0] == "ada"
    assert asked(both, (SAFETY, USER))[0] == "s-1"
    assert asked(one, (USER, SAFETY))[0] == "s-1"
    assert asked('{"user": "", "safety_identifier": "s-1"}', (USER, SAFETY))[0] == "s-1", "an empty one names nobody"
    assert asked(both, (TENANT, USER))[0] == "ada"
    assert asked(both, (USER, TENANT), {"x-tenant": "acme"})[0] == "ada"
    assert asked(one, (USER, TENANT, SAFETY), {"x-tenant": "acme"}) == (None, True), "the header is before the only field that is there"
    assert asked(one, (USER, TENANT, SAFETY), {"x-tenant": ""})[0] == "s-1", "an empty header is none"


def test_a_body_is_held_only_if_it_may_decide() -> None:
    body = '{"user": "ada"}'
    held = {
        "named by a header before": asked(body, (TENANT, USER), {"x-tenant": "acme"}),
        "not sent": asked(body, method="GET"),
        "of no said length": asked(body, sent={"content-length": ""}),
        "empty": asked(""),
        "too long": asked(body, sent={"content-length": str(BODY_BYTES + 1)}),
    }
    assert held == dict.fromkeys(held, (None, False))
    assert asked(body, sent={"content-length": str(BODY_BYTES)}) == ("ada", True)
    assert asked(None, sent={"content-length": "9"}) == (None, True), "the client went away"


@pytest.mark.parametrize("filling", ["[", '"', "\\\\", "{}", '"\\n', " ", "0", "[]"])
def test_a_hostile_body_is_given_up_soon(filling: str) -> None:
    text = '{"a": "' + filling * (BODY_BYTES // len(filling) - 20) + '", "user": "ada"}'
    began = time.process_time()
    asked(text)
    asked(text.replace('"a": "', '"a": ', 1))
    asked(text.replace('"a": "', '"user": "b', 1).replace('", "user": "ada"', 'c"', 1))
    assert time.process_time() - began < 1


def test_a_long_prompt_is_no_hostile_body() -> None:
    line = 'a line of "code" \\ of ordinary length, with tabs\t and an end\n'
    assert asked(json.dumps({"messages": [{"content": line * 14_000}], "user": "ada"}))[0] == "ada"


def test_what_is_not_asked_of_bodies_holds_none() -> None:
    assert context(structure(TENANT)) is None
    assert headers(structure(TENANT)) == ("x-tenant",)
    assert headers(structure(TENANT, USER)) == (USER_HEADER, "x-tenant")
