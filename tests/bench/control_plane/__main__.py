"""`make bench-control-plane N=1000`: what N FineTunes cost a control plane, beside the floor of as many bare Jobs.

A real etcd, API server and controller-manager on loopback, the operator as a process with the chart's rights, no node and no
scheduler: pods stay Pending. First the floor, then the FineTunes, then a twentieth as many that serve, and that train, each on a fresh
control plane. The last line printed is one JSON object. With --idle-only: N settled FineTunes, and what the operator uses then. With
--lives-only: only those that serve and train.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from devcluster import nodebinary
from devcluster.controlplane import ControlPlane
from tests.bench.control_plane import cluster, figures, progress
from tests.bench.control_plane.adapters import FINETUNES, JOBS, Adapter
from tests.bench.control_plane.api import Api
from tests.bench.control_plane.lives import Lives
from tests.bench.control_plane.progress import Progress
from tests.bench.control_plane.scenario import Scenario, Sizes
from tests.integration import engine

Result = dict[str, Any]
IDLE_ONLY_SECONDS: Final = 60.0
LEAST_LIVE: Final = 8
BUSY_NEIGHBOURS: Final = 0.3  # cores


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.control_plane", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-n", "--objects", type=int, default=1000, help="how many FineTunes (1000)")
    parser.add_argument("--out", type=Path, help="folder of the whole result and the logs (a temporary one)")
    parser.add_argument("--idle-only", action="store_true", help="measure only what N settled FineTunes cost, without a floor")
    parser.add_argument("--lives-only", action="store_true", help="measure only FineTunes that train and serve, without a floor")
    parser.add_argument("--live", type=int, help="how many of these (a twentieth of N)")
    parser.add_argument("--idle-seconds", type=float, help="how long idling is measured (20; 60 with --idle-only)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a setting of the operator; may be repeated")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    return parser.parse_args()


async def measure(
    adapter: Adapter, sizes: Sizes, told: Progress, out: Path, settings: Mapping[str, str], *, idle_only: bool = False
) -> Result:
    """One run on a control plane of its own; its result and logs are kept, those of the phases before it failed too."""
    told.step(f"{adapter.name}: set-up")
    with cluster.control_plane() as plane:
        async with Api(plane.server, plane.home / "pki") as api:
            await cluster.furnish(api)
            if adapter.needs_operator:
                engine.install(plane)
            operator = cluster.Operator(plane, settings) if adapter.needs_operator else None
            scenario = Scenario(plane, api, adapter, sizes, told, operator)
            try:
                await (scenario.run_idle(operator) if idle_only and operator else scenario.run())
            finally:
                keep_logs(plane, out, adapter.name)
                keep(out / f"{adapter.name}.json", scenario.result)
    return scenario.result


def keep_logs(plane: ControlPlane, out: Path, name: str) -> None:
    no_tokens = shutil.ignore_patterns("*.kubeconfig")
    shutil.copytree(plane.home / "logs", out / f"{name}-logs", ignore=no_tokens, dirs_exist_ok=True)


def keep(file: Path, result: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=1) + "\n")


async def compare(options: argparse.Namespace, sizes: Sizes, settings: Mapping[str, str]) -> figures.Figures:
    """The floor, then the FineTunes, then those that train and serve."""
    steps = progress.finetune_steps(sizes.objects, sizes.idle_seconds, sizes.restart_seconds)
    told = Progress([*progress.floor_steps(sizes.objects), *steps, *progress.life_steps(sizes.live)])
    floor = await measure(JOBS, sizes, told, options.out, {})
    run = await measure(FINETUNES, sizes, told, options.out, settings)
    return {**figures.figures(floor, run), **figures.life_figures(await lived(told, sizes, options.out, settings))}


async def lived(told: Progress, sizes: Sizes, out: Path, settings: Mapping[str, str]) -> Result:
    """FineTunes that train and serve, on a control plane of their own; the result and the logs are kept."""
    told.step("lives: set-up")
    with cluster.control_plane() as plane:
        async with Api(plane.server, plane.home / "pki") as api:
            await cluster.furnish(api)
            engine.install(plane)
            lives = Lives(plane, api, sizes, told, cluster.Operator(plane, settings))
            try:
                await lives.run()
            finally:
                keep_logs(plane, out, "lives")
                keep(out / "lives.json", lives.result)
    return lives.result


async def only_lives(options: argparse.Namespace, sizes: Sizes, settings: Mapping[str, str]) -> figures.Figures:
    told = Progress(progress.life_steps(sizes.live))
    return figures.life_figures(await lived(told, sizes, options.out, settings))


async def idle(options: argparse.Namespace, sizes: Sizes, settings: Mapping[str, str]) -> figures.Figures:
    told = Progress(progress.idle_steps(sizes.objects, sizes.idle_seconds))
    return figures.idle_figures(await measure(FINETUNES, sizes, told, options.out, settings, idle_only=True))


def main() -> int:
    options = arguments()
    options.out = options.out or Path(tempfile.mkdtemp(prefix="finetune-bench-"))
    options.out.mkdir(parents=True, exist_ok=True)
    idle_seconds = options.idle_seconds or (IDLE_ONLY_SECONDS if options.idle_only else 20.0)
    sizes = Sizes(options.objects, live=options.live or max(LEAST_LIVE, options.objects // 20), idle_seconds=idle_seconds)
    nodebinary.ensure()
    load = os.getloadavg()[0]
    way = idle if options.idle_only else only_lives if options.lives_only else compare
    found = asyncio.run(way(options, sizes, dict(pair.split("=", 1) for pair in options.env)))
    shown = figures.table(found)
    keep(options.out / "figures.json", {**found, "load_before": round(load, 2), "cores": os.cpu_count() or 0})
    (options.out / "table.txt").write_text(shown + "\n")
    print(f"\n{shown}\n\nThe whole result: {options.out}")
    if max(found.get("others_cores", 0), found.get("floor_others_cores", 0)) > BUSY_NEIGHBOURS:
        print("Others used the machine during a burst (others_cores): the times are worse than they would be on a quiet one.")
    print(json.dumps(found), flush=True)
    return int(options.strict and bool(figures.missed(found)))


if __name__ == "__main__":
    sys.exit(main())
