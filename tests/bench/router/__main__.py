"""`make bench-router`: users through 0 → 10 → 50 → 100 % and a rollback on two real routers; last line JSON.

Two Envoys with the documents that the operator builds and the pushes that it makes, on loopback, in front of an Envoy that answers for both
arms at once. First whole rollouts, in each of which every user asks every router at every step; then many pushes under traffic;
then direct calls and calls through a router in turn; with --drain at last a router that goes while it carries streams. The salts are fixed:
the same users are moved in every run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from finetune_operator.build.router import REPLICAS
from finetune_operator.traffic import Source

from tests.bench.control_plane.progress import Progress, Step
from tests.bench.router import drain, figures, servers
from tests.bench.router.measure import CALLERS, SWEEPS, Bench

SOURCES: Final = {"header": Source(header="x-user-id"), "body": Source(body_field="user")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.router", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=10_000, help="how many (10,000)")
    parser.add_argument("--rollouts", type=int, default=3, help="each between arms of another salt (3)")
    parser.add_argument("--rounds", type=int, default=100, help="of four pushes: 10, 50, 100 %% and back (100)")
    parser.add_argument(
        "--pairs", type=int, default=5_000, help="of a direct call and one through a router, for each number of callers (5,000)"
    )
    parser.add_argument(
        "--drain", type=int, default=0, metavar="SECONDS", help="also delete a router whose streams go on for so long (0: none)"
    )
    parser.add_argument("--identity", choices=list(SOURCES), default="header", help="where users are named (header)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    return parser.parse_args()


def steps(options: argparse.Namespace) -> list[Step]:
    """What comes, and the seconds that it takes on two cores."""
    asked = options.rollouts * options.users * REPLICAS * SWEEPS
    latency = [Step(f"latency, {callers} at once", 1 + options.pairs / callers / 200) for callers in CALLERS]
    drain = [Step("drain", 5 + options.drain)] if options.drain else []
    return [Step("rollouts", 3 + asked / 5000), Step("pushes", 1 + options.rounds / 5), *latency, *drain]


async def run(options: argparse.Namespace, folder: Path) -> figures.Found:
    told = Progress(steps(options))
    async with servers.running(folder) as running:
        bench = Bench(running, options.users, SOURCES[options.identity], told)
        told.step("rollouts")
        structure, of_weight = await bench.lives(options.rollouts)
        told.step("pushes")
        structure = await bench.pushes(structure, of_weight, options.rounds)
        await bench.latency(structure, options.pairs)
    if options.drain:
        told.step("drain")
        bench.found.drain = await drain.measured(folder, options.drain)
    return bench.found


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="finetune-bench-router-") as folder:
        found = asyncio.run(run(options, Path(folder)))
    made = figures.figures(found)
    print(f"\n{figures.table(made, CALLERS)}\n\n{figures.shares(found)}\n")
    print(json.dumps({key: made[key] for key in (*figures.JSON_KEYS, *(k for k in made if k.startswith("drain_")))}), flush=True)
    return int(options.strict and bool(figures.missed(made, CALLERS)))


if __name__ == "__main__":
    sys.exit(main())
