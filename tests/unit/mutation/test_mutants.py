"""The mutants are what they say, and an imported module goes on with a mutant's code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest

from tests.mutation.mutants import changes
from tests.mutation.run import Mutant, module_of, report, take_over

SOURCE = """
from dataclasses import dataclass

LIMIT = 3
KINDS: Literal["Pass", "Fail"] = None

@dataclass(frozen=True)
class Draft:
    waits: int = 5

    @property
    def long(self) -> bool:
        return self.waits > LIMIT

def rule(n: int, draft: Draft, most: int = 7) -> str:
    '''What is it?'''
    if n > most and not draft.long:
        draft = draft.note("Late")
    return f"{n} of {'some'}"
"""


@pytest.fixture
def module() -> Iterator[ModuleType]:
    made = ModuleType("mutated")
    made.__file__ = "mutated.py"
    sys.modules["mutated"] = made
    exec(compile(SOURCE, "mutated.py", "exec"), made.__dict__)
    yield made
    del sys.modules["mutated"]


def test_each_change_is_named_by_its_function_and_what_becomes_of_it() -> None:
    assert [(x.kind, x.text) for x in changes(ast.parse(SOURCE))] == [
        ("constant", "module: 3 → 4"),
        ("constant", "module: 3 → 2"),
        ("constant", "Draft: 5 → 6"),
        ("constant", "Draft: 5 → 4"),
        ("returned", "Draft.long: return self.waits > LIMIT → return None"),
        ("comparison", "Draft.long: self.waits > LIMIT → self.waits >= LIMIT"),
        ("comparison", "Draft.long: self.waits > LIMIT → self.waits <= LIMIT"),
        ("constant", "rule: 7 → 8"),
        ("constant", "rule: 7 → 6"),
        ("condition", "rule: n > most and (not draft.long) → True"),
        ("condition", "rule: n > most and (not draft.long) → False"),
        ("boolean", "rule: n > most and (not draft.long) → n > most or not draft.long"),
        ("comparison", "rule: n > most → n >= most"),
        ("comparison", "rule: n > most → n <= most"),
        ("boolean", "rule: not draft.long → draft.long"),
        ("left out", "rule: draft.note('Late') → draft"),
        ("word", "rule: 'Late' → 'LateX'"),
        ("returned", "rule: return f\"{n} of {'some'}\" → return None"),
    ]


def mutate(module: ModuleType, text: str) -> None:
    tree = ast.parse(SOURCE)
    next(x for x in changes(tree) if x.text == text).apply()
    take_over(module, tree)


def test_functions_properties_defaults_and_constants_go_on_changed_where_they_were_imported(module: ModuleType) -> None:
    rule, draft, imported = module.rule, module.Draft(), ModuleType("importer")
    imported.LIMIT = module.LIMIT  # type: ignore[attr-defined]
    sys.modules["importer"] = imported
    try:
        mutate(module, "rule: return f\"{n} of {'some'}\" → return None")
        assert rule(1, draft) is None
        mutate(module, "Draft.long: self.waits > LIMIT → self.waits <= LIMIT")
        assert (draft.long, rule(1, draft)) == (False, "1 of some")
        mutate(module, "module: 3 → 4")
        assert (imported.LIMIT, draft.long) == (4, True)  # type: ignore[attr-defined]
        mutate(module, "Draft: 5 → 6")
        assert module.Draft().waits == 6
        assert isinstance(module.Draft(), type(draft))
        mutate(module, "rule: 7 → 8")
        assert rule.__defaults__ == (8,)
    finally:
        del sys.modules["importer"]


def test_the_score_leaves_out_what_makes_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    first = next(changes(ast.parse("LIMIT = 3")))
    verdicts = ["killed", "killed", "killed", "survived", "equivalent"]
    found = report({Mutant("gate.py", n, replace(first, nth=n), ""): verdict for n, verdict in enumerate(verdicts)})
    assert found == {"mutants": 5, "killed": 3, "survived": 1, "equivalent": 1, "score_percent": 75.0}
    assert "survived: operator/src/finetune_operator/decide/gate.py:1 [constant] module: 3 → 4 (#3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "module"), [("gate.py", "gate"), ("rollout/hold.py", "rollout.hold"), ("rollout/__init__.py", "rollout"), ("__init__.py", "")]
)
def test_a_file_of_a_folder_is_found_as_the_module_that_it_is(file: str, module: str) -> None:
    assert module_of(file) == f"finetune_operator.decide.{module}".removesuffix(".")
