"""Personal data and secrets in conversations: found by their form, warned of, blacked out or refused.

Found are e-mail addresses, telephone numbers (with +, or of three and more groups), payment cards (13 to 19 digits with a
valid Luhn sum) and keys (of clouds, code hosts, chat services, model hubs; JSON web tokens; private keys). A form is no
proof: names and postal addresses have none, and are not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from finetune_trainer.data.formats import Message, Row, RowError, content_digest
from finetune_trainer.exits import UserError

Policy = Literal["Warn", "Redact", "Fail"]
NAMES = {"email": "e-mail addresses", "phone": "telephone numbers", "card": "card numbers", "key": "keys or tokens"}
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
_DIGITS = re.compile(r"(?<![\w.,/=-])\+?\(?\d[\d ().-]{5,22}\d(?![\w/=]|[.,-]\d)")
_KEY = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{30,}|\bAIza[0-9A-Za-z_-]{35}"
)
# A web token's first part, with what may stand before it, whole; and the others, which are not taken: the next may begin with them.
_WEB = re.compile(r"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]{13,}+)(?=(\.eyJ[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]++))")
_WEB_BEGIN = re.compile(r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10}")
_BEGIN, _END = (re.compile(rf"-----{word} [A-Z ]*PRIVATE KEY-----") for word in ("BEGIN", "END"))
_KEY_MARKS = ("AKIA", "ASIA", "gh", "glpat-", "sk-", "xox", "hf_", "AIza")
_WEB_MARK = ".eyJ"
_NO_PHONE = re.compile(r"\d{4}-\d{2}-\d{2}\b|\d{1,2}[.-]\d{1,2}[.-]\d{4}\b|\d{1,3}(?:\.\d{1,3}){3}$")  # dates, and addresses of hosts
_GROUPS = re.compile(r"\d+")
CARD_DIGITS, PHONE_DIGITS = range(13, 20), range(8, 16)


def find(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, kind) of what looks personal or secret in `text`, in time that grows with its length alone."""
    if "@" in text:
        yield from ((*match.span(), "email") for match in _EMAIL.finditer(text))
    for match in _DIGITS.finditer(text):
        if kind := _number_kind(match.group()):
            yield *match.span(), kind
    if any(mark in text for mark in _KEY_MARKS):
        yield from ((*match.span(), "key") for match in _KEY.finditer(text))
    if _WEB_MARK in text:
        yield from ((*span, "key") for span in _web_tokens(text))
    yield from ((*span, "key") for span in _private_keys(text))


def _web_tokens(text: str) -> Iterator[tuple[int, int]]:
    """Where JSON web tokens are, each begun where its first part does: behind a hyphen too, which parts may hold themselves. Those that
    share a part are one."""
    first, end = 0, 0
    for match in _WEB.finditer(text):
        begin = _WEB_BEGIN.search(text, *match.span(1))
        if begin is None:
            continue
        if begin.start() >= end:
            if end:
                yield first, end
            first = begin.start()
        end = match.end(2)
    if end:
        yield first, end


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    """From where a private key begins to where one ends; of what ends nowhere its first line, so that the end is looked for once."""
    at, ends = 0, True
    while begin := _BEGIN.search(text, at):
        end = _END.search(text, begin.end()) if ends else None
        ends = end is not None
        at = (end or begin).end()
        yield begin.start(), at


def _number_kind(text: str) -> str:
    groups = _GROUPS.findall(text)
    digits = "".join(groups)
    if len(digits) in CARD_DIGITS and luhn(digits):
        return "card"
    looks = text.startswith("+") or (len(groups) >= 3 and len(digits) >= 10 and not _NO_PHONE.match(text))
    return "phone" if looks and len(digits) in PHONE_DIGITS else ""


def luhn(digits: str) -> bool:
    """Whether the digits' Luhn sum is valid, and they are not all the same."""
    total = sum(int(digit) if place % 2 == 0 else sum(divmod(2 * int(digit), 10)) for place, digit in enumerate(reversed(digits)))
    return total % 10 == 0 and len(set(digits)) > 1


def redacted(text: str) -> str:
    """`text` with each find replaced by its kind in brackets."""
    done, parts = 0, []
    for start, end, kind in sorted(find(text)):
        if start >= done:
            parts += [text[done:start], f"[{kind}]"]
        done = max(done, end)
    return "".join([*parts, text[done:]])


def _redacted(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple({**message, "content": redacted(message["content"])} for message in messages)


class Scan:
    """Applies a policy to row after row, and counts the rows in which something was found."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.rows: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def apply(self, row: Row) -> Row:
        """The row, redacted where that is the policy. Raises RowError for a pair of which nothing else tells the answers apart."""
        kinds = {kind for message in (*row.messages, *row.rejected) for _, _, kind in find(message["content"])}
        if not kinds:
            return row
        self.rows.update(kinds)
        for kind in kinds:
            self._first.setdefault(kind, f"row {row.row} of {row.source}")
        if self._policy != "Redact":
            return row
        messages, rejected = _redacted(row.messages), _redacted(row.rejected)
        if rejected and content_digest(messages) == content_digest(rejected):
            raise RowError("without their personal data chosen and rejected are the same answer")
        return Row(row.source, row.row, messages, content_digest(messages), rejected, row.schema)

    def warnings(self) -> list[str]:
        """What was found, by kind, with the first row. Raises UserError where the policy refuses it."""
        done = " (redacted)" if self._policy == "Redact" else ""
        found = [f"{count:,} rows hold {NAMES[kind]}{done}, the first is {self._first[kind]}" for kind, count in sorted(self.rows.items())]
        if found and self._policy == "Fail":
            raise UserError("PersonalDataFound", "; ".join(found), "Remove them, or set data.quality.personalData to Redact or Warn.")
        return found
