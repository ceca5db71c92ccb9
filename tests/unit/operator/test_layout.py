"""Does a run fit? On its volume's machine, and in its accelerator's memory: figures worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator import conditions, names
from finetune_operator.api.status import Attempt, Estimate
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import decide, layout
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.stages import evaluation_key
from finetune_operator.kinds import JOB
from finetune_operator.observed import ArmHealth, Observed

from tests.unit.operator.helpers import REV, STAMP, draft, make_observed, make_revision, make_scored
from tests.unit.operator.walks import manifests

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
    assert layout.chosen(o, d.revision.estimate) == layout.Choice(layout.WHOLE, tokens)
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


# A model of 10 GiB of float32 under Full: 60 GiB whole with its optimizer, which no l40s has room for; 5 GiB whatever is divided.
FULL = {
    "memory": {"weights": 15 * GIB, "gradients": 10 * GIB, "optimizer": 20 * GIB, "framework": 5 * GIB},
    "sharded": {
        "parameters": 5 * GIB, "masters": 10 * GIB, "gradients": 10 * GIB, "optimizer": 20 * GIB, "framework": 4 * GIB, "buckets": GIB,
        "gathered": 2 * GIB,
    },
}  # fmt: skip
NEEDED = {
    "DDP": 50, "ZeRO1": 20 + 15, "ZeRO2": 10 + 20, "ZeRO3": 7 + 22.5, "ZeRO1, offload Optimizer": 20, "ZeRO2, offload Optimizer": 15,
    "ZeRO3, offload Optimizer": 7 + 7.5, "ZeRO3, offload All": 7 + 5,
}  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("title", NEEDED)
def test_what_ranks_divide_and_what_lies_on_the_host(title: str, recompute: bool) -> None:
    """Whether or not layers are computed again; of 6 GiB of activations each rank then has 1."""
    told = {**FULL, **{name: {**FULL[name], "activations": 6 * GIB} for name in FULL}, "recomputed": GIB}
    found = next(found for found in layout.LAYOUTS if found.title == title + recompute * ", activations recomputed")
    for tokens in (8000, 4000):
        needed = layout.needed(Estimate.model_validate({**ESTIMATE, **told}), tokens, 2, found)
        assert needed == (NEEDED[title] + (1 if recompute else 6) * tokens / 8000) * GIB


@pytest.mark.parametrize("title", NEEDED)
def test_logits_of_all_tokens_are_zero_3s_alone_and_grow_with_a_pass(title: str) -> None:
    """The head's chunk is everybody's, and as large whatever the pass."""
    more = {"head": GIB, "unfusedLogits": 4 * GIB}
    told = {"memory": {**FULL["memory"], "head": GIB}, "sharded": {**FULL["sharded"], **more}}
    found = next(found for found in layout.LAYOUTS if found.title == title)
    for tokens in (8000, 4000):
        needed = layout.needed(Estimate.model_validate({**ESTIMATE, **told}), tokens, 2, found)
        assert needed == (NEEDED[title] + 1 + (4 * tokens / 8000 if title.startswith("ZeRO3") else 0)) * GIB


def test_layers_are_computed_again_before_anything_is_offloaded() -> None:
    assert [found.title for found in layout.LAYOUTS] == [
        "DDP", "ZeRO1", "ZeRO2", "ZeRO3",
        "DDP, activations recomputed", "ZeRO1, activations recomputed", "ZeRO2, activations recomputed", "ZeRO3, activations recomputed",
        "ZeRO1, offload Optimizer", "ZeRO2, offload Optimizer", "ZeRO3, offload Optimizer", "ZeRO3, offload All",
        "ZeRO1, offload Optimizer, activations recomputed", "ZeRO2, offload Optimizer, activations recomputed",
        "ZeRO3, offload Optimizer, activations recomputed", "ZeRO3, offload All, activations recomputed",
    ]  # fmt: skip


@pytest.mark.parametrize("found", layout.LAYOUTS, ids=lambda found: found.title)
def test_a_title_in_a_status_is_read_as_what_it_was_written_for(found: layout.Layout) -> None:
    assert layout.begun(make_observed(), None, found.title).layout == found


CHOSEN = {
    "whole where it fits": ("Auto", "Auto", 50, "DDP"),
    "the least that fits": ("Auto", "Auto", 49, "ZeRO1"),
    "gradients too": ("Auto", "Auto", 34, "ZeRO2"),
    "parameters before anything is offloaded": ("Auto", "Auto", 29.5, "ZeRO3"),
    "an offload where nothing else helps": ("Auto", "Auto", 29, "ZeRO1, offload Optimizer"),
    "gradients too, beside the offload": ("Auto", "Auto", 19, "ZeRO2, offload Optimizer"),
    "parameters too, beside the offload": ("Auto", "Auto", 14.5, "ZeRO3, offload Optimizer"),
    "all of it at last": ("Auto", "Auto", 14, "ZeRO3, offload All"),
    "nothing": ("Auto", "Auto", 11, None),
    "what is asked for, though less would do": ("ZeRO3", "Auto", 140, "ZeRO3"),
    "what is asked for, with the offload that it needs": ("ZeRO2", "Auto", 29, "ZeRO2, offload Optimizer"),
    "what is asked for and does not fit": ("ZeRO2", "None", 29, None),
    "the sharding that the offload belongs to": ("Auto", "Optimizer", 140, "ZeRO1, offload Optimizer"),
    "no sharding": ("DDP", "Auto", 49, None),
}


@pytest.mark.parametrize(("sharding", "offload", "room", "expected"), CHOSEN.values(), ids=CHOSEN)
def test_the_layout_is(sharding: str, offload: str, room: float, expected: str | None) -> None:
    profiles = {"some": Accelerator("some", "nvidia.com/gpu", memory_bytes=int(room * GIB))}
    compute = {"accelerator": "some", "nodes": 2, "sharding": sharding, "offload": offload}
    o = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes={"compute": compute}, profiles=profiles)
    choice = layout.chosen(o, o.status.revisions[0].estimate)
    assert (choice.layout.title if choice else None) == expected


@pytest.mark.parametrize(
    ("method", "expected"), [({"type": "QLoRA"}, ["DDP"]), ({"type": "LoRA", "objective": "DPO"}, ["DDP", "ZeRO1", "ZeRO2"])]
)
def test_a_method_that_does_not_go_with_a_stage_is_not_divided_so(method: dict[str, str], expected: list[str]) -> None:
    o = make_observed(changes={"method": method, "compute": {"offload": "None"}})
    assert [found.title for found in layout.allowed(o.spec)] == expected


# A LoRA of a model of 128 GiB, with rows of 2,000 tokens: a rank of 8 has 18 GiB and, kept, 80 GiB of activations for each thousand tokens.
LARGE = {
    "memory": {"weights": 128 * GIB, "activations": 640 * GIB, "framework": GIB},
    "sharded": {"parameters": 128 * GIB, "activations": 640 * GIB, "framework": GIB, "gathered": GIB},
    "recomputed": 32 * GIB,
}
GPUS = {"h100": Accelerator("h100", "nvidia.com/gpu", memory_bytes=80 * GIB, per_machine=8)}
RECOMPUTED = {
    "where nothing fits without, passes as large as ever": ({}, {}, {}, ("ZeRO3, activations recomputed", None)),
    "with halved passes": ({}, {"offload": "None"}, {"recomputed": 160 * GIB}, ("ZeRO3, activations recomputed", 2000)),
    "in any case": ({"gradientCheckpointing": "Always"}, {}, {"longest": 100}, ("ZeRO3, activations recomputed", None)),
    "not where halved passes are enough": ({}, {}, {"longest": 700}, ("ZeRO3", 700)),
    "never": ({"gradientCheckpointing": "Never"}, {}, {}, None),
    "with an offload": ({}, {"offload": "All"}, {}, ("ZeRO3, offload All, activations recomputed", None)),
    "not under what is asked for": ({}, {"sharding": "DDP"}, {}, None),
    "an estimate that does not tell": ({}, {}, {"recomputed": None}, None),
    "in any case, by an estimate that does not tell": (
        {"gradientCheckpointing": "Always"}, {"sharding": "ZeRO3"}, {"recomputed": None}, ("ZeRO3, activations recomputed", None),
    ),
    "an estimate that tells nothing of ZeRO": (
        {}, {}, {"sharded": {}, "memory": {"weights": 32 * GIB, "activations": 640 * GIB}}, ("DDP, activations recomputed", None),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("training", "compute", "told", "expected"), RECOMPUTED.values(), ids=RECOMPUTED)
def test_layers_are_computed_again(
    training: dict[str, str], compute: dict[str, str], told: dict[str, Any], expected: tuple[str, int | None] | None
) -> None:
    changes = {"training": training, "compute": {"accelerator": "h100", "gpusPerNode": 8, **compute}}
    o = make_observed(make_revision(estimate={**ESTIMATE, **LARGE, **told}), changes=changes, profiles=GPUS)
    choice = layout.chosen(o, o.status.revisions[0].estimate)
    assert (choice and (choice.layout.title, choice.micro_batch_tokens)) == expected
    assert layout.memory(o, draft(o)).blocked is (expected is None)


@pytest.mark.parametrize(
    ("changes", "kept", "again"),
    [
        ({"compute": {"accelerator": "h100"}}, True, True),
        ({"compute": {"accelerator": "h100"}, "training": {"gradientCheckpointing": "Never"}}, True, False),
        ({"compute": {"accelerator": "h100"}, "training": {"gradientCheckpointing": "Always"}}, False, True),
        ({"compute": {"accelerator": "h100"}, "method": {"type": "PTuning"}}, True, False),
        ({"compute": {"accelerator": "h100"}, "training": None}, True, True),
        ({}, True, False),
        ({"training": {"gradientCheckpointing": "Always"}}, False, True),
    ],
)
def test_activations_may_be(changes: dict[str, Any], kept: bool, again: bool) -> None:
    found = {found.recompute for found in layout.allowed(make_observed(changes=changes).spec)}
    assert found == {value for value, may in ((False, kept), (True, again)) if may}


MENDED = {
    "activations that may not be computed again": ({}, {}, "training.gradientCheckpointing Auto"),
    "a layout, too": ({"sharding": "DDP"}, {}, "compute.sharding Auto with compute.offload Auto and training.gradientCheckpointing Auto"),
    "either": (
        {"sharding": "DDP"}, {"memory": {"weights": 40 * GIB, "activations": 640 * GIB}, "longest": 700},
        "compute.sharding Auto with compute.offload Auto; or training.gradientCheckpointing Auto",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("compute", "told", "mend"), MENDED.values(), ids=MENDED)
def test_a_refusal_names_what_stands_in_the_way(compute: dict[str, str], told: dict[str, Any], mend: str) -> None:
    changes = {"training": {"gradientCheckpointing": "Never"}, "compute": {"accelerator": "h100", "gpusPerNode": 8, **compute}}
    o = make_observed(make_revision(estimate={**ESTIMATE, **LARGE, **told}), changes=changes, profiles=GPUS)
    ways = layout.memory(o, draft(o)).message.split("What would fit: ")[1].split("; or ")
    assert [way for way in ways if "Auto" in way] == mend.split("; or ")


def test_a_refusal_tells_what_recomputing_needs() -> None:
    changes = {"compute": {"accelerator": "h100", "gpusPerNode": 8}}
    o = make_observed(make_revision(estimate={**ESTIMATE, **LARGE, "recomputed": 400 * GIB}), changes=changes, profiles=GPUS)
    said = layout.memory(o, draft(o)).message
    assert said.startswith(
        "a rank needs at least 102.0 GiB under ZeRO3, offload All, activations recomputed (framework 1.0, gathered 1.0, recomp"
    )


def test_an_estimate_that_tells_nothing_of_zero_counts_as_whole_whatever_is_asked_for() -> None:
    silent = Estimate.model_validate({**ESTIMATE, **FULL, "sharded": {}})
    assert {layout.needed(silent, 8000, 2, found) for found in layout.LAYOUTS} == {50 * GIB}


@pytest.mark.parametrize(("sharding", "expected"), [("ZeRO3", "ZeRO3"), ("Auto", None)])
def test_an_estimate_that_tells_nothing_of_zero_refuses_no_sharding_that_is_asked_for(sharding: str, expected: str | None) -> None:
    silent = {**ESTIMATE, **FULL, "sharded": {}}
    o = make_observed(make_revision(estimate=silent), changes={"compute": {"accelerator": "a10", "sharding": sharding}}, profiles=PROFILES)
    choice = layout.chosen(o, o.status.revisions[0].estimate)
    assert (choice.layout.title if choice else None) == expected


HOSTED = {
    "the machine's is not known": (None, "ZeRO1, offload Optimizer"),
    "masters and optimizer of both ranks": ("30Gi", "ZeRO1, offload Optimizer"),
    "a byte less": ("32212254719", None),
}


@pytest.mark.parametrize(("memory", "expected"), HOSTED.values(), ids=HOSTED)
def test_what_is_offloaded_must_fit_into_the_pods_memory(memory: str | None, expected: str | None) -> None:
    profiles = {"some": Accelerator("some", "nvidia.com/gpu", memory_bytes=29 * GIB, per_machine=8)}
    compute = {"accelerator": "some", "nodes": 1, "gpusPerNode": 2, **({"memory": memory} if memory else {})}
    o = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes={"compute": compute}, profiles=profiles)
    choice = layout.chosen(o, o.status.revisions[0].estimate)
    assert (choice.layout.title if choice else None) == expected
    if expected is None:
        message = layout.memory(o, draft(o)).message
        assert message.startswith("under ZeRO1, offload Optimizer a pod's ranks need 30.0 GiB of its memory")
        assert message.endswith("What would fit: compute.memory 38Gi; or compute.nodes 2")


def test_a_model_that_every_rank_loads_before_it_is_divided_counts_too() -> None:
    profiles = {"some": Accelerator("some", "nvidia.com/gpu", memory_bytes=30 * GIB, per_machine=8)}
    compute = {"accelerator": "some", "gpusPerNode": 2, "sharding": "ZeRO3", "offload": "None", "memory": "9Gi"}
    o = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes={"compute": compute}, profiles=profiles)
    message = layout.memory(o, draft(o)).message
    assert "need 10.0 GiB of its memory" in message
    assert message.endswith("What would fit: compute.memory 18Gi; or compute.sharding Auto with compute.offload Auto")


BY_PASS = {"activations": 8 * GIB}  # of 8,000 tokens; 2 GiB of the longest row's
NO_ROOM = {
    "an accelerator under which nothing is offloaded": (
        "Auto", 24, "20Gi", {}, "38Gi; or compute.accelerator l40s (44.0 GiB); or compute.nodes 2",
    ),
    "shorter rows help where an accelerator lacks little": (
        "ZeRO2", 31, "1Gi", BY_PASS, "38Gi; or compute.accelerator l40s (44.0 GiB); or compute.nodes 2; or training.maxSequenceLength 960 "
        "(longer rows are then treated as data.quality.onTooLong says)",
    ),
    "nor do they where the host lacks it": ("ZeRO3", 60, "9Gi", BY_PASS, "18Gi; or compute.sharding Auto with compute.offload Auto"),
}  # fmt: skip


@pytest.mark.parametrize(("sharding", "room", "memory", "by_pass", "mends"), NO_ROOM.values(), ids=NO_ROOM)
def test_what_is_named_where_a_pod_has_too_little_memory_would_do(
    sharding: str, room: int, memory: str, by_pass: dict[str, int], mends: str
) -> None:
    """Neither the accelerator that there is, nor a smaller one, nor pods or rows by which no pod needs less."""
    profiles = {**PROFILES, "some": Accelerator("some", "nvidia.com/gpu", memory_bytes=room * GIB, per_machine=8)}
    compute = {"accelerator": "some", "gpusPerNode": 2, "sharding": sharding, "memory": memory}
    sharded = {**FULL["sharded"], **by_pass}
    o = make_observed(make_revision(estimate={**ESTIMATE, **FULL, "sharded": sharded}), changes={"compute": compute}, profiles=profiles)
    assert layout.memory(o, draft(o)).message.endswith(f"What would fit: compute.memory {mends}")


SMALL_PASSES = {"longest": 4000}  # a half of them is as small as rows allow
ODD_PASSES = {"passTokens": 8001}  # a quarter of them is the longest row, and a token's quarter
# (layout, divisor, failure) of the attempts so far, passes of 8,000 tokens with a longest row of 2,000 → what the next begins with
AFTER: dict[str, tuple[list[Any], str, dict[str, int]]] = {
    "none so far": ([], "DDP", {}),
    "passes can be smaller": ([("DDP", None, "outOfMemory")], "DDP", {}),
    "passes can be halved once": ([("DDP", None, "outOfMemory")], "DDP", SMALL_PASSES),
    "tokens are whole": ([("DDP", 4, "outOfMemory")], "ZeRO1", ODD_PASSES),
    "passes of the longest row": ([("DDP", 4, "outOfMemory")], "ZeRO1", {}),
    "another failure": ([("DDP", 4, "error")], "DDP", {}),
    "another failure since": ([("DDP", 4, "outOfMemory"), ("ZeRO1", 8, "infrastructure")], "ZeRO1", {}),
    "again": ([("DDP", 4, "outOfMemory"), ("ZeRO2", 8, "outOfMemory")], "ZeRO3", {}),
    "and computes layers again": ([("ZeRO3", 8, "outOfMemory")], "DDP, activations recomputed", {}),
    "and offloads": ([("ZeRO3, activations recomputed", 4, "outOfMemory")], "ZeRO1, offload Optimizer", {}),
    "nothing is left": ([("ZeRO3, offload All, activations recomputed", 8, "outOfMemory")], "DDP", {}),
}


@pytest.mark.parametrize(("before", "expected", "estimate"), AFTER.values(), ids=AFTER)
def test_where_memory_ran_out_with_the_smallest_passes_the_next_attempt_divides_more(
    before: list[Any], expected: str, estimate: dict[str, int]
) -> None:
    profiles = {"some": Accelerator("some", "nvidia.com/gpu", memory_bytes=60 * GIB, per_machine=8)}
    compute = {"accelerator": "some", "nodes": 2}
    estimated = {**ESTIMATE, **FULL, "recomputed": 0, **estimate}
    o = make_observed(make_revision(estimate=estimated), changes={"compute": compute}, profiles=profiles)
    attempts = [
        Attempt(revision=REV, number=n, started=STAMP, outcome="Failed", layout=title, micro_batch_divisor=divisor, failure_class=failure)
        for n, (title, divisor, failure) in enumerate(before, 1)
    ]
    o = replace(o, status=o.status.model_copy(update={"attempts": attempts}))
    choice = layout.next_choice(o, draft(o))
    assert choice
    assert choice.layout.title == expected


@pytest.mark.parametrize("accelerator", ["unknown", None])
def test_where_memory_ran_out_that_nobody_had_told_of_the_next_attempt_divides_more_too(accelerator: str | None) -> None:
    o, _ = asked(accelerator, FULL, nodes=2, memory="64Gi")
    spent = Attempt(revision=REV, number=1, started=STAMP, outcome="Failed", micro_batch_divisor=4, failure_class="outOfMemory")
    o = replace(o, status=o.status.model_copy(update={"attempts": [spent]}))
    assert layout.next_choice(o, draft(o)) == layout.Choice(layout.LAYOUTS[1])


def test_what_lies_on_the_host_is_divided_by_the_ranks() -> None:
    """As `Layout` is read where a pod's memory is counted."""
    assert all(found.hosted <= found.divided for found in layout.LAYOUTS)


def test_memory_that_ran_out_of_what_no_rank_divides_is_made_by_computing_again() -> None:
    told = {"memory": {"weights": 16 * GIB, "activations": 8 * GIB}, "recomputed": GIB}
    changes = {"method": {"type": "QLoRA"}, "compute": {"accelerator": "l40s"}}
    o = make_observed(make_revision(estimate={**ESTIMATE, **told}), changes=changes, profiles=PROFILES)
    attempt = Attempt(revision=REV, number=1, started=STAMP, layout="DDP", micro_batch_divisor=4, failure_class="outOfMemory")
    o = replace(o, status=o.status.model_copy(update={"attempts": [attempt]}))
    choice = layout.next_choice(o, draft(o))
    assert choice
    assert choice.layout.title == "DDP, activations recomputed"


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("ZeRO3, offload All", ("ZeRO3", "All", False)),
        ("ZeRO2", ("ZeRO2", "None", False)),
        ("ZeRO2, activations recomputed", ("ZeRO2", "None", True)),
        (None, ("DDP", "None", False)),
    ],
)
def test_an_attempts_job_is_made_from_what_it_began_with(title: str | None, expected: tuple[str, str, bool]) -> None:
    """Not from what an edit of the spec asks for by then, which may fit nowhere."""
    o = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes={"compute": {"accelerator": "a10"}}, profiles=PROFILES)
    attempt = Attempt(revision=REV, number=1, started=STAMP, layout=title)
    o = replace(o, revisions={}, status=o.status.model_copy(update={"attempts": [attempt]}))
    (job,) = [made for kind, made in manifests(o, draft(o).want("train", 1)) if kind is JOB]
    config = json.loads(job["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
    assert (config["compute"]["sharding"], config["compute"]["offload"], config["training"]["gradientCheckpointing"]) == expected


@pytest.mark.parametrize(("accelerator", "room"), [("a10", 24 * 2**30), (None, None)])
def test_prepare_is_told_the_memory_of_an_accelerator_to_compare_methods_by(accelerator: str | None, room: int | None) -> None:
    o = replace(make_observed(changes={"compute": {"accelerator": accelerator} if accelerator else {}}, profiles=PROFILES), revisions={})
    (job,) = [made for kind, made in manifests(o, draft(o).want("prepare", 1)) if kind is JOB]
    config = json.loads(job["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
    assert config["compute"]["acceleratorMemory"] == room


def test_no_more_pods_are_named_than_the_volumes_machine_holds() -> None:
    profiles = {"a10": PROFILES["a10"]}
    for each, mode, named in ((2, "ReadWriteOnce", False), (2, "ReadWriteMany", True), (1, "ReadWriteOnce", True)):
        compute = {"accelerator": "a10", "nodes": 2 // each, "gpusPerNode": each, "sharding": "ZeRO3", "offload": "None"}
        changes = {"compute": compute, "storage": {"accessMode": mode}}
        o = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes=changes, profiles=profiles)
        per = replace(profiles["a10"], per_machine=3)
        message = layout.memory(replace(o, profiles={"a10": per}), draft(o)).message
        assert ("compute.nodes" in message) is named


def test_without_an_accelerator_it_is_what_is_asked_for() -> None:
    for asked_for, title in (("Auto", "DDP"), ("ZeRO2", "ZeRO2")):
        choice = layout.chosen(make_observed(changes={"compute": {"sharding": asked_for}}), None)
        assert choice
        assert choice.layout.title == title


def test_a_refusal_names_another_sharding_and_the_fewest_pods_that_would_do() -> None:
    profiles = {"a10": PROFILES["a10"]}
    compute = {"accelerator": "a10", "nodes": 2, "sharding": "DDP"}
    whole = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes={"compute": compute}, profiles=profiles)
    assert layout.memory(whole, draft(whole)).message.endswith("What would fit: compute.sharding Auto with compute.offload Auto")
    compute = {"accelerator": "a10", "nodes": 2, "sharding": "ZeRO3", "offload": "None"}
    divided = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes={"compute": compute}, profiles=profiles)
    message = layout.memory(divided, draft(divided)).message
    assert "at least 29.5 GiB under ZeRO3 (parameters 2.5, masters 5.0" in message
    assert message.endswith("compute.sharding Auto with compute.offload Auto; or compute.nodes 3")


def test_a_refusal_counts_under_the_sharding_that_needs_least() -> None:
    changes = {"compute": {"accelerator": "a10", "nodes": 2, "offload": "None"}}
    o = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes=changes, profiles=PROFILES)
    assert "a rank needs at least 29.5 GiB under ZeRO3 (" in layout.memory(o, draft(o)).message


@pytest.mark.parametrize(("room", "named"), [(7.71, True), (7.7, False)], ids=["64 pods would do", "65 would"])
def test_a_refusal_names_no_gang_of_more_than_64_pods(room: float, named: bool) -> None:
    profiles = {"some": Accelerator("some", "nvidia.com/gpu", memory_bytes=int(room * GIB))}
    changes = {"compute": {"accelerator": "some", "sharding": "ZeRO3", "offload": "None"}, "storage": {"accessMode": "ReadWriteMany"}}
    o = make_observed(make_revision(estimate={**ESTIMATE, **FULL}), changes=changes, profiles=profiles)
    assert ("compute.nodes 64" in layout.memory(o, draft(o)).message) is named
    assert ("compute.nodes" in layout.memory(o, draft(o)).message) is named


@pytest.mark.parametrize(
    ("compute", "mode", "refused"),
    [
        ({"accelerator": "h100", "nodes": 1, "gpusPerNode": 8}, "ReadWriteOnce", False),
        ({"accelerator": "h100", "nodes": 2, "gpusPerNode": 4}, "ReadWriteOnce", False),
        ({"accelerator": "h100", "nodes": 2, "gpusPerNode": 8}, "ReadWriteOnce", True),
        ({"accelerator": "h100", "nodes": 9}, "ReadWriteOnce", True),
        ({"accelerator": "a10", "nodes": 2, "gpusPerNode": 3}, "ReadWriteOnce", True),
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


@pytest.mark.parametrize(
    ("nodes", "pods", "mode", "fix"),
    [
        (4, 2, "ReadWriteOnce", ""),
        (5, 2, "ReadWriteOnce", "or ask for at most 4, or serve with fewer (serving.replicas"),
        (1, 4, "ReadWriteOnce", "(on a storageClassName that has it), or serve with fewer"),
        (5, 2, "ReadWriteMany", ""),
        (8, 0, "ReadWriteOnce", ""),
    ],
)
def test_what_serves_is_where_the_volume_is_and_leaves_a_gang_less_of_that_machine(nodes: int, pods: int, mode: str, fix: str) -> None:
    server = {"name": "server", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
    o = make_observed(
        changes={"compute": {"accelerator": "h100", "nodes": nodes}, "storage": {"accessMode": mode}}, profiles=PROFILES,
        status={"live_arm": "0ld", "live_revision": "r0"}, arms={"0ld": ArmHealth(wanted=pods)},
        templates={"0ld": {"revision": "r0", "template": {"spec": {"containers": [server]}}}},
    )  # fmt: skip
    found = layout.one_machine(o, draft(o))
    assert found.reason == (conditions.NEEDS_SHARED_VOLUME if fix else "")
    assert fix in found.message
    assert not fix or f"what serves has {2 * pods}, and a machine has 8" in found.message


def test_of_an_autoscaled_arm_only_those_count_that_are_always_there() -> None:
    server = {"name": "server", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    o = make_observed(
        changes={
            "compute": {"accelerator": "h100", "nodes": 4},
            "serving": {"resources": {"requests": {"cpu": 1}}, "autoscaling": {"minReplicas": 2, "maxReplicas": 6}},
        },
        profiles=PROFILES, status={"live_arm": "0ld", "live_revision": "r0"}, arms={"0ld": ArmHealth(wanted=6)},
        templates={"0ld": {"revision": "r0", "template": {"spec": {"containers": [server]}}}},
    )  # fmt: skip
    assert not layout.one_machine(o, draft(o)).blocked


def test_a_base_model_that_serves_because_no_training_is_needed_is_not_in_its_own_way() -> None:
    server = {"name": "server", "resources": {"limits": {"nvidia.com/gpu": "8"}}, "readinessProbe": {"httpGet": {"path": "/readyz"}}}
    o = make_observed(
        make_revision(gate="NotNeeded"), changes={"compute": {"accelerator": "h100", "gpusPerNode": 8}}, profiles=PROFILES,
        status={"live_arm": "b", "live_revision": "base"}, arms={"b": ArmHealth(wanted=1)},
        templates={"b": {"revision": "base", "template": {"spec": {"containers": [server]}}}},
    )  # fmt: skip
    assert not layout.one_machine(o, draft(o)).blocked
    known = make_revision(gate="NotNeeded", model_digest="m", data_digest="d", baseline=make_scored("0.4", key=evaluation_key(o, draft(o))))
    needed = decide(replace(o, status=o.status.model_copy(update={"revisions": [known]})))
    assert (needed.reason, needed.jobs) == (conditions.NEEDS_SHARED_VOLUME, ()), "no training was asked for before this very cycle"


def test_a_pod_with_more_accelerators_than_any_machine_has_is_not_helped_by_another_volume() -> None:
    o = make_observed(changes={"compute": {"accelerator": "a10", "gpusPerNode": 5}}, profiles=PROFILES)
    found = layout.one_machine(o, draft(o))
    assert found.reason == conditions.DOES_NOT_FIT
    assert "compute.gpusPerNode is 5, and the largest machine has 4" in found.message
    assert "ReadWriteMany" not in found.message


SLICE = Accelerator("mig", "nvidia.com/mig-3g.40gb", memory_bytes=39 * GIB, per_machine=16)


@pytest.mark.parametrize(("accelerator", "each", "refused"), [("mig", 2, True), ("mig", 1, False), ("mig", None, False), ("a10", 2, False)])
def test_a_pod_has_one_slice_of_an_accelerator(accelerator: str, each: int | None, refused: bool) -> None:
    compute = {"accelerator": accelerator, "nodes": 3, **({"gpusPerNode": each} if each else {})}
    o = make_observed(changes={"compute": compute, "storage": {"accessMode": "ReadWriteMany"}}, profiles={**PROFILES, "mig": SLICE})
    found = layout.one_slice(o, draft(o))
    assert (found.reason == conditions.DOES_NOT_FIT) is refused
    assert found.blocked is refused
    if refused:
        assert "Set gpusPerNode to 1, and compute.nodes to 6 for as many" in found.message


def test_a_slice_is_named_to_pods_of_one_accelerator_alone() -> None:
    for each, named in ((1, "compute.accelerator mig"), (2, "compute.accelerator l40s")):
        o = make_observed(
            make_revision(estimate=ESTIMATE), changes={"compute": {"accelerator": "a10", "gpusPerNode": each}},
            profiles={**PROFILES, "mig": SLICE},
        )  # fmt: skip
        assert named in layout.memory(o, draft(o)).message
