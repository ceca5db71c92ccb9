"""`python3 -m devcluster up|down|status|kubeconfig|kubectl …|images …|push`."""

import argparse
import json
import os
import sys
import time
from typing import NoReturn

from devcluster import images, node, nodebinary, paths
from devcluster.shell import DevclusterError, say


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["kubectl"]:
        _kubectl(arguments[1:])
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except DevclusterError as problem:
        say(f"devcluster: {problem}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devcluster", description="A real single-node Kubernetes on this machine.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    verb("up", _up, "bring the node up, or find that it is; recovers a machine on which it was killed")
    verb("down", _down, "remove the node and everything it left on this machine, but not the cache")
    verb("status", _status, "components, node condition and paths, as JSON; status 3 if the node is not up")
    verb("binary", _binary, "build the node's binary, unless it is in the cache; prints its path")
    verb("kubeconfig", _kubeconfig, "print the path of the administrator's kubeconfig")
    verbs.add_parser("kubectl", help="kubectl on this node, with any arguments")
    wanted = verb("images", _images, "build the missing images; prints their references as JSON")
    wanted.add_argument("names", nargs="*", choices=[[], *images.NAMES], metavar="NAME", help=", ".join(images.NAMES))
    push = verb("push", _push, "push an image of the local buildah storage to the node's registry")
    push.add_argument("image", help="name in buildah's storage")
    push.add_argument("reference", help="name under which pods find it, such as example.com/app:1")
    return parser


def _up(_: argparse.Namespace) -> None:
    begun = time.monotonic()
    started = node.ensure_up()
    took = time.monotonic() - begun
    say(f"the node is up ({'started' if started else 'it was already up: reused'}, {took:.1f} s)")
    say(f"export KUBECONFIG={paths.kubeconfig()}")


def _down(_: argparse.Namespace) -> int:
    begun = time.monotonic()
    left = node.down()
    say(f"the node is down ({time.monotonic() - begun:.1f} s); the cache {paths.cache()} is kept")
    for item in left:
        say(f"could not remove: {item}")
    return 1 if left else 0


def _status(_: argparse.Namespace) -> int:
    found = node.status()
    print(json.dumps(found, indent=1))
    return 0 if found["up"] else 3


def _binary(_: argparse.Namespace) -> None:
    print(nodebinary.ensure())


def _kubeconfig(_: argparse.Namespace) -> None:
    print(paths.kubeconfig())


def _kubectl(arguments: list[str]) -> NoReturn:
    binary = nodebinary.cached()
    if binary is None:
        say("devcluster: no node binary yet: python3 -m devcluster up")
        sys.exit(1)
    environment = {"KUBECONFIG": str(paths.kubeconfig()), **os.environ}
    os.execve(binary, ["kubectl", *arguments], environment)


def _images(parsed: argparse.Namespace) -> None:
    print(json.dumps(images.ensure(parsed.names or list(images.NAMES))))


def _push(parsed: argparse.Namespace) -> None:
    print(images.push(parsed.image, parsed.reference))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
