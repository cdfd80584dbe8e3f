"""What one network is trained on and how: made by the driver, read by every worker."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import ray
import torch

from sar2eo_dist import __version__
from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import bundle, translator
from sar2eo_dist.pipeline.driver import code
from sar2eo_dist.records import S1_BANDS, S2_BANDS
from sar2eo_dist.sections import Cost, Scaling, Speed
from sar2eo_dist.sections_training import Stage, Train
from sar2eo_dist.training.phases import Phase

CHANNELS = 3  # of the scaled SAR (VV, VH, third) and of the EO (B4, B3, B2)


@dataclass(frozen=True, slots=True)
class Job:
    """What one network is trained on and how; goes to every worker. URIs: store, images (of the enhancement set, or
    empty), start (bundle, or empty), checkpoints, journal and out (of the bundle): folders."""

    role: str
    model: str
    stage: Stage
    train: Train
    plan: tuple[Phase, ...]
    scaling: Scaling
    speed: Speed
    cost: Cost
    loaders: int
    prefetch_mb: int
    store: str
    images: str
    start: str
    samples: npt.NDArray[np.int64]  # training samples: their places in the store
    held: tuple[int, ...]  # held-out ones
    data: str  # digest of the pairs
    checkpoints: str
    journal: str
    out: str
    versions: dict[str, str]

    def info(self) -> bundle.BundleInfo:
        """The bundle's facts, but for its metrics and step."""
        return bundle.BundleInfo(
            role=self.role, model=self.model, options=translator(self.model).complete(self.stage.options),
            in_channels=CHANNELS, out_channels=CHANNELS, scaling=self.scaling.model_dump(), units="db",
            quantity="sigma0", sar_bands=S1_BANDS, eo_bands=S2_BANDS, data=self.data, code=f"sar2eo_dist {__version__}", step=0,
        )  # fmt: skip


def versions() -> dict[str, str]:
    """What must be the same in every process of a training."""
    return {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "ray": ray.__version__,
        "sar2eo_dist": code(),
    }  # fmt: skip


def compatible(info: bundle.BundleInfo, job: Job) -> None:
    """Raises ModelError where a bundle to start from was trained on other inputs or targets than this training's."""
    own = job.info()
    for name in ("scaling", "units", "quantity", "sar_bands", "eo_bands"):
        theirs, ours = getattr(info, name), getattr(own, name)
        if theirs != ours:
            raise ModelError(
                f"training cannot start from a bundle of {name} {theirs}, this one's is {ours}: {job.start}"
            )
