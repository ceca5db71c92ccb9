"""docs/reference.md from the CRD: one table for each block of the spec, with the rules on it and its fields; then the status."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from finetune_operator.api.fields import IMMUTABLE, LIVE, REDEPLOY, REEVALUATE, RETRAIN

Schema = Mapping[str, Any]
CLASSES: Final = (RETRAIN, REEVALUATE, REDEPLOY, LIVE, IMMUTABLE)


def page(crd: Schema) -> str:
    """The whole page."""
    version = crd["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]["properties"]
    name = version["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]
    lines = [
        "<!-- Generated from operator/src/finetune_operator/api by `make crds`: edit the models, not this. -->",
        f"# Reference: `{crd['spec']['group']}/{version['name']}`, kind `{crd['spec']['names']['kind']}`",
        "",
        'Durations (`90s`, `15m`, `1h30m`) and decimals (`"2e-4"`) are texts. An empty text is the same as none.',
        "`kubectl` refuses a misspelt field; server-side apply and GitOps clients that do not ask for strict field validation drop it.",
        "",
        "What an edit does:",
        "",
        *(f"- *{c.name}*: {c.meaning}." for c in CLASSES),
        "",
        "In every object:",
        "",
        *_rules(name),
        "",
    ]
    for path, block in _blocks("spec", root["spec"]):
        lines += _section(path, block, edits=True)
    for path, block in _blocks("status", root["status"]):
        lines += _section(path, block, edits=False)
    return "\n".join(lines).rstrip() + "\n"


def _blocks(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema["properties"].items():
        inner = child.get("items", child)
        if "properties" in inner:
            yield from _blocks(f"{path}.{name}{'[]' if 'items' in child else ''}", inner)


def _section(path: str, block: Schema, *, edits: bool) -> list[str]:
    head, rule = ("| field | type | default | edit | |", "|---|---|---|---|---|") if edits else ("| field | type | |", "|---|---|---|")
    lines = [f"## `{path}`", "", _text(block.get("description", "")), "", head, rule]
    required = block.get("required", [])
    for name, child in block["properties"].items():
        description, edit = _split(child.get("description", ""))
        shown = f"`{name}`" + (" *" if name in required else "")
        cells = [shown, _type(child), _default(child), edit, description] if edits else [shown, _type(child), description]
        lines.append("| " + " | ".join(_text(cell) for cell in cells) + " |")
    if rules := [*_rules(block.get("x-kubernetes-validations", ())), *_leaf_rules(block)]:
        lines += ["", *rules]
    return [*lines, ""]


def _split(description: str) -> tuple[str, str]:
    """(description, field class) of what `crd._describe` joined."""
    for c in CLASSES:
        mark = f"{c.name}: an edit {c.meaning}."
        if description.endswith(mark):
            return description.removesuffix(mark).strip(), c.name
    return description, ""


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}"
    if "properties" in schema:
        return "block"
    kind = str(schema["type"])
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"{kind} {low}–{high}" if low is not None and high is not None else kind


def _default(schema: Schema) -> str:
    if "default" not in schema or schema["default"] == {}:
        return ""
    return f"`{json.dumps(schema['default'])}`"


def _rules(rules: Any) -> list[str]:
    return [f"- {rule['message']}" for rule in rules]


def _leaf_rules(block: Schema) -> list[str]:
    """Rules that stand on the block's fields; fields that are blocks have sections of their own."""
    leaves = (child for child in block["properties"].values() if "properties" not in child.get("items", child))
    return [line for leaf in leaves for line in _rules(leaf.get("x-kubernetes-validations", ()))]


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
