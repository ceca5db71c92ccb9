"""`python -m demo up [--cluster auto|current|kind|node]` and `python -m demo down`: see README.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence

from demo import address, cluster, example
from demo.journey import Journey, travel
from demo.kube import DemoError, Kubectl
from demo.report import problems, table
from demo.view import View

LIMIT_SECONDS = 3600.0  # from the FineTune's creation to its end
FORWARDED = "http://127.0.0.1:18080"
MESSAGES = [{"role": "user", "content": "Which customers live in Kyoto?"}]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it succeeded and, for `up`, when every number holds."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "up":
            return up(options.cluster, options.images, options.limit)
        cluster.down(options.cluster, example.load().namespace)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m demo", description="From a bare machine to a tuned model that users move to.")
    commands = top.add_subparsers(dest="command", required=True)
    for name, text in (("up", "run the demo and leave it up"), ("down", "remove all that it left")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--cluster", choices=("auto", "current", "kind", "node"), default="auto")
        if name == "up":
            text = 'for --cluster current: JSON such as {"operator": "…", "trainer": "…"}'
            command.add_argument("--images", type=images_of, default={}, help=text)
            command.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds for the FineTune to come to its end")
    return top


def images_of(text: str) -> dict[str, str]:
    """`--images`: which image (operator, trainer; router and vllm where others than the chart's are wanted) is which reference."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(reference, str) for reference in found.values()):
        raise argparse.ArgumentTypeError(f'{text!r} is not an object of texts, such as {{"operator": "…", "trainer": "…"}}')
    return found


def up(choice: cluster.Choice, images: dict[str, str], limit: float) -> int:
    """The whole demo; prints the closing table and what to do next."""
    begun = time.monotonic()
    ground = cluster.up(choice, images)
    cluster.install(ground)
    found = example.load()
    example.apply(ground.kubectl, found)
    journey = asyncio.run(travel(ground.kubectl, found, View(), limit))
    wrong = problems(journey.outcome)
    if not journey.in_time:
        wrong.insert(0, f"it came to no end in {limit:.0f} s")
    closing(ground.kubectl, found, journey, time.monotonic() - begun)
    if wrong:
        failure(ground.kubectl, found, wrong)
        return 1
    next_steps(ground, found)
    return 0


def closing(kubectl: Kubectl, found: example.Example, journey: Journey, seconds: float) -> None:
    """`kubectl get`, and the table."""
    print("\n" + kubectl("get", *found.target, "-o", "wide"))
    print("\n".join(table(journey.outcome)))
    print(f"\nThe whole demo took {seconds:.0f} s.")


def failure(kubectl: Kubectl, found: example.Example, wrong: Sequence[str]) -> None:
    """What is wrong, and what the FineTune says."""
    print("\n" + kubectl("describe", *found.target))
    print("The demo did not hold:")
    for line in wrong:
        print(f"  ✗ {line}")


def next_steps(ground: cluster.Cluster, found: example.Example) -> None:
    """Commands that work as they are printed."""
    print("\nIt is live and stays up. Ask it something:\n")
    if ground.kind == "node":
        kubectl, base = "python3 -m devcluster kubectl", address.cluster_ip(ground.kubectl, found.namespace, found.name)
    else:
        kubectl, base = " ".join(ground.kubectl.command), FORWARDED
        print(f"  {kubectl} -n {found.namespace} port-forward service/{found.name} 18080:80 &")
    messages = [example.system(), *MESSAGES]
    body = json.dumps({"model": found.model, "max_tokens": 64, "temperature": 0, "messages": messages})
    headers = "-H 'x-user-id: you' -H 'content-type: application/json'"
    print(f"  curl -s {base}/v1/chat/completions {headers} -d '{body}'\n")
    print("or with `pip install openai`:\n")
    client = f"OpenAI(base_url='{base}/v1', api_key='-', default_headers={{'x-user-id': 'you'}})"
    call = f"chat.completions.create(model={found.model!r}, temperature=0, messages={messages!r})"
    print(f'  python3 -c "from openai import OpenAI; print({client}.{call}.choices[0].message.content)"')
    print(f"\nLook around:  {kubectl} -n {found.namespace} get ft,jobs,pods")
    print(f"              {kubectl} -n {found.namespace} describe ft {found.name}")
    print("Change learningRate in examples/text-to-sql/finetune.yaml and apply it again:")
    print(f"it trains anew and is rolled out against what is live. `make demo-down CLUSTER={ground.kind}` removes all of it.")


if __name__ == "__main__":
    sys.exit(main())
