"""`report`: a page from the work volume, which nobody but pods can read.

A short-lived pod of the FineTune's own kind (restricted, the volume read-only, no token) prints the file to its log and is removed.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import gzip
import json
import re
import secrets
import sys
import time
import webbrowser
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from finetune_operator import names
from finetune_operator.api.load import load_spec
from finetune_operator.api.spec import Spec
from finetune_operator.build import pods
from finetune_operator.build.pods import Manifest, Owner
from finetune_operator.build.runconfig import data_path
from finetune_operator.errors import SpecError
from finetune_operator.workloads.waiting import waiting

from kubectl_finetune.kubectl import MANAGER, Kubectl, NotFound, Object, PluginError
from kubectl_finetune.view import utc_now

PAGE: Final = "report.html"
CARD: Final = "README.md"
READ_SECONDS: Final = 120
POLL_SECONDS: Final = 1.0
MISSING: Final = 3  # the exit code of a reader that finds no such file
# Compressed, for a log is cut at 10 MiB; as base64, for a log is lines of text. The path is an argument: no shell reads it.
READ: Final = f'test -r "$1" || exit {MISSING}; gzip -c -- "$1" | base64'
RESOURCES: Final = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}}


def arguments(command: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    command.add_argument("--revision", help="of which revision (default: the newest)")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--data", action="store_true", help="the page of the prepared data instead of the evaluation's")
    what.add_argument("--card", action="store_true", help="the model card that lies beside the artifact")
    command.add_argument("-o", "--output", type=Path, help="where to write it (default: NAME-REVISION-….html here)")
    command.add_argument("--open", action="store_true", help="show it in the browser")
    command.add_argument("--image", help="what the reading pod runs; needs sh, gzip and base64 (default: the FineTune's own)")


def fetch(kubectl: Kubectl, name: str, options: argparse.Namespace) -> str:
    """Save the file, and say where. PluginError says what is missing."""
    finetune = kubectl.finetune(name)
    revision = _revision(finetune, options.revision)
    kind = "data" if options.data else "card" if options.card else "evaluation"
    path = where(revision, kind)
    content = read(kubectl, finetune, path, template(kubectl, name, options.image))
    file = options.output or Path(f"{name}-{revision['name']}-{kind}{Path(path).suffix}")
    try:
        file.write_bytes(content)
    except OSError as error:
        raise PluginError(f"{file} cannot be written: {error.strerror}; --output names another place") from error
    if options.open:
        webbrowser.open(file.resolve().as_uri())
    return str(file)


def where(revision: Object, kind: str) -> str:
    """The file's path on the work volume. PluginError when that revision has none yet."""
    name = revision["name"]
    if kind == "data":
        return _of(revision.get("dataDigest"), f"{data_path(name)}/{PAGE}", f"the data of revision {name} are not prepared")
    scored = revision.get("evaluated") or {}
    if kind == "card":
        folder = scored.get("path") or revision.get("artifact")  # the one with results, once there are any
        return _of(folder, f"{folder}/{CARD}", f"revision {name} has no artifact")
    folder = scored.get("path") or (revision.get("baseline") or {}).get("path")  # what it is compared with has a page before it is trained
    return _of(folder, f"{folder}/{PAGE}", f"revision {name} is not scored yet; --data shows its data")


def _of(there: Any, path: str, otherwise: str) -> str:
    if not there:
        raise PluginError(otherwise)
    return path


def _revision(finetune: Object, wanted: str | None) -> Object:
    status = finetune.get("status") or {}
    known = {r["name"]: r for r in status.get("revisions") or ()}
    name = wanted or status.get("revision")
    if name not in known:
        there = f"; it knows: {', '.join(known)}" if known else ""
        raise PluginError(f"{finetune['metadata']['name']} has no revision {name or 'yet'}{there}")
    return dict(known[name])


def template(kubectl: Kubectl, name: str, image: str | None = None) -> Object:
    """What the FineTune's pods are made from: an image that its nodes can pull (or the one that is named), and what they tolerate. A model
    server's first, for the volume may be where that is. PluginError when nothing of it is left that names an image."""
    for kind, selector in (("deployments", names.ARM), ("jobs", names.STAGE)):
        for found in reversed(kubectl.items(kind, f"--selector={names.NAME}={name},{selector}")):
            spec = found["spec"]["template"]["spec"]
            return {"image": image or spec["containers"][0]["image"], "tolerations": spec.get("tolerations") or []}
    if image:
        return {"image": image, "tolerations": []}
    raise PluginError("no Job or server of it is left that tells an image: name one that has sh, gzip and base64 with --image")


def read(kubectl: Kubectl, finetune: Object, path: str, like: Object, *, wait: Callable[[float], None] = time.sleep) -> bytes:
    """The file's content, read by a pod that is removed afterwards. PluginError says what kept it."""
    manifest = reader(finetune, path, like)
    pod = manifest["metadata"]["name"]
    print(f"reading {path} with pod {pod}", file=sys.stderr)
    try:
        kubectl("create", "--filename=-", f"--field-manager={MANAGER}", stdin=json.dumps(manifest))
        code = _ended(kubectl, pod, wait)
        if code == MISSING:
            raise PluginError(f"{path} is not on the work volume: that revision was made by an older operator, or is not kept any more")
        if code:
            raise PluginError(f"pod {pod} could not read {path}: {kubectl('logs', pod).strip()[-500:] or f'exit code {code}'}")
        return unpacked(kubectl("logs", pod))
    finally:
        _remove(kubectl, pod)


def _remove(kubectl: Kubectl, pod: str) -> None:
    try:
        kubectl("delete", "pod", pod, "--wait=false", "--ignore-not-found")
    except PluginError as error:  # what was read is not lost for that
        print(f"pod {pod} is left, and ends by itself within {READ_SECONDS} s: {error}", file=sys.stderr)


def unpacked(log: str) -> bytes:
    """The file in the reader's log. PluginError when it came in pieces."""
    try:
        packed = base64.b64decode(re.sub(r"\s", "", log), validate=True)
        if not packed:
            raise EOFError("nothing was printed")
        return gzip.decompress(packed)
    except (binascii.Error, OSError, EOFError, zlib.error) as error:
        raise PluginError(f"what the reading pod printed is damaged ({error}): try again") from error


def reader(finetune: Object, path: str, like: Object) -> Manifest:
    """The pod that prints the file, of the image of `like`, and tolerating what it tolerates. It goes with its FineTune, and ends by
    itself, also when nobody removes it."""
    meta = finetune["metadata"]
    owner = Owner(meta["namespace"], meta["name"], meta["uid"])
    container: Manifest = {
        "name": "reader",
        "image": like["image"],
        "command": ["sh", "-c", READ, "reader", path],
        "resources": RESOURCES,
        "securityContext": pods.RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "work", "mountPath": names.WORK, "readOnly": True}],
    }
    user = _spec(finetune)
    claim = {"claimName": names.work_volume(owner.name), "readOnly": True}
    spec = pods.pod_spec(owner, user, containers=[container], volumes=[{"name": "work", "persistentVolumeClaim": claim}], grace_seconds=1)
    given = spec.get("tolerations") or []
    tolerations = [*given, *(t for t in like["tolerations"] if t not in given)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "annotations": pods.pod_annotations(user),
            "name": f"{owner.name}-report-{secrets.token_hex(3)}",
            "namespace": owner.namespace,
            "labels": {names.MANAGED_BY: MANAGER, **pods.volume_label(owner)},
            "ownerReferences": [{**owner.reference(), "controller": False}],
        },
        "spec": {**spec, "tolerations": tolerations, "restartPolicy": "Never", "activeDeadlineSeconds": READ_SECONDS},
    }


def _spec(finetune: Object) -> Spec:
    try:
        return load_spec(finetune)
    except SpecError as error:
        raise PluginError(f"its spec cannot be read: {error}") from error


def _ended(kubectl: Kubectl, pod: str, wait: Callable[[float], None]) -> int:
    """The exit code of the reader. PluginError says why it does not end."""
    why = ""
    for _ in range(int(READ_SECONDS / POLL_SECONDS)):
        try:
            found = kubectl.read("get", "pod", pod)
        except NotFound:
            raise PluginError(f"pod {pod} was deleted before it had read anything") from None
        status = found.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            ended = [s["state"]["terminated"] for s in status.get("containerStatuses") or () if "terminated" in s.get("state", {})]
            if not ended:
                raise PluginError(f"pod {pod} was ended before it had read anything: {status.get('message') or status.get('reason')}")
            return int(ended[0]["exitCode"])
        held_up = waiting(found, utc_now())
        why = f": {held_up.message}" if held_up else ""
        wait(POLL_SECONDS)
    raise PluginError(f"pod {pod} did not end within {READ_SECONDS} s{why}")
