"""Images for a node that reaches no public registry: built from their Dockerfiles, tagged by the content that goes in.

The registry's data is in the cache, so an image is built once for each state of its sources, whatever `down` removes.
"""

import hashlib
import http.client
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import baseimage, buildenv, node, packages, paths
from devcluster.shell import DevclusterError, Progress, lock, run, say, wait_for


@dataclass(frozen=True)
class Image:
    """A Dockerfile and the files and folders of the repository that its content depends on."""

    dockerfile: str
    sources: Sequence[str]
    expected_seconds: float

    @property
    def inputs(self) -> Sequence[str]:
        return [self.dockerfile, ".dockerignore", *self.sources]


IMAGES: Mapping[str, Image] = {
    "trainer": Image("Dockerfile.trainer", ["trainer-image"], 400),
    "operator": Image("operator/Dockerfile", ["operator", "requirements.lock"], 60),
    "router": Image("devcluster/router/Dockerfile", ["devcluster/router"], 30),
}
NAMES = tuple(IMAGES)


def ensure(names: Iterable[str] = NAMES) -> dict[str, str]:
    """Build what the registry lacks; full references by name, as pods are to write them."""
    packages.ensure(packages.IMAGES)
    with lock("images"):
        with lock("devcluster"):
            node.start_registry()
        wait_for("the image registry", lambda: _registry("GET", "/v2/") == 200, seconds=20)
        references = {name: reference(name) for name in names}
        missing = [name for name, wanted in references.items() if not present(wanted)]
        if missing:
            _build_all(missing, references)
    return references


def reference(name: str) -> str:
    """`finetune.dev/<name>:<hash>`, the hash over the Dockerfile, its sources and the base image."""
    image = IMAGES[name]
    if not (paths.REPOSITORY / image.dockerfile).exists():
        raise DevclusterError(f"there is no {image.dockerfile} to build the image {name} from")
    return f"finetune.dev/{name}:{content_hash(paths.REPOSITORY, image.inputs, salt=baseimage.reference())}"


def content_hash(repository: Path, inputs: Sequence[str], *, salt: str = "") -> str:
    """16 hex digits over path, mode and content of every file under `inputs` that git does not ignore."""
    listing = run(["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *inputs], cwd=repository)
    digest = hashlib.sha256(salt.encode())
    for name in sorted(set(filter(None, listing.split("\0")))):
        file = repository / name
        if file.is_file():
            mode = "x" if os.access(file, os.X_OK) else "-"
            digest.update(f"\n{name} {mode} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:16]


def present(wanted: str) -> bool:
    """Whether the local registry has this reference."""
    repository, _, tag = paths.in_registry(wanted).rpartition(":")
    return _registry("HEAD", f"/v2/{repository}/manifests/{tag}") == 200


def push(image: str, wanted: str) -> str:
    """Push an image of buildah's storage to the local registry, under the name that pods will write."""
    target = f"docker://{paths.REGISTRY}/{paths.in_registry(wanted)}"
    run([*buildenv.buildah("push"), "--tls-verify=false", *buildenv.PUSH_FLAGS, image, target])
    return wanted


def _build_all(missing: Sequence[str], references: Mapping[str, str]) -> None:
    progress = Progress("images", {"base": 45, **{name: IMAGES[name].expected_seconds for name in missing}})
    with progress.phase("base"):
        base = baseimage.ensure(present, push)
    for name in missing:
        with progress.phase(name):
            _build(name, references[name], base)
    progress.remember()


def _build(name: str, wanted: str, base: str) -> None:
    log = paths.cache() / "logs" / f"image-{name}.log"
    log.unlink(missing_ok=True)
    local = f"localhost/{name}:build"
    say(f"building {wanted} (log: {log})")
    command = [*buildenv.build_command(base), "-t", local, "-f", IMAGES[name].dockerfile, "."]
    begun = time.monotonic()
    run(command, cwd=paths.REPOSITORY, env=buildenv.environment(), log=log)
    built = time.monotonic()
    push(local, wanted)
    say(f"{name}: built in {built - begun:.0f} s, pushed in {time.monotonic() - built:.0f} s")
    run([*buildenv.buildah("rmi"), "--prune"], check=False)


def _registry(method: str, path: str) -> int:
    host, _, port = paths.REGISTRY.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    manifest = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    try:
        connection.request(method, path, headers={"Accept": manifest})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
