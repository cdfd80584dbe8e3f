"""The sections of the config tree about what comes after the pixels: measures, grades, studies, and pairs for others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sar2eo_dist.sections import Section


class Evaluate(Section):
    split: Literal["val", "test", "train"] = "val"
    samples: int = Field(6, ge=0, description="side-by-side samples in the report, evenly spaced")
    extremes: int = Field(4, ge=0, description="worst and best tiles in the report, so many of each")
    fit: int = Field(512, ge=1, description="training pairs that mean image and linear baseline are fitted on")
    extractor: Literal["inception", "efficientnet_lite0", "means", "none"] = Field(
        "efficientnet_lite0", description="of the Frechet distance; inception: with cca.weights, it is the FID"
    )
    frechet: int = Field(2000, ge=2, description="pairs that the Frechet distance is taken over, at most")
    lpips: str = Field("", description="URI of torchvision's alexnet-owt-7be5be79.pth; empty = LPIPS is not measured")
    land_cover: str = Field(
        "", description="raster of land cover classes (ESA WorldCover's, say); empty = guessed from the radar"
    )
    truth_days: int = Field(
        7, ge=0, description="challenge: truths are clear S2 images within so many days of a target"
    )
    threads: int = Field(1, ge=1, description="CPU threads of one actor")
    slice: int = Field(256, ge=1, description="pairs in one unit of work")


class Grade(Section):
    """Mosaics against clear Sentinel-2 tiles of later days, as `collect` kept them."""

    mosaics: tuple[str, ...] = Field(
        (), description="folders or URIs that hold mosaic.zarr; empty = those of this run folder's last translate"
    )
    cell: int = Field(32, ge=1, description="side of a pixel of the skill map, mosaic pixels")
    days: tuple[int, int] = Field((0, 365), description="S2 days after the mosaic's last radar day: first, last")
    slice: int = Field(256, ge=1, description="S2 tiles in one unit of work, about")

    @model_validator(mode="after")
    def _possible(self) -> Grade:
        if self.days[0] > self.days[1]:
            raise ValueError(f"grade.days {self.days[0]}, {self.days[1]}: the first is after the last")
        return self


class Variant(Section):
    """One way to train. set: what differs from the config, as the config's own tree; rows: method -> its row's title."""

    set: dict[str, Any] = Field(default_factory=dict)
    rows: dict[str, str] = Field(default_factory=dict, description="translated, enhanced -> title in the table")


class Study(Section):
    """Several variants of one config, each with several seeds, in one table."""

    seeds: tuple[int, ...] = Field((0,), min_length=1, description="of training")
    variants: dict[str, Variant] = Field(default_factory=dict)


class Export(Section):
    """Pairs as image folders, for other people's trainers."""

    to: str = Field("", description="folder or URI to write {split}_A and {split}_B below; empty = below run.out")
    format: Literal["png", "tiff"] = Field("png", description="png: 8 bit, scaled as `scaling` says; tiff: dB and DN")
    slice: int = Field(256, ge=1, description="pairs in one unit of work")
