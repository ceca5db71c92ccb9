"""The chart's policy as rendered: there where something is bounded, and no value leaves its text. What it refuses is asked of a real
API server (tests/integration/test_policy.py)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.unit.charts.test_chart import CHART, IMAGES, Manifest, helm, one, rendered

BOUNDS: dict[str, Any] = {
    "maxGPUs": 0, "maxReplicas": 1, "accelerators": ["h100"], "modelSources": ["hf://a/"], "requireQueue": True, "requireBudget": True,
    "maxCost": 2.5,
}  # fmt: skip
HOSTILE = """h"]||true||['"'\\"""


def policy(**values: Any) -> Manifest:
    return one(rendered("--set-json", f"policy={json.dumps(values)}"), "ValidatingAdmissionPolicy", "system-ops")


def test_nothing_is_bounded_unless_it_is_asked_for() -> None:
    assert not [m for m in rendered("--set", "policy.contact=ann") if m["kind"].startswith("ValidatingAdmission")]


@pytest.mark.parametrize("bound", BOUNDS)
def test_each_bound_is_a_policy_of_its_own(bound: str) -> None:
    messages = [v["message"] for v in policy(**{bound: BOUNDS[bound]}, contact="ann")["spec"]["validations"]]
    assert messages
    assert [m for m in messages if not re.fullmatch(rf"spec\.[^;]+; [^;]+, or ask ann \(policy\.{bound}\)", m)] == []


def test_every_value_that_bounds_something_is_known_here() -> None:
    others = {"contact", "namespaceSelector", "validationActions"}
    assert set(yaml.safe_load((CHART / "values.yaml").read_text())["policy"]) == {*BOUNDS, *others}


def test_no_value_leaves_its_text() -> None:
    profiles = json.dumps({HOSTILE: {"resource": "a/b"}})
    values = json.dumps({"accelerators": [HOSTILE], "modelSources": [f"hf://{HOSTILE}"], "contact": f"{HOSTILE}: {{{{ x }}}} # <b>"})
    given = ("--set-json", f"profiles={profiles}", "--set-json", f"policy={values}")
    rules = one(rendered(*given), "ValidatingAdmissionPolicy", "system-ops")["spec"]["validations"]
    expressions = "".join(rule["expression"] for rule in rules)
    for before, wanted in (("variables.accelerator in ", HOSTILE), ("dyn(oldObject.spec).?model || ", f"hf://{HOSTILE}")):
        read, _ = json.JSONDecoder().raw_decode(expressions.split(before)[1])  # a literal of JSON is one of CEL
        assert read == [wanted]
    assert {rule["message"].split(", or ask ")[1].rsplit(" (", 1)[0] for rule in rules} == {f"{HOSTILE}: {{{{ x }}}} # <b>"}


def test_whom_it_binds_and_how() -> None:
    selector = {"matchLabels": {"team": "ml"}}
    given = ("--set-json", f"policy={json.dumps({'maxGPUs': 8, 'namespaceSelector': selector, 'validationActions': ['Warn', 'Audit']})}")
    assert one(rendered(*given), "ValidatingAdmissionPolicyBinding", "system-ops")["spec"] == {
        "policyName": "system-ops", "validationActions": ["Warn", "Audit"], "matchResources": {"namespaceSelector": selector},
    }  # fmt: skip
    everywhere = one(rendered("--set", "policy.maxGPUs=8"), "ValidatingAdmissionPolicyBinding", "system-ops")["spec"]
    assert everywhere == {"policyName": "system-ops", "validationActions": ["Deny"]}


@pytest.mark.parametrize(
    ("case", "values", "message"),
    [
        ("an accelerator that no profile has", {"accelerators": ["h10"]}, "policy.accelerators: h10 is none of the profiles; use a100-40,"),
        ("a misspelt bound", {"maxGpus": 8}, "'maxGpus' not allowed"),
        ("a source without its scheme", {"modelSources": ["meta-llama/"]}, "/policy/modelSources/0"),
        ("a host that other hosts begin with", {"modelSources": ["https://models.example"]}, "/policy/modelSources/0"),
        ("a contact of two lines", {"contact": "a\nb"}, "/policy/contact"),
        ("no action", {"validationActions": []}, "/policy/validationActions"),
        ("actions that exclude each other", {"validationActions": ["Deny", "Warn"]}, "/policy/validationActions"),
        ("a cost that is none", {"maxCost": "much"}, "/policy/maxCost"),
    ],
)
def test_refuses(case: str, values: dict[str, Any], message: str) -> None:
    done = helm("template", "ops", str(CHART), *IMAGES, "--set-json", f"policy={json.dumps(values)}")
    assert done.returncode != 0
    assert message in done.stderr
