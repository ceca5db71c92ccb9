"""Raw rows to conversations, and the reasons for those that cannot be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data import formats, reading
from finetune_trainer.exits import UserError


def turns(*texts: str) -> tuple[dict[str, str], ...]:
    roles = ("user", "assistant")
    return tuple({"role": roles[index % 2], "content": text} for index, text in enumerate(texts))


def converted(content: str, wanted: str = "Auto") -> tuple[list[formats.Row], dict[int, str]]:
    path = Path(tempfile.mkstemp()[1])
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    raws = list(reading.read(reading.DataFile("configmap://a/b", path)))
    path.unlink()
    wanted = formats.detect("configmap://a/b", raws) if wanted == "Auto" else wanted
    good: list[formats.Row] = []
    bad: dict[int, str] = {}
    for raw in raws:
        try:
            good.append(formats.convert(raw, wanted))
        except formats.RowError as error:
            bad[raw.row] = str(error)
    return good, bad


CONVERSATIONS = {
    "messages": ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', turns("a", "b")),
    "a prompt and its completion": ('{"prompt": "a", "completion": "b"}', turns("a", "b")),
    "a prompt and its completion as turns": (
        '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}', turns("a", "b"),
    ),
    "an instruction without input": ('{"instruction": "a", "output": "b"}', turns("a", "b")),
    "an instruction with an input goes into one turn": ('{"instruction": "a", "input": "c", "output": "b"}', turns("a\n\nc", "b")),
    "input and output": ('{"input": "a", "output": "b"}', turns("a", "b")),
    "a system text comes first": (
        '{"system": "s", "input": "a", "output": "b"}', ({"role": "system", "content": "s"}, *turns("a", "b")),
    ),
    "a text, whatever is beside it": ('{"text": " a\\n", "id": 7}', ({"role": "text", "content": " a\n"},)),
    "a text beside what it was made of is not looked at": ('{"instruction": "a", "output": "b", "text": "a b"}', turns("a", "b")),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_every_format_is_recognised(line: str, expected: tuple[Any, ...]) -> None:
    good, bad = converted(line)
    assert (good[0].messages, bad) == (expected, {})


REASONS = {
    "text that is not JSON": ("{broken", "not JSON"),
    "a number": ("7", "not a JSON object but a number"),
    "a missing field": ('{"prompt": "a"}', "field completion is missing"),
    "a field that is no text": ('{"prompt": "a", "completion": 3}', "field completion is a number, not text"),
    "an empty answer": ('{"prompt": "a", "completion": "  "}', "turn 2 (assistant) is empty"),
    "an answer of which nothing can be seen": ('{"prompt": "a", "completion": " \\u200b\\ufeff"}', "turn 2 (assistant) is empty"),
    "bytes that are no UTF-8": ('{"prompt": "\udcff", "completion": "b"}', "not UTF-8"),
    "half of a surrogate pair": ('{"prompt": "a", "completion": "\\ud800"}', "half of a surrogate pair"),
    "a plain text": ('{"text": "a"}', "it is Text, but the file is PromptCompletion: keep one format a file"),
}


@pytest.mark.parametrize(("line", "reason"), REASONS.values(), ids=REASONS)
def test_a_bad_row_is_told_by_its_line_number_and_reason(line: str, reason: str) -> None:
    good, bad = converted('{"prompt": "a", "completion": "b"}\n\n' + line, "PromptCompletion")
    assert len(good) == 1
    assert list(bad) == [3]
    assert reason in bad[3]


TURNS = {
    "the last turn is the user's": ([("user", "a"), ("assistant", "b"), ("user", "c")], "the last turn is user, not assistant"),
    "two turns of one role": ([("user", "a"), ("user", "b"), ("assistant", "c")], "turns 1 and 2 are both user"),
    "a system turn in the middle": ([("user", "a"), ("system", "s"), ("assistant", "b")], "a system turn may only come first"),
    "no user": ([("system", "s"), ("assistant", "b")], "there is no user turn"),
    "one turn": ([("assistant", "b")], "a conversation needs a user and an assistant turn"),
}


@pytest.mark.parametrize(("found", "reason"), TURNS.values(), ids=TURNS)
def test_turns_that_are_no_conversation(found: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(formats.RowError, match=reason):
        formats.check([{"role": role, "content": content} for role, content in found])


def test_an_unknown_role_is_named_with_its_turn() -> None:
    _, bad = converted('{"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]}')
    assert bad == {1: "turn 1 of messages has role 'robot', not one of system, user, assistant"}


def test_of_a_long_role_or_name_the_beginning_is_told() -> None:
    """Role and content were mixed up: each of a thousand such reasons is kept, and shown on the page."""
    _, bad = converted('{"messages": [{"role": "' + "where is it " * 1000 + '", "content": "user"}]}')
    assert bad == {1: f"turn 1 of messages has role '{'where is it ' * 4}where is i…, not one of system, user, assistant"}
    with pytest.raises(UserError, match=r"fields found: q{59}…, b; row 2: not JSON"):
        converted('{"' + "q" * 1000 + '": 1, "b": 2}\n{')


def test_an_answer_that_is_not_to_be_learnt_is_no_answer_that_is() -> None:
    """As OpenAI's own rows may say of a turn."""
    asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    good, bad = converted("\n".join(json.dumps({"messages": [asked, {**answered, "weight": weight}]}) for weight in (1, 0, None)))
    assert [row.row for row in good] == [1, 3]
    assert bad == {2: "turn 2 of messages has a weight that is not 1: every answer of a row is learnt from"}


def test_a_turn_without_text_is_told_by_its_number() -> None:
    _, bad = converted('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}')
    assert bad == {1: "turn 2 of messages: field content is null, not text"}


def test_a_file_of_which_no_row_can_be_read_is_told_with_the_first_reason() -> None:
    with pytest.raises(UserError, match=r"none of the first rows is a JSON object; row 1: not UTF-8: .* at byte 13") as found:
        converted('{"input": "tr\udce8s", "output": "bien"}\n')
    assert found.value.fix == "Write one JSON object a line, in UTF-8."


def test_fields_that_fit_no_format_are_listed() -> None:
    with pytest.raises(UserError, match=r"fields found: question, answer"):
        converted('{"question": "a", "answer": "b"}')


@pytest.mark.parametrize("field", ["prompt", "completion", "instruction", "input", "output", "chosen", "rejected"])
def test_a_text_beside_a_field_of_another_format_is_taken_for_one_where_that_is_named_alone(field: str) -> None:
    line = json.dumps({"text": "a", field: None})
    with pytest.raises(UserError, match=f"fields found: text, {field}") as found:
        converted(line)
    assert found.value.fix.endswith("or text alone.")
    assert [row.response for row in converted(line, "Text")[0]] == ["a"]


def test_a_table_of_one_column_may_hold_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"Two lamps,\nold ones."\nOne chair.\n')
    raws = list(reading.read(reading.DataFile("pvc://sets/a.csv", tmp_path / "a.csv")))
    wanted = formats.detect("pvc://sets/a.csv", raws)
    assert [(raw.row, formats.convert(raw, wanted).response) for raw in raws] == [(2, "Two lamps,\nold ones."), (4, "One chair.")]


def test_a_text_and_an_answer_of_the_same_words_are_two_contents() -> None:
    (one,), _ = converted('{"text": "a"}')
    (two,), _ = converted('{"prompt": "a", "completion": "a"}')
    assert (one.plain, two.plain, one.digest != two.digest) == (True, False, True)


def test_a_json_array_and_a_byte_order_mark_are_read() -> None:
    good, _ = converted('\ufeff[{"input": "a", "output": "b"},\n {"input": "c", "output": "d"}]')
    assert [row.row for row in good] == [1, 2]


def test_the_digest_looks_at_content_alone() -> None:
    (one, two, three), _ = converted(
        '{"input": "a", "output": "b "}\n{"input": " a", "output": "b", "id": 7}\n{"input": "a", "output": "B"}', "InputOutput"
    )
    assert one.digest == two.digest != three.digest


def test_a_row_of_another_format_is_told_apart_from_one_that_lacks_a_field() -> None:
    pair = '{"prompt": "a", "completion": "b"}\n'
    _, bad = converted(2 * pair + '{"input": "a", "output": "b"}\n{"prompt": "e"}')
    assert bad == {3: "it is InputOutput, but the file is PromptCompletion: keep one format a file", 4: "field completion is missing"}
