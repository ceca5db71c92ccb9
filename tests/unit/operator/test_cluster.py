"""What the API server answers, as the error that says what to do about it."""

from __future__ import annotations

import pytest
from finetune_operator import errors
from finetune_operator.cluster import _classified

ANSWERS = {
    400: errors.Invalid,
    401: errors.Unavailable,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.Unavailable,
    422: errors.Invalid,
    429: errors.Unavailable,
    500: errors.Unavailable,
    503: errors.Unavailable,
}


@pytest.mark.parametrize(("status", "wanted"), ANSWERS.items())
def test_an_answer_is_classified(status: int, wanted: type[errors.ClusterError]) -> None:
    assert type(_classified("GET", "/x", status, b"{}", None)) is wanted


def test_the_api_servers_words_and_its_delay_are_kept() -> None:
    error = _classified("POST", "/x", 429, b'{"message": "too many", "reason": "TooManyRequests"}', "7")
    assert (str(error), error.reason, error.retry_after) == ("POST /x: 429 too many", "TooManyRequests", 7.0)
    assert _classified("GET", "/x", 502, b"<html>", "soon").retry_after is None
