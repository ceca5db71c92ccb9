"""The sequential test against its definition, by integration, and its promise, by adding up every path."""

from __future__ import annotations

import math
import random

import pytest
from finetune_operator.decide.sequential import ALPHA, fewest_above, surely_above

# share, n → fewest hits that are surely above it
FEWEST = [(0.02, 10), (0.02, 50), (0.02, 1000), (0.1, 10), (0.122, 300), (0.5, 14), (0.5, 13), (0.5, 200), (0.9, 500), (0.95, 150)]


@pytest.mark.parametrize(("share", "n"), FEWEST)
def test_the_fewest_hits_are_where_the_mixture_is_a_thousand_times_as_likely(share: float, n: int) -> None:
    """The mixture is that of Beta(a, b) with mean `share` and the smaller of a and b at 1."""
    a, b = (1.0, (1 - share) / share) if share <= 0.5 else (share / (1 - share), 1.0)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)

    def ratio(hits: int) -> float:
        cells, total = 20_000, 0.0
        for cell in range(cells):
            p = (cell + 0.5) / cells
            prior = scale + (a - 1) * math.log(p) + (b - 1) * math.log1p(-p)
            total += math.exp(prior + hits * math.log(p / share) + (n - hits) * math.log((1 - p) / (1 - share))) / cells
        return total

    first = next((k for k in range(math.ceil(share * n), n + 1) if ratio(k) >= 1 / ALPHA and k > share * n), n + 1)
    assert fewest_above(n, share) == first


@pytest.mark.parametrize("share", [0.01, 0.02, 0.122, 0.5, 0.9])
def test_looked_at_after_every_request_it_errs_less_often_than_alpha(share: float) -> None:
    """The probability, exactly, that 500 requests of which each fails with this very share are ever surely above it."""
    paths, erred = {0: 1.0}, 0.0
    for n in range(1, 501):
        grown: dict[int, float] = {}
        for hits, weight in paths.items():
            for more, chance in ((0, 1 - share), (1, share)):
                grown[hits + more] = grown.get(hits + more, 0.0) + weight * chance
        erred += sum(weight for hits, weight in grown.items() if surely_above(hits, n, share))
        paths = {hits: weight for hits, weight in grown.items() if not surely_above(hits, n, share)}
    assert 0 < erred < ALPHA


def test_it_sees_what_is_there() -> None:
    rolls = random.Random(5)
    seen = 0
    for _ in range(100):
        hits = sum(rolls.random() < 0.04 for _ in range(2500))
        seen += surely_above(hits, 2500, 0.02)
    assert seen >= 90


EDGES: dict[str, tuple[float, float, float, bool]] = {
    "nothing was seen": (0, 0, 0.02, False),
    "below the share": (1, 100, 0.02, False),
    "at the share": (2, 100, 0.02, False),
    "surely below, which is another question": (0, 10_000, 0.02, False),
    "one is surely more than none": (1, 10_000, 0.0, True),
    "none is not": (0, 10_000, 0.0, False),
    "nothing is more than all": (100, 100, 1.0, False),
}


@pytest.mark.parametrize("case", EDGES)
def test_edges(case: str) -> None:
    hits, n, share, sure = EDGES[case]
    assert surely_above(hits, n, share) is sure


def test_where_not_even_all_are_enough() -> None:
    assert [fewest_above(n, 0.5) - n for n in (0, 5, 13, 14)] == [1, 1, 1, 0]
