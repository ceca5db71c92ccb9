"""`kubectl finetune …` (kubectl finds `kubectl-finetune` on PATH), or `python -m kubectl_finetune …`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from kubectl_finetune import control, live, report
from kubectl_finetune.ab import command as ab
from kubectl_finetune.kubectl import Kubectl, PluginError

ABOUT = {
    "status": "phase, progress, scores, rollout, guards and Events",
    "report": "fetch the report page of a revision, or of its data",
    "ab": "compare the arms of an A/B test, by the routers' log and outcomes of yours",
    "pause": "hold the rollout where it is; the guards watch on",
    "resume": "let a paused rollout go on",
    "promote": "move all users now; the old model is kept warm while it bakes",
    "abort": "take everybody back to the old model",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("name", metavar="NAME", help="the FineTune")
    shared.add_argument("-n", "--namespace", help="its namespace (default: the context's)")
    shared.add_argument("--context", help="the kubeconfig's context")
    shared.add_argument("--kubeconfig", help="the kubeconfig file")
    made = argparse.ArgumentParser(prog="kubectl finetune", description="A FineTune at a glance, its report, and a hand on its rollout.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        command: commands.add_parser(command, parents=[shared], help=about, description=f"{about[0].upper()}{about[1:]}.")
        for command, about in ABOUT.items()
    }
    parsers["status"].add_argument(
        "-w",
        "--watch",
        action="store_true",
        help="go on: redrawn on a terminal, a line for each change elsewhere (exit status 1 when it ends Failed or Rejected)",
    )
    report.arguments(parsers["report"])
    ab.arguments(parsers["ab"])
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 it could not be done (and why), 3 an A/B test's split was not met, 130 interrupted."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a bar is no reason to end where the terminal has no such letters
    given = {"--namespace": options.namespace, "--context": options.context, "--kubeconfig": options.kubeconfig}
    kubectl = Kubectl([f"{flag}={value}" for flag, value in given.items() if value])
    try:
        if options.command == "status":
            return 0 if live.show(kubectl, options.name, sys.stdout, watch=options.watch) else 1
        if options.command == "ab":
            return ab.run(kubectl, options.name, options, sys.stdout)
        if options.command == "report":
            print(report.fetch(kubectl, options.name, options))
        else:
            print(control.ask(kubectl, options.name, options.command))
    except PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
