"""What checking an answer may cost, and how often it may cost more: a check that runs away on one answer scores 0 there, and one that does
so on many is refused."""

from __future__ import annotations

from collections.abc import Callable

from finetune_trainer.exits import UserError

SECONDS = 1.0  # of processor time for one answer
RUNAWAYS = 60  # so many answers on which it ran away are the last


class Runaways:
    """Counts the answers on which a check took longer than its `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._answers = seconds, 0

    def score(self, what: str, too_slow: Callable[[str], UserError]) -> tuple[float, str]:
        """0, and why: that `what` took too long, on one more answer. Raises what `too_slow` makes of so many answers once they are many."""
        self._answers += 1
        if self._answers >= RUNAWAYS:
            raise too_slow(f"{self._answers} answers") from None
        return 0.0, f"{what} took longer than {self.seconds:g} s"
