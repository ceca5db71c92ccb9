"""The command line: settings, log and exit code. Everything else is imported when it is needed, so that a wrong setting is told at once."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys

log = logging.getLogger("finetune_operator")


def main() -> int:
    """Entry point: 0 after a stop on request, 1 when the Lease or the API server was lost, 2 for wrong settings."""
    parser = argparse.ArgumentParser(
        prog="finetune-operator", description="Runs the FineTune operator. Its settings are environment variables FINETUNE_*, "
        "see charts/finetune-operator/values.yaml and docs/reference.md.",
    )  # fmt: skip
    parser.parse_args()
    gc.disable()  # a start makes objects that stay, and to look for garbage among them was a tenth of its CPU; `process` begins with it
    from finetune_operator import errors, logs
    from finetune_operator.settings import SettingsError, from_environment

    try:
        settings = from_environment()
    except SettingsError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 2
    logs.to_stderr(settings.log_format)
    from finetune_operator import process

    code = 0
    try:
        asyncio.run(process.run(settings))
    except* errors.FineTuneError as group:
        log.error("stopped", extra=logs.of(error="; ".join(str(e) for e in group.exceptions)))  # noqa: TRY400
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
