"""How often the guards err, and what they see in how many requests, beside rules with fixed thresholds: `make bench-guards`.

Every canary is simulated in the routers' own counters, looked at every two seconds (ten, where two requests come in a second), and judged
by the operator's rules; the same counters are judged by rules of the kind that Flagger and Argo Rollouts use. Tables, then a line of JSON:
`false_rollbacks_percent` is the worst of the cases with equal arms, the other two are what was rolled back within the sample that the
case names. The same seed gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from tests.bench.control_plane.statistics import quantile
from tests.bench.guards.cases import CASES, EFFECTS, FIXED, STRICT, Case, Effect
from tests.bench.guards.rules import Ours, Outcome, Rule
from tests.bench.guards.traffic import Traffic, spans

CHUNK = 50  # canaries that a process simulates between two words of progress
SAMPLED = 10  # a tenth of the canaries is simulated for each effect


def outcomes(traffic: Traffic, rules: Sequence[Rule], seed: Sequence[int], canaries: range) -> list[list[Outcome]]:
    """What each rule makes of each of these canaries; a canary is the same whoever simulates it."""
    rows = []
    for canary in canaries:
        steps = list(spans(traffic, np.random.default_rng([*seed, canary])))
        rows.append([rule.judge(steps) for rule in rules])
    return rows


def simulate(
    pool: ProcessPoolExecutor, name: str, traffic: Traffic, rules: Sequence[Rule], seed: Sequence[int], count: int
) -> list[list[Outcome]]:
    """All canaries of a case, told on stderr as they come."""
    began = time.monotonic()
    parts = [range(first, min(count, first + CHUNK)) for first in range(0, count, CHUNK)]
    found: list[list[Outcome]] = []
    for rows in pool.map(outcomes, *zip(*((traffic, rules, seed, part) for part in parts), strict=True)):
        found += rows
        print(f"\r{name}: {len(found)} of {count} canaries, {time.monotonic() - began:.0f} s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def case_row(case: Case, found: list[list[Outcome]]) -> dict[str, float]:
    """Percent rolled back by each rule, and those that the guards neither rolled back nor moved on."""
    back = {rule.name: _percent([row[i].end == "rolled back" for row in found]) for i, rule in enumerate(case.rules)}
    return {**back, "guards wait": _percent([row[0].end == "waits" for row in found])}


def seconds_row(case: Case, found: list[list[Outcome]]) -> dict[str, float]:
    """Seconds until each rule rolled back, of half of those that it did; NaN where it never did."""
    ended = {rule.name: [row[i].seconds for row in found if row[i].end == "rolled back"] for i, rule in enumerate(case.rules)}
    return {name: quantile(seconds, 0.5) if seconds else math.nan for name, seconds in ended.items()}


def table(what: str, rows: dict[str, dict[str, float]]) -> str:
    """A row for each case."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {what} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    told = {name: " | ".join("–" if math.isnan(row[c]) else f"{row[c]:.4g}" for c in columns) for name, row in rows.items()}
    return "\n".join([*lines, *(f"| {name} | {cells} |" for name, cells in told.items())])


def _percent(those: list[bool]) -> float:
    return 100 * sum(those) / len(those)


def effect_row(effect: Effect, found: list[Outcome]) -> str:
    """Canary requests until it was rolled back: those of half of the canaries, and of nine in ten."""
    needed = [o.requests if o.end == "rolled back" else sys.maxsize for o in found]
    half, most = (quantile(needed, share) for share in (0.5, 0.9))
    told = [f"{figure:,.0f}" if figure < sys.maxsize else f"> {effect.most:,}" for figure in (half, most)]
    return f"| {effect.guard} | {effect.name} | {' | '.join(told)} |"


def figures(cases: Sequence[Case], found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The last line."""
    by_figure = {figure: [found[case.name][case.rules[0].name] for case in cases if case.figure == figure] for figure in
                 ("false_rollbacks", "errors_detected", "latency_detected")}  # fmt: skip
    worst = {"false_rollbacks": max, "errors_detected": min, "latency_detected": min}
    return {f"{figure}_percent": round(worst[figure](values), 2) for figure, values in by_figure.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.guards", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--canaries", type=int, default=2000, help="of each case (a tenth of them for each effect of the last table)")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--effects", action=argparse.BooleanOptionalAction, default=True, help="the table of effects")
    options = parser.parse_args()
    if options.canaries < 1:
        parser.error("--canaries: at least 1")
    cases, seconds, effects = {}, {}, []
    with ProcessPoolExecutor(options.workers) as pool:
        for number, case in enumerate(CASES):
            found = simulate(pool, case.name, case.traffic, case.rules, [options.seed, number], options.canaries)
            cases[case.name] = case_row(case, found)
            seconds[case.name] = seconds_row(case, found)
        for number, effect in enumerate(EFFECTS if options.effects else ()):
            name, count = f"{effect.guard}, {effect.name}", max(1, options.canaries // SAMPLED)
            rows = simulate(pool, name, effect.traffic, [Ours(effect.guards)], [options.seed, len(CASES) + number], count)
            effects.append(effect_row(effect, [row[0] for row in rows]))
    print(f"{options.canaries} canaries of each case, seed {options.seed}\n")
    print(f"guards: {STRICT.model_dump(exclude_none=True, exclude_defaults=True, by_alias=True)}, the rest by default")
    print("\n".join(str(rule) for rule in FIXED), end="\n\n")
    print(table("rolled back, percent", cases))
    print(f"\n{table('seconds until half of those were', seconds)}")
    if effects:
        print("\n| guard | stable → canary, at a step of 10 % | canary requests until half are rolled back | until nine in ten |")
        print("\n".join(["|---|---|---|---|", *effects]))
    print(json.dumps(figures(CASES, cases)))


if __name__ == "__main__":
    main()
