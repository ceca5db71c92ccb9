"""The sealed test rows, read from the work volume by a pod: is any of them in the training data, what do they ask?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.example import Example
from demo.kube import DemoError, Kubectl

POD = "shop-sql-sealed-rows"
WAIT_SECONDS = 120
USER_ID = 10001  # owner of the volume's files (docs/contracts.md)
SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path("/work/data") / sys.argv[1]
rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines() if line]
trained = set((folder / "train-hashes.txt").read_text().split())
print(json.dumps({"rows": rows, "trained": len(trained), "leaked": sum(row["id"] in trained for row in rows)}))
"""


@dataclass(frozen=True)
class Question:
    """A test row: what a user would send, and the right statement."""

    messages: list[dict[str, str]]
    reference: str

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Sealed:
    """The test rows, and how many of them carry the content hash of a training row."""

    questions: Sequence[Question]
    trained: int
    leaked: int


def look(kubectl: Kubectl, example: Example, revision: str) -> Sealed:
    """Read the rows of a prepared revision. Raises DemoError where they cannot be read."""
    image = trainer_image(kubectl, example)
    kubectl("-n", example.namespace, "delete", "pod", POD, "--ignore-not-found", "--wait=true")
    kubectl("create", "-f", "-", stdin=json.dumps(pod(example, image, revision)))
    try:
        kubectl(
            "-n", example.namespace, "wait", f"pod/{POD}", "--for=jsonpath={.status.phase}=Succeeded",
            f"--timeout={WAIT_SECONDS}s", seconds=WAIT_SECONDS + 10,
        )  # fmt: skip
        return parse(kubectl("-n", example.namespace, "logs", POD))
    finally:
        kubectl("-n", example.namespace, "delete", "pod", POD, "--ignore-not-found", "--wait=false")


def parse(log: str) -> Sealed:
    """What the pod printed."""
    found = json.loads(log.strip().splitlines()[-1])
    questions = [Question(row["messages"], row["reference"]) for row in found["rows"]]
    return Sealed(questions, int(found["trained"]), int(found["leaked"]))


def trainer_image(kubectl: Kubectl, example: Example) -> str:
    """The image that the operator prepared the data with."""
    selector = f"finetune.dev/name={example.name},finetune.dev/stage=prepare"
    jobs = (kubectl.get("-n", example.namespace, "jobs", "-l", selector) or {}).get("items", [])
    if not jobs:
        raise DemoError("there is no prepare Job to take the trainer image from")
    return str(jobs[0]["spec"]["template"]["spec"]["containers"][0]["image"])


def pod(example: Example, image: str, revision: str) -> dict[str, Any]:
    """A pod that reads the work volume and prints the rows."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": example.namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsUser": USER_ID, "runAsGroup": USER_ID, "runAsNonRoot": True},
            "containers": [
                {
                    "name": "read",
                    "image": image,
                    "command": ["python3", "-c", SCRIPT, revision],
                    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
                    "volumeMounts": [{"name": "work", "mountPath": "/work", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": f"{example.name}-work", "readOnly": True}}],
        },
    }
