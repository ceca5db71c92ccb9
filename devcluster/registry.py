"""The local image registry's content: asking for it, using it, and keeping only the newest of each name.

Its data is a folder of the cache. Tags are removed there, while the images lock is held, and its own garbage collection
then frees the layers that nothing needs any more.
"""

import http.client
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from devcluster import components, paths
from devcluster.shell import run

KEPT = 3  # tags of each name
_YOUNG = 3600.0  # seconds for which a tag is kept whatever its rank: a test may be about to use it
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def answers() -> bool:
    return _status("GET", "/v2/") == 200


def present(reference: str) -> bool:
    """Whether the registry has this reference; one that is asked for counts as just used."""
    repository, _, tag = paths.in_registry(reference).rpartition(":")
    found = _status("HEAD", f"/v2/{repository}/manifests/{tag}") == 200
    if found:
        os.utime(_repositories() / repository / "_manifests" / "tags" / tag / "current" / "link")
    return found


def prune(in_use: Collection[str]) -> set[str]:
    """Remove old tags but those that containers use (as paths in the registry), free their layers; what is left."""
    tags = {
        f"{folder.parents[2].relative_to(_repositories())}:{folder.name}": (folder / "current" / "link").stat().st_mtime
        for folder in _repositories().glob("**/_manifests/tags/*")
        if (folder / "current" / "link").exists()
    }
    old = outdated(tags, in_use, now=time.time())
    for name in old:
        repository, _, tag = name.rpartition(":")
        shutil.rmtree(_repositories() / repository / "_manifests" / "tags" / tag)
    if old:
        program, _, configuration = components.registry(paths.state())
        log = paths.cache() / "logs" / "registry-gc.log"
        log.unlink(missing_ok=True)
        run([program, "garbage-collect", "--delete-untagged", configuration], log=log)
    return set(tags) - set(old)


def outdated(tags: Mapping[str, float], in_use: Iterable[str], *, now: float) -> list[str]:
    """`name:tag`s that are neither among the newest of their name, nor young, nor in use; `tags` gives their last use."""
    by_name: dict[str, list[str]] = {}
    for reference in sorted(tags, key=lambda reference: (-tags[reference], reference)):
        by_name.setdefault(reference.rpartition(":")[0], []).append(reference)
    kept = set(in_use)
    return [
        reference
        for newest_first in by_name.values()
        for reference in newest_first[KEPT:]
        if reference not in kept and now - tags[reference] > _YOUNG
    ]


def _repositories() -> Path:
    return paths.cache() / "registry" / "docker" / "registry" / "v2" / "repositories"


def _status(method: str, path: str) -> int:
    host, _, port = paths.REGISTRY.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request(method, path, headers={"Accept": _MANIFESTS})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
