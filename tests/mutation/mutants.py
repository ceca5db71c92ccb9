"""Small changes to a module's syntax tree, each of which some test must notice.

What is changed: comparisons, `and`/`or`/`not`, conditions (always, never), numbers by one, words that mean something, arithmetic,
`min`/`max` and `any`/`all`, what is returned, and calls and assignments that are left out. What is not: annotations, docstrings,
and the text of messages.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Pow: ast.Mult,
}  # fmt: skip
COUNTERPARTS = {"min": "max", "max": "min", "any": "all", "all": "any"}
CHAINED = ("begin", "end", "note", "update", "set", "want", "block", "with_revision")  # methods of a draft that give a draft
CONDITIONS = {(ast.If, "test"), (ast.IfExp, "test"), (ast.While, "test"), (ast.comprehension, "ifs"), (ast.match_case, "guard")}
SKIPPED = {"annotation", "returns", "decorator_list", "type_params"}
TYPES = ("Literal", "Callable")
WORD = re.compile(r"[A-Za-z][A-Za-z_]*")


@dataclass(frozen=True)
class Change:
    """One node replaced by another. `kind` groups the changes, `function` says in which one, `nth` tells equal ones there apart."""

    kind: str
    function: str
    line: int
    before: str
    after: str
    nth: int
    apply: Callable[[], None]

    @property
    def text(self) -> str:
        """Names the change whatever line it is on."""
        again = f" (#{self.nth})" if self.nth > 1 else ""
        return f"{self.function}: {self.before} → {self.after}{again}"


def changes(tree: ast.Module) -> Iterator[Change]:
    """Every change that can be made to the module; apply one alone, to a tree of its own."""
    seen: dict[tuple[str, str, str], int] = {}
    for function, parent, name, index, node in _nodes(tree, ""):
        for kind, new in _replacements(parent, name, node):
            before, after = _shown(node), _shown(new)
            nth = seen[function, before, after] = seen.get((function, before, after), 0) + 1
            apply = _setter(parent, name, index, ast.copy_location(new, node))
            yield Change(kind, function or "module", node.lineno, before, after, nth, apply)


def _nodes(parent: ast.AST, function: str) -> Iterator[tuple[str, ast.AST, str, int | None, Any]]:
    """(function, parent, field, index, node) of what may be changed, outside in."""
    for name, value in ast.iter_fields(parent):
        if name in SKIPPED:
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr) or _docstring(node) or _type(node):
                continue
            inside = f"{function}.{node.name}".lstrip(".") if isinstance(node, ast.FunctionDef | ast.ClassDef) else function
            if isinstance(node, ast.expr | ast.stmt):
                yield inside, parent, name, index, node
            yield from _nodes(node, inside)


def _replacements(parent: ast.AST, name: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if (type(parent), name) in CONDITIONS:
        yield "condition", ast.Constant(value=True)
        yield "condition", ast.Constant(value=False)
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right):
            yield from (("comparison", ast.Compare(left, [other()], right)) for other in COMPARISONS[type(op)])
        case ast.BoolOp(op=op, values=values):
            yield "boolean", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "boolean" if isinstance(node.op, ast.Not) else "arithmetic", operand
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", ast.Constant(value=value + 1)
            yield "constant", ast.Constant(value=value - 1)
        case ast.Constant(value=str(value)) if WORD.fullmatch(value):
            yield "word", ast.Constant(value=f"{value}X")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Call(func=ast.Name(id=called), args=args, keywords=keywords) if called in COUNTERPARTS:
            yield "counterpart", ast.Call(ast.Name(COUNTERPARTS[called], ast.Load()), args, keywords)
        case ast.Call(func=ast.Attribute(value=receiver, attr=method)) if method in CHAINED:
            yield "left out", receiver
        case ast.Return(value=value) if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
            yield "returned", ast.Return(ast.Constant(value=None))
        case ast.Assign(targets=[ast.Name(id=target)], value=value) if _reassigned(target, value):
            yield "left out", ast.Pass()
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield "left out", ast.Pass()


def _reassigned(target: str, value: ast.expr) -> bool:
    """Is the name given a new value made of its old one? A single chained call is left out as such already."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in CHAINED:
        return False
    return any(isinstance(n, ast.Name) and n.id == target for n in ast.walk(value))


def _docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _type(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in TYPES


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= 160 else f"{text[:100]} … {text[-56:]}"


def _setter(parent: ast.AST, name: str, index: int | None, new: ast.AST) -> Callable[[], None]:
    def apply() -> None:
        if index is None:
            setattr(parent, name, new)
        else:
            getattr(parent, name)[index] = new

    return apply
