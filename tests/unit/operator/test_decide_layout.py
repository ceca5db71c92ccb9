"""The edges of what fits: a machine that is just full, a pass of an odd length, rows just worth naming."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.status import Estimate
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import layout

from tests.unit.operator.helpers import draft, make_observed, make_revision

GIB = 2**30


def known(**changes: Any) -> Estimate:
    told = {"memoryBytes": GIB, "memory": {"weights": 10 * GIB, "activations": 64 * GIB}, "passTokens": 640, "longest": 640}
    return Estimate.model_validate({**told, **changes})


def refused(room: int, estimate: Estimate) -> str:
    profiles = {"small": Accelerator("small", "nvidia.com/gpu", memory_bytes=room * GIB)}
    o = make_observed(make_revision(estimate=estimate), changes={"compute": {"accelerator": "small"}}, profiles=profiles)
    return layout.memory(o, draft(o)).message


def test_an_accelerator_each_is_asked_for_where_no_number_is_said() -> None:
    full, more = (make_observed(changes={"compute": {"accelerator": "h100", "nodes": n}}) for n in (8, 9))
    assert not layout.one_machine(full, draft(full)).blocked
    assert "9 pods of 1 accelerators, 9 in all, and a machine has 8" in layout.one_machine(more, draft(more)).message


def test_a_pass_has_whole_tokens() -> None:
    tokens = layout.pass_tokens(known(passTokens=641, longest=10), 43 * GIB, 1)
    assert (tokens, type(tokens)) == (320, int)


def test_rows_of_sixty_four_tokens_are_worth_naming_and_no_shorter_ones() -> None:
    """10 GiB whatever the length, 0.1 GiB for each token: room for 64 tokens, and not quite."""
    assert "training.maxSequenceLength 64 (" in refused(17, known())
    assert refused(16, known()).endswith("What would fit: a smaller model")


def test_where_the_rows_make_no_difference_only_another_model_fits() -> None:
    assert refused(9, known(memory={"weights": 10 * GIB})).endswith("What would fit: a smaller model")
