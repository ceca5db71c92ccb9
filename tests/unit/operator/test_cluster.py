"""What the API server answers, as the error that says what to do about it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from finetune_operator import errors, kinds
from finetune_operator.cluster import Cluster, _classified
from kubernetes.aio.client import ApiClient

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


class Recorded(Cluster):
    """Answers nothing and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(cast(ApiClient, None))
        self.asked: list[tuple[str, str, Any]] = []

    async def _request(self, method: str, path: str, *, body: Any = None, **_: Any) -> dict[str, Any]:
        self.asked.append((method, path, body))
        return {}


@pytest.mark.parametrize(("foreground", "policy"), [(False, "Background"), (True, "Foreground")])
async def test_a_deletion_says_of_which_object_and_what_becomes_of_what_it_owns(foreground: bool, policy: str) -> None:
    cluster = Recorded()
    await cluster.delete(kinds.JOB, "ml", "bot-clean-1", uid="u", foreground=foreground)
    assert cluster.asked == [
        ("DELETE", "/apis/batch/v1/namespaces/ml/jobs/bot-clean-1", {"propagationPolicy": policy, "preconditions": {"uid": "u"}})
    ]
