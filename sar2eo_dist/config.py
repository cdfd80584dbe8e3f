"""The typed config tree: YAML + `--set a.b=c`, unknown keys refused with the nearest name, fingerprints of what matters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import digest

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Run(Section):
    """Where results go and how a bad night is borne. None of it changes a result."""

    out: str = Field("runs/default", description="folder or URI of everything this run writes")
    max_attempts: int = Field(3, ge=1, description="attempts before a unit is quarantined")
    tolerance: Fraction = Field(0.01, description="share of units that may be quarantined; beyond it the run fails")


class Data(Section):
    """What lies in the bucket."""

    kind: Literal["multiearth_tiff", "multiearth_netcdf", "folder_pair"] = "multiearth_tiff"
    s1: str = Field("", description="TIFF folder or NetCDF file of Sentinel-1, any fsspec URI")
    s2: str = Field("", description="TIFF folder or NetCDF file of Sentinel-2")
    pairs: str = Field(
        "", description="folder_pair: folder of ready pairs, A and B or {split}_A and {split}_B; no collect"
    )
    target: str = Field("", description="MultiEarth target NetCDF (places and dates without images), for patch output")
    scene: str = Field("", description="geocoded S1 scene (COG with VV, VH) to translate into a mosaic")
    units: Literal["", "db", "linear"] = Field("", description="of the scene; empty = what its tags declare")
    quantity: Literal["", "sigma0", "gamma0"] = Field("", description="of the scene; empty = what its tags declare")
    truth: str = Field("", description="synthetic world only: COG of the scene's cloud-free truth, for the report")


class Synthetic(Section):
    """The seeded Amazon-like world of `sources/synthetic`; sizes in pixels of 10 m."""

    enabled: bool = False
    root: str = Field("runs/world", description="folder or URI it is written to, completed by its fingerprint")
    seed: int = 7
    places: tuple[PositiveInt, PositiveInt] = Field(
        (9, 12), description="rows, columns of the 0.02 degree grid written as patches"
    )
    dates: int = Field(3, ge=1, description="acquisition dates of each sensor")
    scene: tuple[PositiveInt, PositiveInt] = Field((1024, 1024), description="rows, columns of the S1 scene")
    reference: int = Field(64, ge=2, description="images of the cloud reference set")


class CCA(Section):
    """Clean Collector Algorithm. Thresholds: arXiv 2306.12626 and its authors' published scripts."""

    profile: Literal["paper", "released", "none"] = Field(
        "paper", description="`released` ends after stage 2, as the authors' scripts do; `none` keeps all"
    )
    qa60_max_fraction: Fraction = Field(0.0, description="share of QA60-cloudy pixels allowed")
    alpha: int = Field(4096, description="DN; the paper's pixel threshold")
    alpha_max_fraction: Fraction = Field(0.0, description="share of pixels with DN >= alpha allowed")
    brightness_min: float = Field(30.0, description="mean V of HSV, 0..255")
    extractor: Literal["inception", "efficientnet_lite0"] = "inception"
    weights: str = Field("", description="inception: URI of pt_inception-2015-12-05-6726825d.pth")
    reference: str = Field("", description="folder of 8-bit RGB images of cloud (png, jpg, tif), any fsspec URI")
    rule: Literal["range", "literal", "quantile", "otsu"] = "range"
    beta: float = Field(0.4, description="F_th = low + (high - low) * beta; `quantile`: low, high = 0.1, 99.9 %")
    min_kept: Fraction = Field(0.01, description="loud stop where a smaller share of the scored tiles is kept")
    pack: int = Field(32, ge=1, description="tiles in one forward of the extractor; fixed, so results are")
    threads: int = Field(1, ge=1, description="CPU threads of one extractor")
    slice: int = Field(2000, ge=1, description="tiles in one unit of work, about")


class Pairing(Section):
    max_days: int = Field(30, ge=0, description="largest |EO date - SAR date|")
    mode: Literal["nearest", "all", "released"] = Field(
        "nearest",
        description="nearest SAR of each EO image; every combination; or the authors': nearest, < 7 days, the last EO wins",
    )
    place: Literal["cell", "footprint"] = Field(
        "cell", description="same place: the same 0.02 degree cell, or footprints that overlap (patches of scenes)"
    )
    min_overlap: float = Field(0.9, gt=0, le=1, description="footprint: share of a patch that both must cover")


class Split(Section):
    """Folds by coarse cells of the ground; a patch that comes near another fold's cell is in none (`guard`)."""

    cell_degrees: float = Field(0.5, gt=0)
    guard_degrees: float = Field(0.002, ge=0, description="margin around a patch's own footprint; 0.002 are 220 m")
    val: Fraction = 0.1
    test: Fraction = 0.0
    seed: int = 0


class Shard(Section):
    samples: int = Field(448, ge=1, description="pairs in one shard object: on real patches 81 MB of SAR, 106 MB of EO")


class Scaling(Section):
    """`minmax` = dataset1, `tanh` = dataset2 of arXiv 2306.12626; `fixed` (constants, invertible) for mosaics."""

    sar: Literal["minmax", "tanh", "tanh_fixed", "fixed"] = "fixed"
    eo: Literal["minmax", "fixed"] = "fixed"
    third: Literal["ratio_stretched", "difference_db", "mean_db"] = "difference_db"
    median: Literal[0, 3, 5] = Field(3, description="median blur of the dB image, pixels; 0 = off")


class Stage(Section):
    """Training of one network. Batch and steps are stated globally: the worker count does not change their meaning."""

    options: dict[str, Any] = Field(default_factory=dict, description="constructor options of the network")
    steps: int = Field(200_000, ge=1)
    batch: int = Field(1, ge=1)
    crop: int = Field(256, ge=16, description="side of the random crop, pixels")
    lr: float = Field(2e-4, gt=0)
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(1000, ge=1)


class Train(Section):
    translator: str = Field("pix2pixhd", description="file of `models/` that translates")
    enhancer: str = Field("restormer", description="file of `models/` that enhances; empty = none")
    translate: Stage = Stage()
    enhance: Stage = Stage(lr=3e-4)
    seed: int = Field(0, ge=0)
    shuffle: int = Field(8, ge=1, description="shards in one window of the shuffle; an epoch meets window after window")
    max_corrupt: int = Field(16, ge=0, description="unreadable samples that are replaced by others; beyond it, a stop")
    threads: int = Field(1, ge=1, description="CPU threads of one worker")


class Speed(Section):
    """How networks are run, in training and afterwards; the arithmetic's last bits depend on it (models/speed.py)."""

    precision: Literal["float32", "bfloat16"] = Field("float32", description="of convolutions and matrix products")
    compile: bool = Field(False, description="torch.compile: wants Triton on a GPU, a C++ compiler on a CPU")
    checkpointing: bool = Field(False, description="training keeps few activations and computes the others twice")


class Translate(Section):
    window: int = Field(512, ge=32, description="side of a lattice window, pixels")
    overlap: int = Field(256, ge=32, description="overlap of neighbouring windows, pixels")
    block: int = Field(2048, ge=64, description="side of a block: one unit of work, one storage object")
    statistics: Literal["window"] = "window"
    threads: int = Field(1, ge=1, description="CPU threads of one translator; fixed, so results are")
    max_days: int = Field(7, ge=0, description="patches: largest |target date - SAR date|")
    quicklook: int = Field(1024, ge=64, description="longest side of the quick-look, pixels")
    slice: int = Field(256, ge=1, description="patches in one unit of work")


class Evaluate(Section):
    split: Literal["val", "test", "train"] = "val"
    samples: int = Field(6, ge=0, description="side-by-side samples in the report")
    fit: int = Field(512, ge=1, description="training pairs that the linear baseline is fitted on")
    threads: int = Field(1, ge=1, description="CPU threads of one actor")
    slice: int = Field(256, ge=1, description="pairs in one unit of work")


class Export(Section):
    """Pairs as plain image folders (pix2pix style), for other people's trainers."""

    to: str = Field("", description="folder or URI to write {split}_A and {split}_B below; empty = below run.out")
    format: Literal["png", "tiff"] = Field("png", description="png: 8 bit, scaled as `scaling` says; tiff: dB and DN")
    slice: int = Field(256, ge=1, description="pairs in one unit of work")


class Resources(Section):
    """What the machine gives. None of it changes a result, but for `workers`: trainings are equal for one world size."""

    address: str = Field("", description="Ray cluster; empty = RAY_ADDRESS, or a Ray of its own on this machine")
    object_store_mb: int = Field(0, description="0 = Ray's default")
    readers: int = Field(0, ge=0, description="parallel read tasks; 0 = what the cluster has")
    extractors: int = Field(0, ge=0, description="extractor actors; 0 = one a GPU, or by CPUs")
    translators: int = Field(0, ge=0, description="translation actors; 0 = one a GPU, or by CPUs")
    workers: int = Field(1, ge=1, description="training workers")
    loaders: int = Field(0, ge=0, description="threads of a training worker that read pairs; 0 = 2, from a bucket 16")
    prefetch_mb: int = Field(256, ge=1, description="memory of one training worker for batches made ahead")
    gpu: Literal["auto", "never"] = "auto"


#: stage -> sections whose values change its results (its own inputs' digest covers what stages before it did)
_AFFECTS: dict[str, tuple[str, ...]] = {
    "synthesise": ("synthetic",),
    "collect": ("cca",),
    "shard": ("shard",),
    "train": ("train", "scaling", "speed"),
    "translate": ("translate", "speed"),
    "evaluate": ("evaluate", "speed"),
    "export": ("export", "scaling"),
}
#: values that steer the schedule or the decision taken afterwards, not what a unit writes
_NEUTRAL = {
    "synthesise": {"enabled", "root"},
    "collect": {"slice", "rule", "beta", "min_kept", "reference", "weights"},
    "train": {"log_every", "checkpoint_every", "max_corrupt"},
    "translate": {"quicklook", "slice"},
    "evaluate": {"slice"},
    "export": {"to", "slice"},
}


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
    translate: Translate = Translate()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        for name, text in _strings(self.model_dump(), ""):
            if _SECRET.search(text):
                raise ValueError(f"{name} carries credentials in its URI: use the environment or a profile instead")
        if self.translate.overlap >= self.translate.window:
            raise ValueError(f"translate.overlap {self.translate.overlap} >= translate.window {self.translate.window}")
        if self.split.val + self.split.test >= 1:
            raise ValueError(f"split.val {self.split.val} + split.test {self.split.test} leave nothing to train on")
        return self

    def fingerprint(self, stage: str) -> str:
        """Digest of the values that affect what a stage's units write: resources and concurrency are not part of it."""
        drop = _NEUTRAL.get(stage, set())
        parts = {s: _without(getattr(self, s).model_dump(mode="json"), drop) for s in _AFFECTS[stage]}
        world = self.resources.workers if stage == "train" else 1
        return digest(stage, parts, world)


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
            tree = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as e:
            raise ConfigError(f"cannot read config {path}: {e.strerror}") from e
        except yaml.YAMLError as e:
            raise ConfigError(f"config {path} is not YAML: {e}") from e
        if not isinstance(tree, dict):
            raise ConfigError(f"config {path} must be a mapping of sections, not a {type(tree).__name__}")
    for item in overrides:
        _set(tree, item)
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise ConfigError("\n".join(_explain(err) for err in e.errors())) from None


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
