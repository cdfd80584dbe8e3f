"""The sections of the config tree: every key with its default, its range and where a threshold comes from."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

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
    lease_s: float = Field(
        60.0, gt=0, description="seconds without a sign of life after which another job may take the run folder over"
    )
    log: Literal["text", "json"] = Field("text", description="stderr: lines for a person, or a JSON object a line")


class Data(Section):
    kind: Literal["multiearth_tiff", "multiearth_netcdf", "scenes", "folder_pair"] = "multiearth_tiff"
    s1: str = Field("", description="TIFF folder, NetCDF file or folder of scenes of Sentinel-1, any fsspec URI")
    s2: str = Field("", description="the same of Sentinel-2")
    pairs: str = Field(
        "", description="folder_pair: folder of ready pairs, A and B or {split}_A and {split}_B; no collect"
    )
    target: str = Field("", description="MultiEarth target NetCDF (places and dates without images), for patch output")
    scenes: str = Field(
        "", description="geocoded S1 of a mosaic: a GeoTIFF, a folder, a list (.txt), STAC (.json, .parquet), a .zarr"
    )
    units: Literal["", "db", "linear"] = Field("", description="of the scenes; empty = what their tags declare")
    quantity: Literal["", "sigma0", "gamma0"] = Field("", description="of the scenes; empty = what their tags declare")
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


#: profile -> defaults that differ from the paper's; a key given in the config wins
PROFILES: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"dark_max_fraction": 0.3},
    "recommended": {
        "qa60_max_fraction": 0.005,
        "alpha_max_fraction": 1.0,
        "brightness_min": 0.0,
        "dark_max_fraction": 1.0,
        "valid_min_fraction": 0.95,
        "light_min": 80.0,
        "white_max_fraction": 0.005,
        "distance": "position",
        "rule": "reference",
        "beta": 0.25,
    },
    "none": {},
}


class CCA(Section):
    """Clean Collector Algorithm. Thresholds: arXiv 2306.12626 [P], its authors' published scripts [S], physics (derived in
    cca/cloud.py, which says what was seen of real images before) or the synthetic world."""

    profile: Literal["paper", "released", "recommended", "none"] = Field(
        "paper", description="`released` ends after stage 2, as the authors' scripts do; `none` keeps all"
    )
    level: Literal["l2a", "l1c"] = Field(
        "l2a",
        description="of the S2 product: from l1c molecular light is removed before clouds are looked for (physics)",
    )
    qa60_max_fraction: Fraction = Field(
        0.0, description="share of pixels allowed that QA60 flags [P, S: none]; recommended: 0.005, as for white pixels"
    )
    alpha: int = Field(4096, description="DN; pixel threshold [P, S]")
    alpha_max_fraction: Fraction = Field(0.0, description="share of pixels with DN >= alpha allowed [P, S: none]")
    brightness_min: float = Field(30.0, description="mean V of HSV of the stretched image, 0..255 [P, S]")
    dark_max_fraction: Fraction = Field(0.1, description="share of dark pixels allowed [P: 0.1, S: 0.3]")
    valid_min_fraction: Fraction = Field(
        0.0, description="share of pixels with data wanted; recommended: 0.95, a swath edge that stays a margin"
    )
    light_min: float = Field(
        0.0, description="DN that 9 tenths of a tile must reach, else it is night; recommended: 80, below the darkest water "
        "by day (reflectance 0.01) and above the synthetic world's deep night (its dusk reaches 100 to 240)"
    )  # fmt: skip
    white_dn: int = Field(
        900, ge=0, description="DN of B2 above which a pixel may be cloud: forest covered to 1/7 (physics)"
    )
    white_blue: float = Field(
        0.75, ge=0, le=20, description="B2 / B4 above which it may be: soil and sand have 0.4 to 0.7, cloud 1 (physics)"
    )
    white_spread: float = Field(
        0.7, ge=0, le=3, description="(max - min) / mean of the bands below which it may be: whiteness as in Fmask"
    )
    white_max_fraction: Fraction = Field(
        1.0, description="share allowed of white pixels in 3 x 3 blocks; recommended: 0.005, between the most that clear "
        "windows of the synthetic world show (0.0012 without any cloud) and a cloud of 2 %"
    )  # fmt: skip
    haze_max: float = Field(
        float("1e9"), description="DN of blue light too much that is allowed; reported in any case; 100 is visible haze"
    )
    extractor: Literal["inception", "efficientnet_lite0", "means"] = Field(
        "inception", description="`means` is no network but channel means: to measure what all else costs"
    )
    weights: str = Field("", description="inception: URI of pt_inception-2015-12-05-6726825d.pth")
    reference: str = Field(
        "",
        description="cloud set: folder of 8-bit RGB images, list of them (.txt), candidates (.csv), built (.npz)",
    )
    distance: Literal["point", "spatial", "position"] = Field(
        "point", description="of the pooled feature; of all positions as a sample; of the cloudiest position"
    )
    rule: Literal["range", "literal", "quantile", "otsu", "reference"] = Field(
        "range", description="what F_th is taken from: see cca/threshold.py"
    )
    beta: float = Field(
        0.4,
        description="F_th = low + (high - low) * beta [P]; `quantile`: low, high = 0.1, 99.9 %; `reference`: a quantile",
    )
    min_kept: Fraction = Field(0.01, description="loud stop where a smaller share of the scored tiles is kept")
    max_kept: Fraction = Field(1.0, description="loud stop where a larger share of the scored tiles is kept")
    calibration: str = Field("", description="URI of a frozen calibration.json to use; empty = this run folder's own")
    drift_max: Fraction = Field(0.1, description="Kolmogorov-Smirnov distance of new scores that is reported as drift")
    pack: int = Field(32, ge=1, description="tiles in one forward of the extractor; fixed, so results are")
    threads: int = Field(1, ge=1, description="CPU threads of one extractor")
    slice: int = Field(2000, ge=1, description="tiles in one unit of work, about")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, tree: Any) -> Any:
        """The profile's defaults under what is given."""
        return PROFILES.get(str(tree.get("profile", "paper")), {}) | tree if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _possible(self) -> CCA:
        if self.min_kept > self.max_kept:
            raise ValueError(f"min_kept {self.min_kept:g} > max_kept {self.max_kept:g}: no share of tiles is allowed")
        if self.rule == "reference" and not 0 <= self.beta <= 1:
            raise ValueError(
                f"beta {self.beta:g} with rule reference is a quantile of the cloud set's own distances: 0 to 1"
            )
        return self


class Pairing(Section):
    max_days: int = Field(30, ge=0, description="largest |EO date - SAR date|")
    mode: Literal["nearest", "all", "released", "none"] = Field(
        "nearest",
        description="nearest SAR of each EO image; every combination; the authors': nearest, < 7 days, the last EO wins; or "
        "no pair at all: clear tiles to grade mosaics with, which needs no data.s1",
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


class Speed(Section):
    """How networks are run, in training and afterwards; the arithmetic's last bits depend on it (models/speed.py)."""

    precision: Literal["float32", "bfloat16"] = Field("float32", description="of convolutions and matrix products")
    compile: bool = Field(False, description="torch.compile: wants Triton on a GPU, a C++ compiler on a CPU")
    checkpointing: bool = Field(False, description="training keeps few activations and computes the others twice")


class Mosaic(Section):
    """Where the mosaic lies on the ground, and what its input is composed of."""

    grid: str = Field(
        "",
        description="utm: native zones, each pixel owned by one; EPSG:n of one zone; empty = that of the one raster, or utm",
    )
    pixel: float = Field(10.0, gt=0, description="metres; of the grids utm and EPSG:n")
    aoi: str = Field(
        "",
        description="only blocks that it touches: a GeoJSON with polygons, or `amazon` (the basin); empty = all with scenes",
    )
    start: dt.date | None = Field(None, description="first acquisition day of the scenes used; undated ones always are")
    end: dt.date | None = Field(None, description="last acquisition day")
    #: both directions are composited apart, then averaged; one of them takes scenes of unknown orbit along
    orbit: Literal["both", "ascending", "descending"] = "both"
    composite: Literal["median", "mean"] = Field("median", description="over the dates of a pixel, in linear power")


class Basin(Section):
    """The scheduled run (jobs/basin.py)."""

    period: Literal["none", "month", "quarter", "year"] = Field(
        "none",
        description="make a mosaic of each period, whose days set mosaic.start and end; none: one mosaic, with the dates given",
    )
    grace_days: int = Field(
        14,
        ge=0,
        description="after its end a period is brought up to date for so long: scenes come late, and so do runs",
    )


class Translate(Section):
    bundles: tuple[str, ...] = Field(
        (), description="URIs of the translator's and the enhancer's bundle; empty = those that this run folder trained"
    )
    statistics: Literal["window", "field", "exact"] = Field(
        "field",
        description="of instance norm; field: gathered first, interpolated; window: each window's own, windows blended; "
        "exact: of the whole scene, by one worker, for verification",
    )
    statistics_window: int = Field(2048, ge=64, description="side of a window that statistics are gathered in, pixels")
    window: int = Field(512, ge=32, description="side of a lattice window, pixels")
    halo: int = Field(96, ge=0, description="field, exact: pixels read around a window, clipped at the grid's edge")
    overlap: int = Field(256, ge=32, description="statistics=window: overlap of neighbouring windows, pixels")
    block: int = Field(2048, ge=64, description="side of a block: one unit of work, one storage object")
    batch: int = Field(1, ge=1, description="windows in one forward pass; fixed, so results are")
    dtype: Literal["uint8", "uint16"] = Field("uint8", description="of the mosaic: colours of 0..255, or DN")
    confidence: bool = Field(False, description="also write each pixel's typical error")
    threads: int = Field(1, ge=1, description="CPU threads of one translator; fixed, so results are")
    max_days: int = Field(7, ge=0, description="patches: largest |target date - SAR date|")
    nearest: int = Field(3, ge=1, description="patches: SAR images, and so images made, of one target at most")
    quicklook: int = Field(1024, ge=64, description="longest side of the quick-look, pixels")
    slice: int = Field(256, ge=1, description="patches in one unit of work")
    pairs: bool = Field(False, description="also make the enhancement set: the translator's image of every pair")

    @model_validator(mode="after")
    def _possible(self) -> Translate:
        if self.statistics == "window":
            if self.overlap >= self.window:
                raise ValueError(f"translate.overlap {self.overlap} >= translate.window {self.window}")
        elif self.block % self.window:
            raise ValueError(f"translate.block {self.block} is no multiple of translate.window {self.window}")
        return self


class Cost(Section):
    """Prices and power, for forecasts and reports, and the clusters that a forecast compares; 0 = not counted."""

    currency: str = "USD"
    gpu_hour: float = Field(0.0, ge=0, description="of one GPU with its node")
    cpu_hour: float = Field(0.0, ge=0, description="of one CPU core")
    put_1000: float = Field(0.0, ge=0, description="of 1,000 PUT requests")
    get_1000: float = Field(0.0, ge=0, description="of 1,000 GET requests")
    gb_month: float = Field(0.0, ge=0, description="of a GB stored for a month")
    gpu_watts: float = Field(
        0.0, ge=0, description="power of one GPU with its node, times PUE; at most 1,275 x PUE in a DGX H100 (10.2 kW for 8, "
        "by its data sheet), 350 for an H100 PCIe card alone"
    )  # fmt: skip
    cpu_watts: float = Field(
        0.0, ge=0, description="power of one CPU core with its node, times PUE; cloud vCPUs: 0.7 idle to 3.5 busy, the mean of "
        "AWS by Cloud Carbon Footprint"
    )  # fmt: skip
    kwh: float = Field(0.0, ge=0, description="price of a kWh where it is paid apart: a cloud's hour holds it")
    kwh_co2: float = Field(
        0.0, ge=0, description="g of CO2 of a kWh; 2023: Brazil 98, the world 481 (Ember, lifecycle)"
    )
    rates: str = Field(
        "", description="JSON of `rates.Rates`, taken instead of measured ones: what is assumed of machines not at hand"
    )
    clusters: tuple[PositiveInt, ...] = Field(
        (1, 4, 16, 64), description="numbers of translators that `--dry-run` compares, each on a node of its own"
    )
    node_cores: int = Field(8, ge=1, description="of these, CPU cores beside a GPU")
    node_start_s: float = Field(0.0, ge=0, description="of these, seconds until autoscaling has brought a node")
    node_mb_s: float = Field(0.0, ge=0, description="of these, MB/s between a node and the store; 0 = no limit")
    store_mb_s: float = Field(0.0, ge=0, description="of these, MB/s of the store in all; 0 = no limit")
