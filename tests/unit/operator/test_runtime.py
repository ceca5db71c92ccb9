"""vLLM without an image of it: refused before anything is made for it, with the setting and the fix."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.decide import runtime
from finetune_operator.kinds import FINETUNE

from tests.unit.operator.helpers import condition, draft, edit, good_outcomes, make_finetune, make_observed, make_revision, status_of
from tests.unit.operator.world import World, run

GPU = {"accelerator": "h100"}
LOSS = {"metrics": None}
VALUE = "its setting FINETUNE_VLLM_IMAGE is empty): set the chart's value images.vllm, or set serving.runtime to Transformers"

# the spec's blocks, of the revision what is known, the operator's image → words of the refusal; empty: none
SPECS: dict[str, tuple[dict[str, Any], dict[str, Any], bool, str]] = {
    "asked for": ({"serving": {"runtime": "vLLM"}}, {}, False, f"serving.runtime is vLLM, and the operator has no image of vLLM ({VALUE}"),
    "taken by Auto": ({"compute": GPU}, {}, False, "serving.runtime is Auto, which is vLLM with accelerator h100, and"),
    "answers a metric": ({"compute": GPU, "serving": None}, {}, False, VALUE),
    "answers nothing": ({"compute": GPU, "serving": None, "evaluation": LOSS}, {}, False, ""),
    "serves what the loss scores": ({"compute": GPU, "evaluation": LOSS}, {}, False, VALUE),
    "the image is the user's": ({"serving": {"runtime": "vLLM", "image": "mine:1"}}, {}, False, ""),
    "transformers on a GPU": ({"compute": GPU, "serving": {"runtime": "Transformers"}}, {}, False, ""),
    "on CPUs": ({}, {}, False, ""),
    "there is one": ({"serving": {"runtime": "vLLM"}}, {}, True, ""),
    "it serves already": ({"serving": {"runtime": "vLLM"}}, {"promoted": True}, False, ""),
    "it rolls out": ({"serving": {"runtime": "vLLM"}}, {"gate": "Passed"}, False, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", SPECS)
def test_is_there_an_image_of_what_is_to_serve(case: str) -> None:
    changes, revision, vllm, words = SPECS[case]
    o = make_observed(make_revision(**revision), changes=changes, vllm=vllm)
    decided = runtime.image(o, draft(o))
    assert (decided.phase, decided.reason) == ((c.FAILED, c.NO_VLLM_IMAGE) if words else (c.PENDING, ""))
    assert words in decided.message


async def test_no_job_is_made_without_it_and_it_goes_on_once_there_is_one() -> None:
    world = World(outcomes=good_outcomes(), vllm_image="")
    world.api.put(FINETUNE, make_finetune(serving={"runtime": "vLLM"}))
    await run(world)
    assert (status_of(world)["phase"], status_of(world)["reason"]) == ("Failed", c.NO_VLLM_IMAGE)
    assert {kind for (kind, _), count in world.api.births.items() if count} == {"PersistentVolumeClaim"}
    world.vllm_image = "vllm:1"
    await run(world, lambda s: s.get("phase") == "Live")


async def test_what_serves_goes_on_serving_when_its_next_arm_has_no_image() -> None:
    world = World(outcomes=good_outcomes(), vllm_image="")
    world.api.put(FINETUNE, make_finetune())
    await run(world, lambda s: s.get("phase") == "Live")
    edit(world, serving={"runtime": "vLLM"})
    await run(world, lambda s: s.get("reason") == c.INVALID_SPEC)
    status = status_of(world)
    assert VALUE in condition(status, "Ready")["message"]
    assert condition(status, "Available")["status"] == "True"
