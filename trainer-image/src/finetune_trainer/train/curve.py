"""The losses of a run as a curve of few points, however long it is: what the report draws.

Invariant: the same losses give the same curve, however often the run was interrupted; it is part of a checkpoint's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

POINTS = 256  # at most; beyond it neighbours are merged


@dataclass(frozen=True)
class Curve:
    """Points (last step, mean loss of `every` values). `open` are the values that make no point yet."""

    every: int = 1
    points: tuple[tuple[int, float], ...] = ()
    open: tuple[float, ...] = ()

    def add(self, step: int, loss: float) -> Curve:
        """The curve with one more value."""
        values = (*self.open, loss)
        if len(values) < self.every:
            return replace(self, open=values)
        grown = Curve(self.every, (*self.points, (step, sum(values) / len(values))))
        return grown._halved() if len(grown.points) > POINTS else grown

    def _halved(self) -> Curve:
        """Twice as many values a point; an odd one at the end is opened again as its mean."""
        pairs = list(zip(self.points[::2], self.points[1::2], strict=False))
        merged = tuple((second[0], (first[1] + second[1]) / 2) for first, second in pairs)
        rest = (self.points[-1][1],) * self.every if len(self.points) % 2 else ()
        return Curve(2 * self.every, merged, rest)


def read(stored: Any) -> Curve:
    """The curve of a checkpoint's state; of an older one, which has none, an empty one."""
    if not stored:
        return Curve()
    points = tuple((int(step), float(loss)) for step, loss in stored["points"])
    return Curve(int(stored["every"]), points, tuple(float(v) for v in stored["open"]))


def shown(curve: Curve, last: int) -> list[Sequence[float]]:
    """All points, what is still open as the last one, at step `last`."""
    rest = [(last, sum(curve.open) / len(curve.open))] if curve.open else []
    return [*curve.points, *rest]
