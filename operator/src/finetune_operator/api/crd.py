"""The CRD and the reference page, generated from the models: `python -m finetune_operator.api.crd [--check]`.

Written to crds/, into the chart (where a template makes an upgrade bring it up to date) and to docs/reference.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_operator import names
from finetune_operator.api.fields import FieldClass, classes
from finetune_operator.api.reference import page
from finetune_operator.api.rules import RULES
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Status
from finetune_operator.api.structural import Schema, convert

ROOT: Final = Path(__file__).resolve().parents[4]
GENERATED: Final = "# Generated from operator/src/finetune_operator/api by `make crds`: edit the models, not this.\n"
# What a FineTune says before the operator has seen it: else kstatus, and who waits by it, would call it ready.
NOT_SEEN: Final = {"observedGeneration": -1}
# What `kubectl scale`, a HorizontalPodAutoscaler and KEDA read and set.
SCALE: Final = {
    "specReplicasPath": ".spec.serving.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector",
}  # fmt: skip
# (name, type, path, wide, description)
COLUMNS: Final = (
    ("Phase", "string", ".status.phase", False, "What it is doing."),
    ("Method", "string", ".spec.method.type", False, "Which weights train."),
    ("Progress", "string", ".status.progress", False, "Progress of the running stage."),
    ("ETA", "string", ".status.eta", False, "Until the running stage ends."),
    ("Score", "string", ".status.score", False, "Reference and tuned score."),
    ("Weight", "string", ".status.weight", False, "Share of users on the newest arm."),
    ("Age", "date", ".metadata.creationTimestamp", False, "Since it was made."),
    ("Revision", "string", ".status.revision", True, "The revision that the spec asks for."),
    ("Attempt", "string", ".status.attempt", True, "The training attempt."),
    ("Reason", "string", ".status.reason", True, "Reason of the Ready condition."),
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"finetunes.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": "finetunes",
                "singular": "finetune",
                "shortNames": ["ft"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema()},
                    "subresources": {"status": {}, "scale": SCALE},
                    "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
                }
            ],
        },
    }


def schema() -> Schema:
    """The whole object: spec with field classes and rules, status."""
    spec = convert(Spec)
    for path, marker in classes(Spec):
        if marker is not None:
            _describe(next(_nodes(spec, path)), marker)
    status = convert(Status, defaults=False)
    status["default"] = NOT_SEEN
    status["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    root: Schema = {
        "description": "FineTune takes a base model and a data set to a tuned model that serves real users.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    for rule in RULES:
        for node in _nodes(root, rule.path):
            node.setdefault("x-kubernetes-validations", []).append({"rule": rule.cel, "message": rule.text})
    return root


def _describe(node: Schema, marker: FieldClass) -> None:
    """Say in the description what an edit does, for `kubectl explain`."""
    before = f"{node['description'].strip()} " if node.get("description") else ""
    node["description"] = f"{before}{marker.name}: an edit {marker.meaning}."
    node.update({key: node.pop(key) for key in list(node) if key != "description"})  # the description first


def _nodes(schema: Schema, path: str) -> Iterator[Schema]:
    """The schema at a dotted path; lists are walked into."""
    head, _, rest = path.partition(".")
    if not head:
        yield schema
        return
    child = schema.get("items", schema)["properties"][head.removesuffix("[]")]
    yield from _nodes(child["items"] if head.endswith("[]") else child, rest)


def _column(name: str, kind: str, path: str, wide: bool, description: str) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return {**column, "priority": 1} if wide else column


class _Dumper(yaml.SafeDumper):
    """Quotes what kubectl's YAML 1.1 takes for booleans and PyYAML does not: a field named `n` would be named `false`."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^[yYnN]$"), list("yYnN"))


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=130, allow_unicode=True)


def texts() -> dict[str, str]:
    """What each generated file is to hold."""
    made = crd()
    plain = _yaml(made)
    if "{{" in plain:
        raise ValueError("the CRD holds `{{`, which Helm would read as a template")
    kept = {**made, "metadata": {**made["metadata"], "annotations": {"helm.sh/resource-policy": "keep"}}}
    template = _yaml(kept)
    return {
        "crds/finetune.dev_finetunes.yaml": GENERATED + plain,
        "charts/finetune-operator/templates/crd.yaml": f"{{{{- if .Values.crds.install }}}}\n{GENERATED}{template}{{{{- end }}}}\n",
        "docs/reference.md": page(made),
    }


def main() -> int:
    """Write the files, or with --check say which of them differ."""
    parser = argparse.ArgumentParser(prog="python -m finetune_operator.api.crd", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not what the models say")
    check = parser.parse_args().check
    stale = []
    for name, text in texts().items():
        file = ROOT / name
        if file.exists() and file.read_text() == text:
            continue
        stale.append(name)
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    if stale:
        print(f"{'not what the models say (run `make crds`)' if check else 'written'}: {', '.join(stale)}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
