"""Run the tests tier by tier, each in the environment it needs: `python -m tests.run --tier all`.

The tiers run from the fastest to the slowest and the first that fails ends the run. pytest's closing line of the last tier is
the last thing printed.
"""

from __future__ import annotations

import argparse
import signal
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
    setup: tuple[str, ...] = ()  # what `python -m` is to make before the clock starts, unless it is in the cache
    arguments: tuple[str, ...] = ()


INTEGRATION = ("tests/integration", "tests/devcluster", "tests/router", "tests/gitops")
# Three processes, which mostly wait; a file stays in one, with the control plane that its tests share.
SIDE_BY_SIDE = ("-n3", "--dist", "loadfile", "--no-loadscope-reorder")
TIERS = (
    Tier("unit", "dev", ("tests/unit", "tests/contract"), 3, arguments=("-n2",)),
    Tier("trainer", "trainer", ("tests/trainer",), 9, setup=("tests.trainer.s3server",), arguments=("-n2",)),
    Tier("numerics", "oracle", ("tests/numerics",), 3),
    Tier("integration", "dev", INTEGRATION, 9, setup=("devcluster", "binary"), arguments=SIDE_BY_SIDE),
    Tier("e2e", "dev", ("tests/e2e",), 14, setup=("devcluster", "images"), arguments=("-vv",)),
)
ENDING_SECONDS = 180


def run(tier: Tier, arguments: list[str]) -> int:
    """pytest's exit status for the tier; over twice its budget the tier is ended and counts as failed."""
    folders = [f for f in tier.folders if (ROOT / f).is_dir()]
    command = [sys.executable, "tools/env.py", tier.environment]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    if tier.setup:
        subprocess.run([sys.executable, "-m", *tier.setup], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    tests = subprocess.Popen([*command, "python", "-m", "pytest", *tier.arguments, *folders, *arguments], cwd=ROOT)
    try:
        return tests.wait(tier.minutes * 60 * 2)
    except subprocess.TimeoutExpired:
        print(f"tier {tier.name} took more than twice its budget of {tier.minutes} min", file=sys.stderr)
        return _ended(tests, signal.SIGINT, 124)
    except KeyboardInterrupt:  # of a terminal, which tells the tests too: told twice they would leave what they put away
        return _ended(tests, None, 130)
    except Asked:
        return _ended(tests, signal.SIGINT, 143)


class Asked(Exception):
    """SIGTERM, of which the tests hear nothing."""


def _asked(number: int, frame: object) -> None:
    raise Asked


def _ended(tests: subprocess.Popen[bytes], interrupt: signal.Signals | None, status: int) -> int:
    """That status, once the tests have put away what they started, or are killed."""
    if interrupt:
        tests.send_signal(interrupt)
    try:
        tests.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        tests.kill()
        tests.wait()
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.run", description=__doc__)
    parser.add_argument("--tier", default="all", choices=["all", *(t.name for t in TIERS)])
    options, rest = parser.parse_known_args()
    signal.signal(signal.SIGTERM, _asked)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell: the tests would ignore it, too
    chosen = [tier for tier in TIERS if options.tier in ("all", tier.name)]
    for number, tier in enumerate(chosen):
        left = sum(later.minutes for later in chosen[number:])
        print(
            f"\n=== {tier.name}: {', '.join(tier.folders)} (up to {tier.minutes} min; about {left} min left, set-up apart) ===", flush=True
        )
        started = time.monotonic()
        status = run(tier, rest)
        if status:
            print(f"tier {tier.name} failed after {time.monotonic() - started:.0f} s", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
