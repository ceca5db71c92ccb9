"""Does a run fit? On its volume's machine, and in its accelerator's memory: figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator import conditions
from finetune_operator.api.status import Attempt, Estimate
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import layout
from finetune_operator.decide.draft import Draft
from finetune_operator.observed import Observed

from tests.unit.operator.helpers import REV, STAMP, draft, make_observed, make_revision

GIB = 2**30
# 20 GiB however long the rows are, and 5 GiB for each thousand tokens of a pass.
ESTIMATE = {
    "memoryBytes": 60 * GIB,
    "memory": {"weights": 16 * GIB, "trained": 3 * GIB, "activations": 30 * GIB, "logits": 10 * GIB, "framework": GIB},
    "passTokens": 8000,
    "longest": 2000,
}
PROFILES = {
    name: Accelerator(name, "nvidia.com/gpu", memory_bytes=size * GIB if size else None, per_machine=per)
    for name, size, per in (("h200", 140, 8), ("h100", 79, 8), ("l40s", 44, 8), ("a10", 24, 4), ("unknown", 0, 8))
}
KNOWN = Estimate.model_validate(ESTIMATE)


def asked(accelerator: str | None, estimate: dict[str, Any] | None = None, **compute: Any) -> tuple[Observed, Draft]:
    revision = make_revision(estimate=ESTIMATE if estimate is None else {**ESTIMATE, **estimate})
    changes = {"compute": {**({"accelerator": accelerator} if accelerator else {}), **compute}}
    o = make_observed(revision, changes=changes, profiles=PROFILES)
    return o, draft(o)


@pytest.mark.parametrize(
    ("room", "tokens"), [(80, 8000), (60, 8000), (59, 4000), (40, 4000), (39, 2000), (30, 2000), (29, None), (None, 8000)]
)
def test_passes_are_halved_until_they_fit_and_never_split_a_row(room: int | None, tokens: int | None) -> None:
    assert layout.pass_tokens(KNOWN, room * GIB if room else None, 8) == tokens


def test_the_last_halving_stops_at_the_longest_row() -> None:
    odd = KNOWN.model_copy(update={"longest": 3000})
    assert layout.pass_tokens(odd, 36 * GIB, 1) == 3000


@pytest.mark.parametrize(("accelerator", "tokens"), [("h100", None), ("l40s", 4000), ("unknown", None), (None, None)])
def test_the_job_is_told_a_pass_only_where_the_trainers_own_does_not_fit(accelerator: str | None, tokens: int | None) -> None:
    o, d = asked(accelerator)
    assert layout.micro_batch_tokens(o, d.revision.estimate) == tokens
    assert not layout.memory(o, d).blocked


def test_what_does_not_fit_is_refused_with_its_arithmetic_and_the_smallest_that_would() -> None:
    found = layout.memory(*asked("a10"))
    assert (found.phase, found.reason) == (conditions.FAILED, conditions.DOES_NOT_FIT)
    assert found.message == (
        "a rank needs at least 30.0 GiB (weights 16.0, trained 3.0, activations 7.5, logits 2.5, framework 1.0; passes of 2000 tokens, "
        "the longest row) and one a10 has 24.0 GiB. What would fit: compute.accelerator l40s (44.0 GiB); or training.maxSequenceLength "
        "768 (longer rows are then treated as data.quality.onTooLong says)"
    )


def test_where_nothing_would_help_a_smaller_model_is_named() -> None:
    huge = {"memory": {"weights": 500 * GIB, "activations": 30 * GIB}}
    found = layout.memory(*asked("h200", huge))
    assert found.message.endswith("What would fit: a smaller model")


@pytest.mark.parametrize(
    "known",
    [
        pytest.param({"artifact": "/work/a"}, id="it is trained"),
        pytest.param({"gate": "NotNeeded"}, id="it is not to be trained"),
        pytest.param({"estimate": None}, id="prepare has not said"),
    ],
)
def test_it_is_not_asked_where(known: dict[str, Any]) -> None:
    o, _ = asked("a10")
    revision = o.status.revisions[0].model_copy(update=known)
    o = replace(o, status=o.status.model_copy(update={"revisions": [revision]}))
    assert not layout.memory(o, draft(o)).blocked


def test_nor_of_an_attempt_that_runs() -> None:
    o, _ = asked("a10", nodes=4, gpusPerNode=4)
    attempt = Attempt(revision=REV, number=1, started=STAMP)
    o = replace(o, status=o.status.model_copy(update={"attempts": [attempt]}))
    assert not layout.memory(o, draft(o)).blocked
    assert not layout.one_machine(o, draft(o)).blocked


def test_what_ranks_share_is_divided_among_them() -> None:
    sharded = {"DDP": frozenset[str](), "sharded": frozenset({"weights", "trained"})}
    assert layout.needed(KNOWN, 8000, 1, sharded) == 60 * GIB
    assert layout.needed(KNOWN, 8000, 2, sharded) == 60 * GIB - 19 * GIB // 2


@pytest.mark.parametrize(
    ("compute", "mode", "refused"),
    [
        ({"accelerator": "h100", "nodes": 1, "gpusPerNode": 8}, "ReadWriteOnce", False),
        ({"accelerator": "h100", "nodes": 2, "gpusPerNode": 4}, "ReadWriteOnce", False),
        ({"accelerator": "h100", "nodes": 2, "gpusPerNode": 8}, "ReadWriteOnce", True),
        ({"accelerator": "h100", "nodes": 9}, "ReadWriteOnce", True),
        ({"accelerator": "a10", "gpusPerNode": 5}, "ReadWriteOnce", True),
        ({"nodes": 3, "gpusPerNode": 3}, "ReadWriteOnce", True),
        ({"nodes": 64}, "ReadWriteOnce", False),
        ({"accelerator": "h100", "nodes": 2, "gpusPerNode": 8}, "ReadWriteMany", False),
    ],
)
def test_a_gang_that_fills_more_than_one_machine_needs_a_shared_volume(compute: dict[str, Any], mode: str, refused: bool) -> None:
    o = make_observed(changes={"compute": compute, "storage": {"accessMode": mode}}, profiles=PROFILES)
    found = layout.one_machine(o, draft(o))
    assert (found.reason == conditions.NEEDS_SHARED_VOLUME) is refused
    if refused:
        assert "storage.accessMode ReadWriteMany" in found.message
