"""Personal data by their form, and what each policy does."""

from __future__ import annotations

import pytest
from finetune_trainer.data.formats import Row, content_digest
from finetune_trainer.data.personal import Policy, Scan, find, luhn, redacted
from finetune_trainer.exits import UserError

WEB_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
FOUND = {
    "an address": ("write to anna.b+shop@mail.example.org.", "write to [email]."),
    "an international number": ("call +49 (30) 1234 5678 now", "call [phone] now"),
    "a national number": ("call (555) 123-4567, please", "call [phone], please"),
    "a card": ("pay with 4111 1111 1111 1111!", "pay with [card]!"),
    "a card without spaces": ("4111111111111111", "[card]"),
    "a cloud's key": ("key AKIAIOSFODNN7EXAMPLE in the file", "key [key] in the file"),
    "a code host's token": ("ghp_" + "a1B2" * 9, "[key]"),
    "a private key": ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n.", "[key]\n."),
    "two private keys, and one that is cut off": (
        "".join(f"-----BEGIN {kind}PRIVATE KEY-----\nMIIE\n-----END {kind}PRIVATE KEY-----\n" for kind in ("", "EC "))
        + "-----BEGIN PRIVATE KEY-----\nMI",
        "[key]\n[key]\n[key]\nMI",
    ),
    "a web token": (f"Bearer {WEB_TOKEN}, please", "Bearer [key], please"),
    "a web token behind a hyphen": ("session-eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln-bmF0, please", "session-[key], please"),
    "a web token that holds hyphens": ("id_eyJhbGciOiJIUzI1-eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "id_[key]"),
    "a web token behind another name": (f"tokens.{WEB_TOKEN}", "tokens.[key]"),
    "two web tokens, the one in the other's last part": (f"{WEB_TOKEN}-{WEB_TOKEN}", "[key]"),
    "two kinds": ("a@b.org or +1 212 555 0100", "[email] or [phone]"),
}
NOT_FOUND = {
    "a number of sixteen digits with a wrong sum": "4111 1111 1111 1112",
    "a date": "2024-01-31 and 31.01.2024",
    "a date with its time": "on 2024-01-31 10:20:30",
    "an amount": "it costs 1,234,567.89 or 10 000 000",
    "an order number": "order 20240131-77",
    "an address of the network": "host 192.168.100.200 and port 8080",
    "a mention": "@anna wrote it",
    "code": "rows[10:20] = x @ y",
    "a part of a word as of a web token": f"ob{WEB_TOKEN}",
    "a formula": "3.14159265358979 * 2",
}


@pytest.mark.parametrize(("text", "expected"), FOUND.values(), ids=FOUND)
def test_is_blacked_out(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize("text", NOT_FOUND.values(), ids=NOT_FOUND)
def test_is_left_alone(text: str) -> None:
    assert list(find(text)) == []


# Each is four million characters; begun anew at every place where a key might begin, the search would take days.
LONG = {
    "one that begins again and again within itself": ("eyJ-" * 1_000_000, 0),
    "one that begins again and again behind another part": ("eyJ-" * 500_000 + ".eyJ" + "eyJ-" * 500_000, 0),
    "parts of web tokens, each of which may be the first of one": ("eyJhbGciOiJIUzI1." * 240_000, 1),
    "parts of a web token, each too short": ("eyJabc." * 600_000, 0),
    "private keys that do not end": ("-----BEGIN PRIVATE KEY-----\n" * 150_000, 150_000),
    "many that nearly begin": ("-----BEGIN PRIVATE KEY " * 180_000, 0),
    "ends without a beginning": ("-----END PRIVATE KEY-----" * 160_000, 0),
}


@pytest.mark.parametrize(("text", "found"), LONG.values(), ids=LONG)
def test_a_long_text_is_searched_once(text: str, found: int) -> None:
    assert len(list(find(text))) == found


def test_the_sum_of_a_card() -> None:
    assert [luhn(digits) for digits in ("4111111111111111", "5500000000000004", "4111111111111112", "0000000000000")] == [
        True,
        True,
        False,
        False,
    ]


def scanned(policy: Policy, *texts: str) -> tuple[Scan, list[Row]]:
    scan = Scan(policy)
    rows = []
    for number, text in enumerate(texts, start=1):
        messages = ({"role": "user", "content": text}, {"role": "assistant", "content": "ask a@b.org" if number == 3 else "no"})
        rows.append(scan.apply(Row("pvc://a/b", number, messages, content_digest(messages))))
    return scan, rows


TEXTS = ("hello", "I am x@y.org", "call +49 30 12345678")


def test_warn_tells_how_many_rows_and_the_first() -> None:
    scan, rows = scanned("Warn", *TEXTS)
    assert scan.warnings() == [
        "2 rows hold e-mail addresses, the first is row 2 of pvc://a/b", "1 rows hold telephone numbers, the first is row 3 of pvc://a/b",
    ]  # fmt: skip
    assert rows[1].messages[0]["content"] == TEXTS[1]


def test_redact_changes_the_row_and_its_digest() -> None:
    scan, rows = scanned("Redact", *TEXTS)
    assert [message["content"] for message in rows[2].messages] == ["call [phone]", "ask [email]"]
    assert rows[2].digest == content_digest(rows[2].messages)
    assert rows[0] == scanned("Warn", *TEXTS)[1][0]
    assert "(redacted)" in scan.warnings()[0]


def test_fail_names_the_row() -> None:
    scan, _ = scanned("Fail", *TEXTS)
    with pytest.raises(UserError, match="2 rows hold e-mail addresses, the first is row 2 of pvc://a/b") as found:
        scan.warnings()
    assert found.value.fix == "Remove them, or set data.quality.personalData to Redact or Warn."
    assert scanned("Fail", "hello")[0].warnings() == []
