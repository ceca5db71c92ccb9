"""What is told and kept of an address."""

from __future__ import annotations

import pytest
from finetune_trainer import addresses
from finetune_trainer.config import MixConfig, ModelConfig

SHOWN = {
    "a signed link": ("https://h.example/a/rows.csv?X-Amz-Signature=secret&x=1", "https://h.example/a/rows.csv"),
    "a user and a password": ("https://me:secret@h.example:8443/rows.csv", "https://h.example:8443/rows.csv"),
    "a fragment": ("https://h.example/rows.csv#secret", "https://h.example/rows.csv"),
    "a query without a path": ("HTTPS://me@h.example?sig=secret", "HTTPS://h.example"),
    "no secret": ("https://h.example/rows@2.csv", "https://h.example/rows@2.csv"),
    "an object's key": ("s3://rows/a?b#c@d.csv", "s3://rows/a?b#c@d.csv"),
    "a revision": ("hf://owner/name@main/a.jsonl", "hf://owner/name@main/a.jsonl"),
}


@pytest.mark.parametrize(("address", "shown"), SHOWN.values(), ids=SHOWN)
def test_an_address_is_shown_without_what_opens_it(address: str, shown: str) -> None:
    assert addresses.shown(address) == shown
    assert MixConfig(source=address, percent=1).name == ModelConfig(source=address, path="/m").name == shown


def test_addresses_in_a_text_are_shown_without_what_opens_them() -> None:
    text = "403 for url 'https://h.example/a?Signature=secret' and <https://me:secret@h.example/b>: why?"
    assert addresses.shown_in(text) == "403 for url 'https://h.example/a' and <https://h.example/b>: why?"


SIGNED = {
    "S3": "X-Amz-Algorithm=AWS4&X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Expires=60&X-Amz-Signature={}&X-Amz-Security-Token={}",
    "CloudFront": "Expires={}&Signature={}&Key-Pair-Id={}&Policy={}",
    "Azure": "sv={}&sr=b&se={}&sp=r&sig={}&st={}&spr=https&skoid=x",
    "Google": "X-Goog-Signature={}&GoogleAccessId=me",
    "a token": "token={}",
}


@pytest.mark.parametrize("query", SIGNED.values(), ids=SIGNED)
def test_a_file_is_the_same_however_it_is_signed(query: str) -> None:
    several = {f"https://h.example/rows?{query.replace('{}', word)}" for word in ("one", "two")}
    assert {addresses.identity(address) for address in several} == {"https://h.example/rows"}
    assert {addresses.identity(f"{address}&file=a") for address in several} == {addresses.identity("https://h.example/rows?file=a")}


def test_files_that_a_query_names_are_several_and_their_names_are_told_to_nobody() -> None:
    found = {addresses.identity(f"https://h.example/rows{query}") for query in ("", "?file=aaaa", "?file=bbbb", "?file=", "?page=aaaa")}
    assert len(found) == 5
    assert not any(word in identity for identity in found for word in ("aaaa", "bbbb", "file"))
    assert addresses.identity("s3://rows/a?sig=1") == "s3://rows/a?sig=1"
