"""The recorded FineTunes are complete, and Argo CD's script, in the Lua that Argo CD speaks, says the right health of each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from finetune_operator import conditions
from finetune_operator.api.crd import ROOT
from finetune_operator.api.status import Status
from finetune_operator.apply import contains
from lupa.lua51 import LuaRuntime

from tests.gitops.recorded import ANSWERS, FOLDER, Object, load, name

SCRIPT = (ROOT / "charts" / "finetune-operator" / "files" / "argocd-health.lua").read_text()


def argocd(finetune: Object) -> dict[str, Any]:
    """What Argo CD's health script returns, with `obj` and the basic library alone, as Argo CD runs it."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.execute("io, os, debug, package, require, string, math, coroutine = nil")
    lua.globals().obj = lua.table_from(finetune, recursive=True)
    return dict(lua.execute(SCRIPT))


@pytest.mark.parametrize("file", ANSWERS)
def test_argocd_health(file: str) -> None:
    finetune = load(file)
    answer = argocd(finetune)
    assert answer["status"] == ANSWERS[file][1]
    ready = next((c["message"] for c in finetune["status"].get("conditions", ()) if c["type"] == "Ready"), "")
    if finetune["status"]["observedGeneration"] == finetune["metadata"]["generation"]:
        assert answer["message"] == ready
    else:
        assert answer["message"] == "the operator has not seen this generation yet"


def test_argocd_health_of_one_under_an_older_crd() -> None:
    """Without a status at all."""
    assert argocd({k: v for k, v in load("new").items() if k != "status"})["status"] == "Progressing"


def test_what_is_refused_while_suspended_is_still_suspended() -> None:
    finetune = copy.deepcopy(load("Suspended"))
    ready = next(c for c in finetune["status"]["conditions"] if c["type"] == "Ready")
    ready |= {"reason": conditions.REFUSED, "message": "exceeded quota"}
    finetune["status"]["conditions"].append({**ready, "type": "Reconciling", "status": "True", "reason": conditions.SUSPENDED})
    assert argocd(finetune) == {"status": "Suspended", "message": "exceeded quota"}


def test_every_phase_is_recorded() -> None:
    assert {load(file)["status"].get("phase") for file in ANSWERS} - {None} == set(conditions.PHASES)
    assert {path.stem for path in FOLDER.iterdir()} == set(ANSWERS)


@pytest.mark.parametrize("file", ANSWERS)
def test_a_recorded_finetune_is_what_it_is_called_and_todays_schema_knows_all_of_it(file: str) -> None:
    finetune = load(file)
    assert name(finetune) == file
    assert contains(Status.model_validate(finetune["status"]).to_dict(), finetune["status"])
