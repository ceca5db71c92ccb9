"""Run the tests tier by tier, each in the environment it needs: `python -m tests.run --tier all`.

The tiers run from the fastest to the slowest and the first that fails ends the run. pytest's closing line of the last tier is
the last thing printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Tier:
    """Folders of tests, the environment they run in, and how many minutes they may take on two cores (set-up excluded)."""

    name: str
    environment: str
    folders: tuple[str, ...]
    minutes: int


TIERS = (
    Tier("unit", "dev", ("tests/unit", "tests/contract"), 2),
    Tier("trainer", "trainer", ("tests/trainer",), 4),
    Tier("integration", "dev", ("tests/integration", "tests/devcluster", "tests/router"), 6),
    Tier("e2e", "dev", ("tests/e2e",), 15),
)


def run(tier: Tier, arguments: list[str]) -> int:
    """pytest's exit status for the tier; over its budget the tier is ended and counts as failed."""
    folders = [f for f in tier.folders if (ROOT / f).is_dir()]
    print(f"\n=== {tier.name}: {', '.join(folders)} (budget {tier.minutes} min) ===", flush=True)
    command = [sys.executable, "tools/env.py", tier.environment]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # set-up is not the tests' time
    try:
        return subprocess.run(
            [*command, "python", "-m", "pytest", *folders, *arguments], cwd=ROOT, timeout=tier.minutes * 60 * 2
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"tier {tier.name} took more than twice its budget of {tier.minutes} min", file=sys.stderr)
        return 124


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.run", description=__doc__)
    parser.add_argument("--tier", default="all", choices=["all", *(t.name for t in TIERS)])
    options, rest = parser.parse_known_args()
    for tier in TIERS:
        if options.tier in ("all", tier.name):
            started = time.monotonic()
            status = run(tier, rest)
            if status:
                print(f"tier {tier.name} failed after {time.monotonic() - started:.0f} s", file=sys.stderr)
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
