"""A sample of `make chaos`: the operator killed after every single write of a full life, and what other disturbances are the worst."""

from __future__ import annotations

import asyncio
from pathlib import Path

from devcluster.controlplane import ControlPlane
from tests.chaos.lives import Chaos, End
from tests.chaos.scenarios import clock_jumps, etcd_paused, frozen_leader, killed_after_every_write, watches_gone
from tests.chaos.suite import Suite


async def test_disturbed_lives_end_as_the_undisturbed_one(tmp_path: Path) -> None:
    with ControlPlane() as plane:
        async with Chaos(plane, tmp_path) as chaos:
            suite = Suite(chaos)
            expected: asyncio.Future[End] = asyncio.get_running_loop().create_future()
            side_by_side = [killed_after_every_write, frozen_leader, watches_gone, clock_jumps]
            undisturbed, _ = await asyncio.gather(suite.expect(expected), suite.run(side_by_side, expected))
            await suite.run([etcd_paused], expected)
    assert [v for v in suite.verdicts if not v.converged] == []
    end = expected.result()
    assert [{name: n for name, n in r["charges"].items() if n} for r in end.rejected["status"]["revisions"]] == [
        {"outOfMemory": 1}, {"disruption": 1, "infrastructure": 1, "error": 1},
    ]  # fmt: skip
    first, second = (revision["name"] for revision in end.rejected["status"]["revisions"])
    halved, whole = {f"{first} a1": [(0, 1)], f"{first} a2": [(30, 2)]}, {f"{second} a{n}": [(30 if n > 1 else 0, 1)] for n in range(1, 5)}
    assert end.began == halved | whole
    kills = next(v.disturbed for v in suite.verdicts if v.name.startswith("killed after every write"))
    assert min(kills, undisturbed) > 80, "each of them a write: a killed operator does not live to tell its Events"
    assert suite.report() == {"kills": kills + 4, "converged": kills + 4, "duplicates": 0, "lost": 0, "miscounted": 0}
