"""Custom resource definitions as what the API server makes of them: a strict schema, and rules in CEL.

Kubernetes' own validation is structural schema + `x-kubernetes-validations`. The schema becomes JSON Schema (unknown fields
refused); the rules are evaluated at every node of the object that they stand at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import jsonschema
import yaml

Tree = dict[str, Any]


@functools.cache
def schema(folder: Path, kind: str, version: str = "v1") -> Tree:
    """openAPIV3Schema of one version of a kind, as the CRD states it. Raises KeyError: no such kind or version."""
    for path in sorted(folder.glob("*.yaml")):
        with path.open() as f:
            head = f.read(2000)
        if f"kind: {kind}\n" not in head:
            continue
        crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        if crd["spec"]["names"]["kind"] == kind:
            return {v["name"]: v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"]}[version]
    raise KeyError(f"no CRD of {kind} in {folder}")


def strict(node: Any) -> Any:
    """JSON Schema of a structural one: what is not named is refused, what has a default need not be given."""
    if isinstance(node, list):
        return [strict(n) for n in node]
    if not isinstance(node, dict):
        return node
    out = {k: strict(v) for k, v in node.items() if k not in ("properties", "description", "default", "required")}
    if "properties" in node:
        out["properties"] = {k: strict(v) for k, v in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in node:
            out["additionalProperties"] = False
    needed = [n for n in node.get("required", []) if "default" not in node.get("properties", {}).get(n, {})]
    if needed:
        out["required"] = needed
    if node.get("format") == "int32":
        out["minimum"] = max(node.get("minimum", -(2**31)), -(2**31))
        out["maximum"] = min(node.get("maximum", 2**31 - 1), 2**31 - 1)
    return out


@functools.cache
def validator(folder: Path, kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(strict(schema(folder, kind)))


def rules(node: Any, value: Any, where: str = "") -> Iterator[tuple[str, Tree, Any]]:
    """(place, rule, value) of every CEL rule that stands at a place where the object has a value."""
    for rule in node.get("x-kubernetes-validations", []):
        yield where, rule, value
    if isinstance(value, dict):
        for key, child in value.items():
            below = node.get("properties", {}).get(key) or node.get("additionalProperties")
            if isinstance(below, dict):
                yield from rules(below, child, f"{where}.{key}")
    elif isinstance(value, list) and isinstance(node.get("items"), dict):
        for i, child in enumerate(value):
            yield from rules(node["items"], child, f"{where}[{i}]")


def errors(folder: Path, obj: Tree) -> list[str]:
    """What an API server would say against creating this object; a rule of updates is asked with the object unchanged."""
    kind = obj["kind"]
    found = [f"{e.json_path}: {e.message}" for e in validator(folder, kind).iter_errors(obj)]
    for where, rule, value in rules(schema(folder, kind), obj):
        if cel.evaluate(rule["rule"], {"self": value, "oldSelf": value}) is not True:
            found.append(f"{where}: {rule['message']}")
    return found
