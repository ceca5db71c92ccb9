"""`status`: what is asked of the cluster for the view, once or again and again."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, TextIO

from finetune_operator import conditions, names

from kubectl_finetune.kubectl import Kubectl, NotFound, Object, PluginError
from kubectl_finetune.view import Seen, coloured, headline, plain, screen, utc_now

SECONDS: Final = 2.0
CLEAR, HOME, BELOW = "\x1b[2J", "\x1b[H", "\x1b[J"  # the screen; to the first line; from here
STYLE: Final = re.compile(r"\x1b\[[0-9]+m")  # takes no room
LINE_END: Final = "\x1b[K\n"  # clear what an older, longer line left
MOVING: Final = ("training", "validating", "saving", "exporting")  # states in which a pod's own figures are newer than the status
FIGURES: Final = ("step", "totalSteps", "percent", "loss", "validationLoss", "tokensPerSecond", "etaSeconds")
END_PHASES: Final = conditions.READY_PHASES | conditions.STALLED_PHASES


def show(
    kubectl: Kubectl, name: str, out: TextIO, *, watch: bool, wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], datetime] = utc_now,
) -> bool:  # fmt: skip
    """Print the view; with `watch` redraw it on a terminal until it is interrupted, and elsewhere print a line for each change until
    the FineTune has come to an end. Whether that is none that failed. PluginError when it cannot be read (a watch outlives single
    failures, but not the FineTune)."""
    terminal = out.isatty()
    if not watch:
        out.write("\n".join(screen(look(kubectl, name, clock(), terminal=terminal))).rstrip() + "\n")
        return True
    kubectl.finetune(name)  # what is not there is said at once
    last = ""
    while True:
        try:
            seen = look(kubectl, name, clock(), terminal=terminal)
            lines, line = screen(seen), headline(seen)
        except NotFound:
            raise
        except PluginError as error:
            lines, line = [f"the cluster cannot be asked: {error}"], f"the cluster cannot be asked: {error}"
            seen = None
        if terminal:
            rows = fitting(lines, shutil.get_terminal_size((110, 40)))
            out.write((HOME if last else CLEAR + HOME) + "".join(f"{text}{LINE_END}" for text in rows) + BELOW)
        elif line != last:
            out.write(f"{clock():%H:%M:%S}  {line}\n")
        out.flush()
        last = line
        if not terminal and seen is not None and ended(seen):
            return seen.status.get("phase") not in conditions.STALLED_PHASES
        wait(SECONDS)


def fitting(lines: Sequence[str], size: os.terminal_size) -> Iterator[str]:
    """The first lines for which there is room above the cursor's: a line that is too wide takes several rows."""
    room = size.lines - 1
    for line in lines:
        room -= max(1, math.ceil(len(STYLE.sub("", line)) / max(1, size.columns)))
        if room < 0:
            return
        yield line


def ended(seen: Seen) -> bool:
    """Has it come to an end, by a status that is about the present spec?"""
    current = seen.status.get("observedGeneration") == seen.finetune["metadata"].get("generation")
    return current and seen.status.get("phase") in END_PHASES


def look(kubectl: Kubectl, name: str, now: datetime, *, terminal: bool) -> Seen:
    """Everything that is shown. Events and a stage's own figures are left out where they cannot be read."""
    finetune = kubectl.finetune(name)
    width = shutil.get_terminal_size((110, 40)).columns if terminal else 110
    return Seen(finetune, now, _events(kubectl, name), _progress(kubectl, finetune), width, coloured if terminal else plain)


def _events(kubectl: Kubectl, name: str) -> list[Object]:
    with suppress(PluginError):
        return kubectl.items("events", f"--field-selector=involvedObject.kind={names.KIND},involvedObject.name={name}")
    return []


def _progress(kubectl: Kubectl, finetune: Object) -> Object:
    """What rank 0 says of itself, through the API server; the status has it at marks alone."""
    if (finetune.get("status") or {}).get("phase") != conditions.TRAINING:
        return {}
    meta = finetune["metadata"]
    with suppress(PluginError, ValueError):
        pods = kubectl.items("pods", f"--selector={names.NAME}={meta['name']},{names.STAGE}=train")
        leader = next((p["metadata"]["name"] for p in pods if _leads(p)), None)
        if leader:
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{leader}:{names.PROGRESS_PORT}/proxy/progress"
            return _figures(json.loads(kubectl("get", "--raw", path, seconds=5)))
    return {}


def _figures(told: Any) -> Object:
    """The numbers of what a pod says of itself: it runs what users wrote, so nothing else of it reaches the terminal. None while it
    loads, when it knows less than the status."""
    if not isinstance(told, dict) or told.get("stage") != "train" or told.get("state") not in MOVING:
        return {}
    figures: Object = {key: told[key] for key in FIGURES if isinstance(told.get(key), int | float)}
    saved = told.get("checkpoint")
    if isinstance(saved, dict) and isinstance(saved.get("step"), int):
        figures["checkpoint"] = {"step": saved["step"]}
    return {"stage": "train", **figures}


def _leads(pod: Object) -> bool:
    index = (pod["metadata"].get("annotations") or {}).get(names.JOB_INDEX)
    return index == "0" and (pod.get("status") or {}).get("phase") == "Running"
