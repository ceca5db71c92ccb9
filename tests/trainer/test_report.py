"""The prepare page: all of it on one page, nothing from outside, nothing of the user's text as markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from finetune_trainer import compare
from finetune_trainer.compare import Option
from finetune_trainer.data import report
from finetune_trainer.data.formats import Rejected
from finetune_trainer.data.ledger import EXAMPLES, GROUPS, LISTED, Ledger

EVIL = "<script>alert('x')</script><img src=https://example.com/x onerror=\"y\">&amp;"
VOID = {"meta", "rect", "line"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def document(text: str = "word", **changes: Any) -> dict[str, Any]:
    return {
        "finetune": text,
        "rows": {"read": 1200, "train": 800, "validation": 100, "test": 100},
        "tokens": {"train": 40_000, "supervised": 10_000},
        "totalSteps": 150, "tokensPerStep": 800, "stepsPerEpoch": 50, "minResponseCharacters": 10,
        "leftOut": [
            {"kind": "Invalid", "reason": text, "count": 200, "examples": [{"source": text, "row": 31, "reason": text, "text": text}]},
        ],
        "warnings": [text],
        "lengths": {"train": report.histogram(range(800)), "validation": report.histogram([5]), "test": []},
        "examples": [{"source": text, "row": 7, "parts": [{"text": text, "supervised": False}, {"text": text, "supervised": True}]}],
        "sources": [{"source": text, "use": "train", "format": "Messages", "rows": 1200}],
        "estimate": {"longest": 60, "memoryBytes": 3 * 2**30, "seconds": 5400, "passTokens": 8192},
        "advice": [{"code": "Code", "message": text, "fix": text}],
        "methods": compare.told([Option(text, True, 10, 2**30, 4, 7200, 8.0), Option("LoRA", False, 10, 2**30, None, 60, 0.1)]),
        "accelerator": text,
        **changes,
    }  # fmt: skip


def test_whatever_the_data_hold_is_text() -> None:
    plain, evil = Page(report.render(document())), Page(report.render(document(EVIL)))
    assert evil.tags == plain.tags
    assert evil.attributes == plain.attributes
    assert evil.text.count(EVIL) == plain.text.count("word") - plain.text.count("words")


def test_nothing_comes_from_outside() -> None:
    page = report.render(document())
    assert not Page(page).tags & {"script", "link", "img", "iframe", "a"}
    assert re.findall(r"https?:|url\(|@import|src=", page) == []


SHOWN = {
    "sizes of the splits with their shares": "train 800 80.0 %",
    "the share of supervised tokens": "25.0 %",
    "a row that was left out, by file and number": "word row 31: word",
    "where a rendered row is from": "word row 7",
    "the time of the run": "time, estimated90 min",
    "its memory": "3.0 GiB",
    "what another method would take": "LoRA101.0 GiBnone up to 51260 s0.10",
}


@pytest.mark.parametrize("words", SHOWN.values(), ids=SHOWN)
def test_the_page_shows(words: str) -> None:
    assert words in " ".join(Page(report.render(document())).text.split())


def test_supervised_tokens_alone_are_marked() -> None:
    parts = [{"text": "asked", "supervised": False}, {"text": "said", "supervised": True}]
    page = report.render(document(examples=[{"source": "s", "row": 1, "parts": parts}]))
    assert "<pre>asked<mark>said</mark></pre>" in page


def test_a_page_without_warnings_or_losses_says_so() -> None:
    page = report.render(document(warnings=[], leftOut=[], examples=[]))
    assert "Warnings" not in page
    assert "None." in page


def test_bins_are_of_equal_width_and_hold_everything() -> None:
    bins = report.histogram([1, 1, 5, 100], bins=10)
    assert (bins[0], bins[-1]) == ({"from": 1, "to": 10, "count": 3}, {"from": 91, "to": 100, "count": 1})
    assert sum(entry["count"] for entry in bins) == 4
    assert report.histogram([]) == []


def test_a_ledger_groups_reasons_without_their_particulars() -> None:
    ledger = Ledger()
    for number in range(5):
        ledger.add("Invalid", Rejected("f", number, f"turn {number} has role 'r{number}', not one of a: b"), lambda: "x" * 1000)
    ledger.add("NearDuplicate", Rejected("f", 9, "near-duplicate: of row 3 of f"), lambda: "a\n b")
    first, second = ledger.groups()
    assert (first["kind"], first["reason"], first["count"], len(first["examples"])) == (
        "Invalid",
        "turn … has role …, not one of a",
        5,
        EXAMPLES,
    )
    assert [len(example["text"]) for example in first["examples"]] == [200] * EXAMPLES
    assert second["examples"] == [{"source": "f", "row": 9, "reason": "near-duplicate: of row 3 of f", "text": "a b"}]


def test_a_ledger_stays_small_whatever_the_reasons() -> None:
    ledger = Ledger()
    for number in range(2 * LISTED):
        ledger.add("Invalid", Rejected("f", number, f"reason {'x' * number}"), lambda: "")
    assert (len(ledger.invalid), ledger.counts["Invalid"]) == (LISTED, 2 * LISTED)
    assert len(ledger.groups()) == GROUPS + 1
