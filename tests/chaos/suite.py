"""`make chaos`: a full life is disturbed in every way; each must end as the undisturbed one did. Prints a table, then one line of JSON.

In most lives the operator is killed once, after one of its writes (a life for each write, or for `--sample` of them); others are
named in `scenarios`. `kills` counts disturbances: each kill, and each other scenario once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from devcluster.controlplane import ControlPlane
from tests.chaos.lives import Chaos, Verdict
from tests.chaos.scenarios import ALONE, SEED, SIDE_BY_SIDE, Expected, Scenario, killed_after

PARALLEL: Final = 8
ALONE_SECONDS: Final = 150.0


@dataclass
class Suite:
    """Runs scenarios, at most so many at a time, and says how far it is."""

    chaos: Chaos
    parallel: int = PARALLEL
    verdicts: list[Verdict] = field(default_factory=list)

    async def expect(self, expected: Expected) -> int:
        """Live the undisturbed life that the others are compared with; returns how many writes it takes."""
        life = await self.chaos.life(None)
        try:
            expected.set_result(await life.run())
        except BaseException as error:
            expected.set_exception(error)
            raise
        return len(life.proxy.writes)

    async def run(self, scenarios: Sequence[Scenario], expected: Expected) -> None:
        """All of them; a scenario that itself fails is a problem of its own."""
        started, slots, total = time.monotonic(), asyncio.Semaphore(self.parallel), len(scenarios)
        done = 0

        async def one(scenario: Scenario) -> None:
            nonlocal done
            async with slots:
                try:
                    verdict = await scenario(self.chaos, expected)
                except Exception as error:
                    verdict = Verdict(getattr(scenario, "__name__", "a kill"), disturbed=1, problems=[f"{type(error).__name__}: {error}"])
            done += 1
            self.verdicts.append(verdict)
            spent = time.monotonic() - started
            left = f"; about {spent / done * (total - done) / 60:.0f} min left" if total - done else ""
            print(f"[{done}/{total}] {'✓' if verdict.converged else '✗'} {verdict.name}: {verdict.seconds:.0f} s{left}", flush=True)
            for what in ("duplicates", "lost", "miscounted", "problems"):
                for line in getattr(verdict, what):
                    print(f"    {what}: {line}", flush=True)

        await asyncio.gather(*(one(s) for s in scenarios))

    def report(self) -> dict[str, int]:
        """What the last line says."""
        return {
            "kills": sum(v.disturbed for v in self.verdicts),
            "converged": sum(v.disturbed for v in self.verdicts if v.converged),
            **{what: sum(len(getattr(v, what)) for v in self.verdicts) for what in ("duplicates", "lost", "miscounted")},
        }


async def everything(suite: Suite, sample: int | None, only: str | None) -> None:
    """The undisturbed life, then all others."""
    expected: Expected = asyncio.get_running_loop().create_future()
    print("an undisturbed life (about a minute)", flush=True)
    writes = await suite.expect(expected)
    points = list(range(1, writes + 1))
    print(f"  it takes {writes} writes", flush=True)
    if sample is not None:
        points = sorted(random.Random(SEED).sample(points, min(sample, len(points))))
    scenarios = [*SIDE_BY_SIDE, *(killed_after(n) for n in points)]
    alone = ALONE
    if only:
        scenarios, alone = [s for s in SIDE_BY_SIDE if only in s.__name__], tuple(s for s in ALONE if only in s.__name__)
    await suite.run(scenarios, expected)
    if alone:
        print(f"one at a time, about {len(alone) * ALONE_SECONDS / 60:.0f} min:", flush=True)
    for scenario in alone:
        await suite.run([scenario], expected)


def table(verdicts: Sequence[Verdict]) -> str:
    """The single kills in one line, every other scenario in one of its own."""
    kills = [v for v in verdicts if v.name.startswith("killed after write")]
    rows = (
        [("killed once, after one write", sum(v.disturbed for v in kills), sum(v.disturbed * v.converged for v in kills), kills)]
        if kills
        else []
    )
    rows += [(v.name, v.disturbed, v.disturbed * v.converged, [v]) for v in verdicts if v not in kills]
    lines = [f"  {name[:55]:<55} {tried:6} {right:12} {max(v.seconds for v in of):8.0f}" for name, tried, right, of in rows]
    return "\n".join([f"  {'scenario':<55} {'tried':>6} {'ended right':>12} {'seconds':>8}", *lines])


async def main_async(options: argparse.Namespace) -> Suite:
    """On a control plane of its own."""
    with ControlPlane() as plane, tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        async with Chaos(plane, Path(folder)) as chaos:
            suite = Suite(chaos, options.parallel)
            await everything(suite, options.sample, options.only)
    return suite


def main() -> int:
    """0 when everything ended right."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.suite", description=__doc__)
    parser.add_argument("--sample", type=int, help="so many kill points instead of one after each write (fixed seed)")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help="lives at a time")
    parser.add_argument("--only", help="scenarios whose name contains this, without the single kills")
    suite = asyncio.run(main_async(parser.parse_args()))
    print(table(suite.verdicts))
    print(json.dumps(suite.report()))
    return 0 if suite.verdicts and all(v.converged for v in suite.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
