"""FineTunes as the API server held them in real runs, and what GitOps tools must make of them. `record` writes the files anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
FOLDER = Path(__file__).resolve().parent / "recorded"

# File → (kstatus, Argo CD's health). A file is named by its phase and, where that is another word, its reason.
ANSWERS: dict[str, tuple[str, str]] = {
    "new": ("InProgress", "Progressing"),  # no operator has seen it
    "Pending-SourceMissing": ("InProgress", "Progressing"),
    "Fetching": ("InProgress", "Progressing"),
    "Fetching-Unschedulable": ("InProgress", "Progressing"),
    "Preparing": ("InProgress", "Progressing"),
    "ScoringBaseline": ("InProgress", "Progressing"),
    "Queued": ("InProgress", "Progressing"),
    "Training": ("InProgress", "Progressing"),
    "Training-edited": ("InProgress", "Progressing"),
    "Evaluating": ("InProgress", "Progressing"),
    "Deploying": ("InProgress", "Progressing"),
    "RollingOut": ("InProgress", "Progressing"),
    "Paused-GuardUndecided": ("InProgress", "Suspended"),
    "Paused-PausedByUser": ("InProgress", "Suspended"),
    "Paused-TooFewPods": ("InProgress", "Suspended"),
    "Baking": ("InProgress", "Progressing"),
    "Live": ("Current", "Healthy"),
    "Live-edited": ("InProgress", "Progressing"),  # its status is about an older generation
    "Trained": ("Current", "Healthy"),
    "NotNeeded-BaselineGoodEnough": ("Current", "Healthy"),
    "Rejected-GateFailed": ("Failed", "Degraded"),
    "Rejected-GuardFailed": ("Failed", "Degraded"),
    "Suspended": ("InProgress", "Suspended"),
    "Failed-InvalidSpec": ("Failed", "Degraded"),
    "Failed-RetriesExhausted": ("Failed", "Degraded"),
    "Terminating": ("Terminating", "Progressing"),
}


def name(finetune: Object) -> str:
    """What a FineTune in this state is called here."""
    status, generation = finetune.get("status") or {}, finetune["metadata"]["generation"]
    phase, reason = status.get("phase"), status.get("reason")
    if phase is None:
        return "new"
    if status["observedGeneration"] < generation:
        return f"{phase}-edited"
    return str(phase if reason in (None, phase) else f"{phase}-{reason}")


def load(file: str) -> Object:
    """The recorded object of that name."""
    return dict(yaml.safe_load((FOLDER / f"{file}.yaml").read_text()))
