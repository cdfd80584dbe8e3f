"""The sections of the config tree about training and about what machines give."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from sar2eo_dist.sections import Section


class Phase(Section):
    """A part of a training with patches and batches of its own (Restormer's progressive learning)."""

    length: float = Field(gt=0, description="relative to the other phases' lengths")
    crop: int = Field(ge=16, description="side of the random crop, pixels")
    batch: PositiveInt = Field(description="samples of a step, over all workers")


class Stage(Section):
    """Training of one network. Batch and steps are stated globally: the worker count does not change their meaning."""

    options: dict[str, Any] = Field(default_factory=dict, description="constructor options of the network")
    steps: int = Field(200_000, ge=1)
    batch: int = Field(1, ge=1, description="samples of a step, over all workers")
    crop: int = Field(256, ge=16, description="side of the random crop, pixels")
    phases: tuple[Phase, ...] = Field((), description="patches and batches by turns, in place of batch and crop")
    micro: int = Field(
        0,
        ge=0,
        description="samples in one forward pass of a worker, gradients are accumulated over them; 0 = its share",
    )
    lr: float = Field(2e-4, gt=0)
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the weights' moving average, which is then validated and kept; 0 = none"
    )
    scale: Literal[1, 2, 4, 8] = Field(1, description="train on pixels so many times coarser")
    start: str = Field("", description="URI of a bundle whose weights training starts from")
    select: Literal["last", "best"] = Field("last", description="weights of the bundle: last, or best validated")
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(
        1000, ge=1, description="steps from checkpoint, validation and sample grid to the next"
    )


class Train(Section):
    translator: str = Field("pix2pixhd", description="file of `models/` that translates")
    enhancer: str = Field("restormer", description="file of `models/` that enhances; empty = none")
    coarse: Stage | None = Field(
        None,
        description="coarse to fine: train this network first, on coarser pixels; `translate` starts from its weights",
    )
    translate: Stage = Stage()
    enhance: Stage = Stage(lr=3e-4)
    seed: int = Field(0, ge=0)
    shuffle: int = Field(8, ge=1, description="shards in one window of the shuffle; an epoch meets window after window")
    validation: int = Field(64, ge=0, description="held-out pairs that every checkpoint is measured on; 0 = none")
    threads: int = Field(1, ge=1, description="CPU threads of one worker")
    max_corrupt: int = Field(16, ge=0, description="unreadable samples that are replaced by others; beyond it, a stop")
    max_skipped: int = Field(10, ge=0, description="steps skipped for a loss or gradient not finite; beyond it, a stop")
    outage_s: float = Field(900.0, ge=0, description="training goes on so long while no checkpoint can be written")
    hang_s: float = Field(
        1800.0, ge=0, description="a step longer than this is a hang: the workers start again; 0 = never"
    )

    @model_validator(mode="after")
    def _possible(self) -> Train:
        for name in ("coarse", "translate", "enhance"):
            stage = getattr(self, name)
            if stage and stage.select == "best" and not self.validation:
                raise ValueError(f"train.{name}.select best wants validation pairs: train.validation is 0")
        if self.translate.scale > 1 or self.enhance.scale > 1:
            raise ValueError("scale is of train.coarse alone: what translates a mosaic is trained on its pixels")
        if self.coarse and self.translate.start:
            raise ValueError("train.translate.start and train.coarse are both given: it starts from one of them")
        return self


class Resources(Section):
    """What the machine gives. None of it changes a result, but a training's last digits by the number of `workers`."""

    address: str = Field("", description="Ray cluster; empty = RAY_ADDRESS, or a Ray of its own on this machine")
    object_store_mb: int = Field(0, description="0 = Ray's default")
    readers: int = Field(0, ge=0, description="parallel read tasks; 0 = what the cluster has")
    extractors: int = Field(0, ge=0, description="extractor actors at most; 0 = one a GPU, or by CPUs")
    extractors_min: int = Field(0, ge=0, description="extractor actors kept while there is little work; 0 = all")
    translators: int = Field(0, ge=0, description="translation actors; 0 = one a GPU, or by CPUs")
    workers: int = Field(1, ge=1, description="training workers")
    workers_min: int = Field(0, ge=0, description="elastic: training goes on with so few of them; 0 = with all alone")
    loaders: int = Field(0, ge=0, description="threads of a training worker that read pairs; 0 = 2, from a bucket 16")
    prefetch_mb: int = Field(256, ge=1, description="memory of one training worker for batches made ahead")
    gpu: Literal["auto", "never"] = "auto"
    wait_cpus: int = Field(
        0,
        ge=0,
        description="CPUs that an autoscaling cluster is asked for, and waited for before a stage shares out its work",
    )
    wait_gpus: int = Field(0, ge=0, description="the same of GPUs")
    wait_s: float = Field(900.0, ge=0, description="so long; then a stage goes on with what is there, if anything is")

    @model_validator(mode="after")
    def _possible(self) -> Resources:
        if self.workers_min > self.workers:
            raise ValueError(f"workers_min {self.workers_min} > workers {self.workers}")
        return self
