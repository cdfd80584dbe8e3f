"""The typed config tree: YAML + `--set a.b=c`, unknown keys refused with the nearest name, fingerprints of what matters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import digest
from sar2eo_dist.sections import (
    CCA,
    Basin,
    Cost,
    Data,
    Mosaic,
    Pairing,
    Run,
    Scaling,
    Section,
    Shard,
    Speed,
    Split,
    Synthetic,
    Translate,
)
from sar2eo_dist.sections_evaluation import Evaluate, Export, Grade, Study
from sar2eo_dist.sections_training import Resources, Train

#: stage -> sections whose values change its results (its own inputs' digest covers what stages before it did)
_AFFECTS: dict[str, tuple[str, ...]] = {
    "synthesise": ("synthetic",),
    "collect": ("cca",),
    "shard": ("shard",),
    "train": ("train", "scaling", "speed"),
    "translate": ("mosaic", "translate", "speed"),
    "evaluate": ("evaluate", "speed"),
    "grade": ("grade",),
    "export": ("export", "scaling"),
}
#: values that steer the schedule or the decision taken afterwards, not what a unit writes
_NEUTRAL: dict[str, set[str]] = {
    "synthesise": {"enabled", "root"},
    # what is measured on a tile depends on none of these: thresholds are a filter, and a score carries what made it
    "collect": {
        "profile", "qa60_max_fraction", "alpha_max_fraction", "brightness_min", "dark_max_fraction", "light_min",
        "valid_min_fraction", "white_max_fraction", "haze_max", "extractor", "weights", "reference", "distance", "rule",
        "beta", "min_kept", "max_kept", "calibration", "drift_max", "pack", "threads", "slice",
    },
    # each network's own part is added by pipeline/train.py, so that another enhancer leaves the translator alone
    "train": {
        "coarse", "translate", "enhance", "translator", "enhancer", "validation", "max_corrupt", "max_skipped", "outage_s",
        "hang_s",
    },
    "translate": {"aoi", "bundles", "max_days", "nearest", "pairs", "quicklook", "slice"},
    "evaluate": {"slice", "samples", "extremes", "frechet", "truth_days"},
    "grade": {"mosaics", "days", "slice"},
    "export": {"to", "slice"},
}  # fmt: skip


class Config(Section):
    """The whole tree. `load` reads it; every run folder keeps the resolved copy."""

    run: Run = Run()
    data: Data = Data()
    synthetic: Synthetic = Synthetic()
    cca: CCA = CCA()
    pairing: Pairing = Pairing()
    split: Split = Split()
    shard: Shard = Shard()
    scaling: Scaling = Scaling()
    train: Train = Train()
    speed: Speed = Speed()
    mosaic: Mosaic = Mosaic()
    basin: Basin = Basin()
    translate: Translate = Translate()
    evaluate: Evaluate = Evaluate()
    grade: Grade = Grade()
    study: Study = Study()
    export: Export = Export()
    resources: Resources = Resources()
    cost: Cost = Cost()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        for name, text in _strings(self.model_dump(), ""):
            if _SECRET.search(text):
                raise ValueError(f"{name} carries credentials in its URI: use the environment or a profile instead")
        if self.split.val + self.split.test >= 1:
            raise ValueError(f"split.val {self.split.val} + split.test {self.split.test} leave nothing to train on")
        return self

    def fingerprint(self, stage: str) -> str:
        """Digest of the values that affect what a stage's units write: resources and concurrency are not part of it."""
        drop = _NEUTRAL.get(stage, set())
        parts = {s: _without(getattr(self, s).model_dump(mode="json"), drop) for s in _AFFECTS[stage]}
        return digest(stage, parts)


_SECRET = re.compile(r"://[^/@\s]+:[^/@\s]+@|X-Amz-Signature=|X-Amz-Credential=|[?&]sig=", re.IGNORECASE)


def _strings(tree: Any, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every string below."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _strings(value, f"{name}.{key}".lstrip("."))
    elif isinstance(tree, str):
        yield name, tree


def _without(tree: Any, names: set[str]) -> Any:
    if isinstance(tree, dict):
        return {k: _without(v, names) for k, v in tree.items() if k not in names}
    return tree


def load(path: str | None = None, overrides: Iterable[str] = ()) -> Config:
    """Config from a YAML file and `a.b=c` overrides (values parsed as YAML).

    Raises ConfigError: unreadable file, bad YAML, unknown key (with the nearest known name), impossible value.
    """
    tree: dict[str, Any] = {}
    if path:
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as e:
            raise ConfigError(f"cannot read config {path}: {e.strerror}") from e
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ConfigError(f"config {path} is not YAML: {e}") from e
        if not isinstance(tree, dict):
            raise ConfigError(f"config {path} must be a mapping of sections, not a {type(tree).__name__}")
    written = dict(tree["cca"]) if isinstance(tree.get("cca"), dict) else {}
    for item in overrides:
        _set(tree, item)
    try:
        _another_profile(tree, written)
        return Config.model_validate(tree)
    except ValidationError as e:
        raise ConfigError(explained(e)) from None


def explained(e: ValidationError) -> str:
    """What is wrong, a line each, with the nearest name of an unknown key."""
    return "\n".join(_explain(err) for err in e.errors())


def _another_profile(tree: dict[str, Any], written: dict[str, Any]) -> None:
    """An override of `cca.profile` over a file with another one: what the file says by that other one's defaults goes.

    A run folder's config states every key: without this, `--set cca.profile=` would change the name alone.
    """
    old = written.get("profile", "paper")
    if not written or tree["cca"].get("profile", "paper") == old:
        return
    defaults = CCA.model_validate({"profile": old}).model_dump()
    for key, value in written.items():
        if key != "profile" and tree["cca"].get(key) == value == defaults.get(key):
            del tree["cca"][key]


def _set(tree: dict[str, Any], item: str) -> None:
    name, eq, text = item.partition("=")
    *parents, leaf = name.strip().split(".")
    if not eq or not leaf:
        raise ConfigError(f"--set wants section.key=value, not {item!r}")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {item!r}: {parent!r} is a value, not a section")
    try:
        tree[leaf] = text if "#" in text else yaml.safe_load(text)  # a folder may be called so; a comment has no sense
        if tree[leaf] is None:
            tree[leaf] = ""
    except yaml.YAMLError as e:
        raise ConfigError(f"--set {item!r}: the value is not YAML: {e}") from e


def _explain(err: Any) -> str:
    loc: Sequence[Any] = err["loc"]
    where = ".".join(str(p) for p in loc) or "config"
    if err["type"] != "extra_forbidden":
        return f"{where}: {err['msg']}" + ("" if where == "config" else f" (got {err['input']!r})")
    fields = Config.model_fields
    for part in loc[:-1]:
        kind = fields[str(part)].annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(fields))}"
    return f"unknown config key {where!r}{hint}"
