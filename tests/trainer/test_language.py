"""Rows in other languages are left out where languages are asked for, and only where it is sure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.data.formats import Row, RowError
from finetune_trainer.data.language import Languages
from finetune_trainer.exits import UserError

from tests.trainer.support import EXAMPLES

TURNS = {
    "en": "Press the reset button for ten seconds, then wait until the light turns green.",
    "de": "Bitte halten Sie die Taste zehn Sekunden lang gedrückt und warten Sie, bis das Licht grün leuchtet.",
    "fr": "Bonjour, je voudrais savoir comment changer le mot de passe de mon compte.",
    "es": "Hola, quisiera saber cómo puedo cambiar la contraseña de mi cuenta, por favor.",
    "zh": "您好，请问我应该怎样才能重新设置我的账户密码呢？谢谢您的帮助。",
}


def conversation(user: str, assistant: str, rejected: str = "", system: str = "") -> Row:
    first = ({"role": "system", "content": system},) if system else ()
    asked = {"role": "user", "content": user}
    other = (asked, {"role": "assistant", "content": rejected}) if rejected else ()
    return Row("rows", 1, (*first, asked, {"role": "assistant", "content": assistant}), "", other)


@pytest.mark.parametrize("language", TURNS)
def test_a_turn_is_told_by_its_language(language: str) -> None:
    row = conversation("Hello.", TURNS[language])
    assert Languages([language], 90).check(row) is row
    others = [name for name in TURNS if name != language]
    with pytest.raises(RowError, match=rf"turn 2 \(assistant\) is in another language: {language} \(\d+ % sure\), not {', '.join(others)}"):
        Languages(others, 75).check(row)


REFUSED = {
    "a question": (conversation(TURNS["fr"], TURNS["en"]), r"turn 1 \(user\)"),
    "a question after a system turn": (conversation(TURNS["fr"], TURNS["en"], system="Be brief."), r"turn 2 \(user\)"),
    "the answer that is not preferred": (conversation(TURNS["en"], TURNS["en"], rejected=TURNS["de"]), "the rejected answer"),
}


@pytest.mark.parametrize(("row", "words"), REFUSED.values(), ids=REFUSED)
def test_a_row_is_refused_for(row: Row, words: str) -> None:
    with pytest.raises(RowError, match=words):
        Languages(["en"], 90).check(row)


UNSURE = {
    "a word": "Ja.",
    "a label": "billing",
    "SQL": "SELECT name, COUNT(*) FROM orders GROUP BY name ORDER BY 2 DESC LIMIT 5",
    "a program": "def f(x):\n    return [y * 2 for y in x if y > 3]",
    "JSON": '{"label": "billing", "urgent": true}',
    "a system turn's text alone": "",
}


@pytest.mark.parametrize("text", UNSURE.values(), ids=UNSURE)
def test_what_is_in_no_language_for_certain_is_let_through(text: str) -> None:
    row = conversation(TURNS["en"], text or TURNS["en"], system="" if text else TURNS["fr"])
    assert Languages(["en"], 90).check(row) is row


@pytest.mark.parametrize("name", ["support-labels/train.jsonl", "text-to-sql/questions.jsonl", "support-tone/train.jsonl"])
def test_no_row_of_the_examples_is_taken_for_another_language(name: str) -> None:
    texts = []
    for line in (EXAMPLES / name).read_text().splitlines():
        value = json.loads(line)
        turns = value.get("messages") or [{"content": field} for field in value.values() if isinstance(field, str)]
        texts += [turn["content"] for turn in turns]
    languages = Languages(["en"], 90)
    for text in set(texts):
        languages.check(conversation("Hello.", text))


def test_a_code_that_stands_for_no_language_is_told_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"data\.quality\.languages: xx is none of") as found:
        Languages(["en", "xx"], 90)
    assert ", de, " in found.value.fix


def test_languages_are_not_looked_at_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.data.language._identifier", lambda: pytest.fail("the model was loaded"))
    assert Languages([], 90).check(conversation(TURNS["fr"], TURNS["de"]))


def test_the_model_comes_with_the_package_and_is_small() -> None:
    import py3langid

    files = [path for path in Path(py3langid.__file__).parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6 << 20
