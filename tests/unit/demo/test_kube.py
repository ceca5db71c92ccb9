"""kubectl's stream of documents, and what it says when it fails."""

from __future__ import annotations

import sys

import pytest

from demo.kube import DemoError, Documents, Kubectl


def test_documents_are_found_wherever_the_stream_is_cut() -> None:
    text = '{"a": {"b": 1}}\n{"c": "}{"}\n'
    for cut in range(len(text)):
        decoder = Documents()
        assert [*decoder.feed(text[:cut]), *decoder.feed(text[cut:])] == [{"a": {"b": 1}}, {"c": "}{"}]


def python(script: str) -> Kubectl:
    return Kubectl((sys.executable, "-c", script))


def test_a_failed_command_says_what_kubectl_said() -> None:
    with pytest.raises(DemoError, match="no such thing"):
        python("import sys; sys.exit('no such thing')")("get", "x")


def test_an_object_that_is_not_there_is_none() -> None:
    assert python("pass").get("pod", "x") is None
    assert python('print(\'{"kind": "Pod"}\')').get("pod", "x") == {"kind": "Pod"}


async def test_a_watch_gives_each_version() -> None:
    seen = []
    async for document in python('print(\'{"n": 1}{"n": 2}\')').watch("pod"):
        seen.append(document["n"])
        if len(seen) == 2:
            break
    assert seen == [1, 2]
