"""The base image that stands in for the public `python:3.11-slim`: Debian by mmdebstrap, made once."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from devcluster import buildenv, paths
from devcluster.shell import run

_SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
# Inside, `pip install` and `python` work as they do in the public image.
_HOOKS = (
    'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
    'ln -s python3 "$1"/usr/bin/python',
    'rm -rf "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/apt/sources.list "$1"/var/log/*.log',
    'rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/*',
)


def reference() -> str:
    """`finetune.dev/base:<hash of how it is made>`; Debian's own updates do not change it."""
    recipe = repr((_SUITE, _PACKAGES, _HOOKS))
    return f"finetune.dev/base:{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def ensure(present: Callable[[str], bool], push: Callable[[str, str], str]) -> str:
    """The base's reference, made and pushed if the registry lacks it (about 40 s)."""
    wanted = reference()
    if present(wanted):
        return wanted
    tree = _tarball(wanted.rpartition(":")[2])
    container = run([*buildenv.buildah("from"), "scratch"]).strip()
    try:
        run([*buildenv.buildah("add"), container, tree, "/"])
        run([*buildenv.buildah("config"), "--cmd", "python3", "--env", "LANG=C.UTF-8", container])
        run([*buildenv.buildah("commit"), container, "localhost/base:build"])
    finally:
        run([*buildenv.buildah("rm"), container], check=False)
    push("localhost/base:build", wanted)
    tree.unlink()
    return wanted


def _tarball(name: str) -> Path:
    tree = paths.cache() / "tmp" / f"base-{name}.tar"
    tree.parent.mkdir(parents=True, exist_ok=True)
    hooks = [word for hook in _HOOKS for word in ("--customize-hook", hook)]
    packages = f"--include={','.join(_PACKAGES)}"
    log = paths.cache() / "logs" / "image-base.log"
    run(["mmdebstrap", "--variant=minbase", packages, *hooks, _SUITE, tree, *_mirror()], log=log)
    return tree


def _mirror() -> list[str]:
    """Where this machine's own apt gets the suite from; mmdebstrap knows Debian's address where apt has another one."""
    fields = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    targets = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], check=False)
    found = [line.split() for line in targets.splitlines()]
    return next(([uri] for suite, component, uri in found if (suite, component) == (_SUITE, "main")), [])
