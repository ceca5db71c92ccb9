"""Images for a node that reaches no public registry: built from their Dockerfiles, tagged by the content that goes in.

The registry's data is in the cache, so an image is built once for each state of its sources, whatever `down` removes. A
changed source goes through the layers of the last build, which are kept under a name for each stage of a Dockerfile.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from devcluster import baseimage, buildenv, node, packages, paths, registry
from devcluster.shell import DevclusterError, Progress, lock, run, say, wait_for


@dataclass(frozen=True)
class Image:
    """A Dockerfile, and the seconds that its build and its pull take when nothing is cached."""

    dockerfile: str
    build_seconds: float
    pull_seconds: float = 5


IMAGES: Mapping[str, Image] = {
    "operator": Image("operator/Dockerfile", 60),
    "router": Image("devcluster/router/Dockerfile", 30),
    "trainer": Image("Dockerfile.trainer", 250, 120),
}
NAMES = tuple(IMAGES)


def ensure(names: Iterable[str] = NAMES) -> dict[str, str]:
    """Build what the registry lacks and bring it onto the node; full references by name, as pods are to write them."""
    packages.ensure(packages.IMAGES)
    with lock("images"):
        with lock("devcluster"):
            node.start_registry()
        wait_for("the image registry", registry.answers, seconds=20)
        references = {name: reference(name) for name in names}
        missing = [name for name, wanted in references.items() if not registry.present(wanted)]
        if missing:
            _build_all(missing, references)
            _free_space()
        _pull(references)
    return references


def push(image: str, wanted: str) -> str:
    """Push an image of buildah's storage to the local registry, under the name that pods will write."""
    with lock("images"):
        return _push(image, wanted)


def reference(name: str) -> str:
    """`finetune.dev/<name>:<hash>`, the hash over the Dockerfile, what it copies and the base image."""
    dockerfile = paths.REPOSITORY / IMAGES[name].dockerfile
    if not dockerfile.exists():
        raise DevclusterError(f"there is no {IMAGES[name].dockerfile} to build the image {name} from")
    inputs = [IMAGES[name].dockerfile, ".dockerignore", *copied(dockerfile.read_text())]
    return f"finetune.dev/{name}:{content_hash(inputs, salt=baseimage.reference())}"


def copied(dockerfile: str) -> list[str]:
    """The files and folders that a Dockerfile copies out of the repository."""
    words = [shlex.split(line) for line in dockerfile.splitlines() if line.startswith("COPY ")]
    return [source for line in words if not line[1].startswith("--from=") for source in line[1:-1] if not source.startswith("--")]


def stages(dockerfile: str) -> list[str]:
    """The names of a Dockerfile's stages; the last one, which is the image, has none."""
    return re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)\s*$", dockerfile, re.MULTILINE)


def content_hash(inputs: Sequence[str], *, salt: str = "") -> str:
    """16 hex digits over path, mode and content of every file under `inputs` that git does not ignore."""
    listing = run(["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *inputs], cwd=paths.REPOSITORY)
    digest = hashlib.sha256(salt.encode())
    for name in sorted(set(filter(None, listing.split("\0")))):
        file = paths.REPOSITORY / name
        if file.is_file():
            mode = "x" if os.access(file, os.X_OK) else "-"
            digest.update(f"\n{name} {mode} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:16]


def _build_all(missing: Sequence[str], references: Mapping[str, str]) -> None:
    expected = {"base": 60.0}
    for name in missing:
        expected |= {f"build {name}": IMAGES[name].build_seconds, f"push {name}": IMAGES[name].build_seconds / 2}
    progress = Progress("images", expected)
    with progress.phase("base"):
        base = baseimage.ensure(registry.present, _push)
    for name in missing:
        with progress.phase(f"build {name}"):
            local = _build(name, base)
        with progress.phase(f"push {name}"):
            _push(local, references[name])
    progress.remember()


def _build(name: str, base: str) -> str:
    """Build every stage under a name of its own, so that its layers outlive the pruning; the image's name."""
    dockerfile = IMAGES[name].dockerfile
    log = paths.cache() / "logs" / f"image-{name}.log"
    log.unlink(missing_ok=True)
    say(f"building {name} (log: {log})")
    build = [*buildenv.build_command(base), "-f", dockerfile]
    for stage in stages((paths.REPOSITORY / dockerfile).read_text()):
        tag = f"localhost/{name}-{stage}:build"
        run([*build, "--target", stage, "-t", tag, "."], cwd=paths.REPOSITORY, env=buildenv.environment(), log=log)
    local = f"localhost/{name}:build"
    run([*build, "-t", local, "."], cwd=paths.REPOSITORY, env=buildenv.environment(), log=log)
    return local


def _push(image: str, wanted: str) -> str:
    target = f"docker://{paths.REGISTRY}/{paths.in_registry(wanted)}"
    # buildah pushes no layer unpacked; of the formats that containerd reads, this is the quickest both ways.
    packing = ["--compression-format", "zstd", "--compression-level", "1"]
    run([*buildenv.buildah("push"), "--tls-verify=false", *packing, image, target])
    return wanted


def _pull(references: Mapping[str, str]) -> None:
    """Bring the images onto the node, if it is up, before a pod waits for them."""
    missing = node.not_pulled(references.values())
    wanted = {name: image for name, image in references.items() if image in missing}
    progress = Progress("images", {f"pull {name}": IMAGES[name].pull_seconds for name in wanted})
    for name, image in wanted.items():
        with progress.phase(f"pull {name}"):
            node.pull(image)
    progress.remember()


def _free_space() -> None:
    """Forget what is old in buildah's storage, in the registry and on the node."""
    run([*buildenv.buildah("rmi"), "--prune"], check=False)
    kept = registry.prune({paths.in_registry(image) for image in node.images_in_use()})
    node.forget_images(kept)
