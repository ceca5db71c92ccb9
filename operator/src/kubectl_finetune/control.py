"""`pause`, `resume`, `promote` and `abort`: the annotation that names the rollout, and the operator's answer in the status.

What may be asked is decided by the operator alone; the plugin looks only whether there is a rollout to name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from finetune_operator import names
from finetune_operator.decide.control import MEANING
from finetune_operator.decide.rollout.states import ACTIVE

from kubectl_finetune.kubectl import FINETUNES, MANAGER, Kubectl, Object, PluginError

VERBS: Final = tuple(MEANING)
ANSWER_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.5


def ask(kubectl: Kubectl, name: str, verb: str, *, wait: Callable[[float], None] = time.sleep) -> str:
    """Ask it of the rollout that runs; the operator's answer. PluginError when there is none, or when it is without effect."""
    finetune = kubectl.finetune(name)
    asked = f"{verb}:{running(finetune)['name']}"
    kubectl("annotate", FINETUNES, name, f"{names.CONTROL}={asked}", "--overwrite", f"--field-manager={MANAGER}")
    for _ in range(int(ANSWER_SECONDS / POLL_SECONDS)):
        control = (kubectl.finetune(name).get("status") or {}).get("control") or {}
        if control.get("asked") == asked:
            if control["outcome"] != "Accepted":
                raise PluginError(control["message"])
            return str(control["message"])
        wait(POLL_SECONDS)
    raise PluginError(
        f"{verb} is asked for ({names.CONTROL}={asked}), and the operator has not answered within {ANSWER_SECONDS:.0f} s: is it running?"
    )


def running(finetune: Object) -> dict[str, Any]:
    """The rollout that is under way. PluginError says what is the case instead."""
    name, status = finetune["metadata"]["name"], finetune.get("status") or {}
    rollout = status.get("rollout") or {}
    if rollout.get("state") not in ACTIVE:
        raise PluginError(f"{name} has no rollout running: {_instead(name, status, rollout)}")
    if not rollout.get("name"):
        raise PluginError(f"the rollout of {name} was begun by an older operator and has no name: it can be asked for nothing")
    return dict(rollout)


def _instead(name: str, status: Object, rollout: Object) -> str:
    phase, live = status.get("phase", "Pending"), status.get("liveRevision")
    if rollout.get("state") == "Promoted" and rollout.get("name"):
        back = f", and to go back to revision {status['previousRevision']} revert the spec" if status.get("previousRevision") else ""
        return f"revision {live} serves all users since the last one{back}"
    if rollout.get("state") == "RolledBack":
        again = f"`kubectl annotate ft {name} --overwrite {names.RETRY}=…` with a new value tries it again"
        return f"{rollout.get('lastDecision', 'the last one was taken back')}. {again}"
    serving = f", revision {live} serves" if live else ""
    return f"it is {phase}{serving}. A rollout begins once a new revision has passed its gate, or once spec.serving is changed"
