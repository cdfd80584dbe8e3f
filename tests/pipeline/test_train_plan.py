"""What a training is refused for before it starts, what plans it anew, and coarse to fine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import ray.train
import torch
import zarr
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from small_training import ENHANCE, STORE, config, write_pairs
from small_training import alone as alone

from sar2eo_dist import storage
from sar2eo_dist.errors import ConfigError, ModelError, NotFound, TooManyFailures
from sar2eo_dist.models import bundle, translator
from sar2eo_dist.pipeline import cluster
from sar2eo_dist.pipeline.stage import Options, read_summary
from sar2eo_dist.pipeline.train import Trainer, _cause, plan, train
from sar2eo_dist.pipeline.training_job import Job
from sar2eo_dist.records import Unit

COARSE = (
    "train.coarse={options: {ngf: 8, n_downsampling: 1, n_blocks: 1, ndf: 4}, steps: 2, batch: 2, crop: 64, scale: 2, "
    "checkpoint_every: 2, log_every: 1}"
)
LOCAL = (
    "train.translate={options: {netG: local, ngf: 4, n_downsampling: 1, n_blocks: 1, ndf: 4, niter_fix_global: 0.5}, "
    "steps: 2, batch: 2, crop: 32, checkpoint_every: 1, log_every: 1}"
)


@pytest.fixture
def root(tmp_path: Path) -> str:
    write_pairs(str(tmp_path), 3, 2, 2)
    return str(tmp_path)


def planned(root: str, *more: str) -> list[tuple[Unit, Job]]:
    cfg = config(root, *more)
    return list(plan(cfg, root, read_summary(cfg, "shard")).values())


def refused(root: str, *more: str, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as e:
        train(config(root, *more), Options())
    assert not (Path(root) / "ledger").exists()
    return str(e.value)


def test_shards_of_another_channel_order_or_step_are_refused(root: str) -> None:
    group = zarr.open_group(f"{root}/{STORE}", mode="r+")
    group["sar"].attrs["polarisation"] = ["VH", "VV"]
    assert "array 'sar' of these shards holds polarisation ['VH', 'VV'] instead of ['VV', 'VH']" in refused(root)
    group["sar"].attrs["polarisation"] = ["VV", "VH"]
    group["eo"].attrs["units"] = "reflectance"
    assert "array 'eo' of these shards holds units 'reflectance' instead of 'DN': write them again" in refused(root)


def test_folds_without_a_pair_are_refused(tmp_path: Path) -> None:
    write_pairs(str(tmp_path), 3, 0, 2)
    text = refused(str(tmp_path))
    assert "no pair is held out to validate on (fold val; split.val 0.1" in text
    assert "train.validation=0" in text
    assert planned(str(tmp_path), "train.validation=0")[0][1].held == ()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["train.translate.crop=300"], "train.translate: crop 300 must be at most a patch of 256 pixels"),
        ([COARSE, LOCAL, "train.coarse.crop=33"], "train.coarse: crop 33 must be at most a patch of 256 pixels, and a"),
        (["train.translate.scale=2"], "scale is of train.coarse alone"),
        (["resources.workers=3"], "a batch of 2 leaves some of resources.workers 3 without a sample"),
        (["train.translate.phases=[{length: 1, crop: 32, batch: 2}, {length: 99, crop: 64, batch: 2}]"],
         "6 steps in 2 phases of relative lengths [1.0, 99.0]: one has no step"),
        (["train.translate.options.nfg=4"], "did you mean 'ngf'"),
        ([COARSE, LOCAL, "train.translate.start=nowhere"], "both given"),
        (["train.validation=0", "train.translate.select=best"], "train.validation is 0"),
        (["resources.workers_min=2"], "workers_min 2 > workers 1"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(root: str, more: list[str], text: str) -> None:
    assert text in refused(root, *more)


def saved(root: str, options: dict[str, Any], **more: Any) -> str:
    torch.manual_seed(3)
    net = translator("pix2pixhd").build(options, 3, 3)
    (_, job), *_ = planned(root)
    facts = {f: getattr(job.info(), f) for f in bundle.BundleInfo.__slots__} | {"options": options, **more}
    bundle.save(f"{root}/given", net, bundle.BundleInfo(**facts))
    return f"train.translate.start={root}/given"


def test_a_bundle_to_start_from_must_fit(root: str, alone: Any) -> None:
    other = saved(root, {"ngf": 8, "n_downsampling": 1, "n_blocks": 1})
    text = refused(root, other, error=ModelError)
    assert "training cannot start from a pix2pixhd of {" in text
    assert "GlobalGenerator(input_nc=3, output_nc=3, ngf=8" in text  # what it is of, and what it would fit
    own = {"ngf": 4, "n_downsampling": 1, "n_blocks": 1, "ndf": 4, "lambda_l1": 1.0}
    linear = saved(root, own, units="linear")
    assert "from a bundle of units linear, this one's is db" in refused(root, linear, error=ModelError)
    scaled = saved(root, own, scaling={"sar": "minmax"})
    assert "from a bundle of scaling {'sar': 'minmax'}" in refused(root, scaled, error=ModelError)
    with pytest.raises(NotFound):
        planned(root, f"train.translate.start={root}/nowhere")
    ((_, job),) = planned(root, saved(root, own), "train.translate.lr=1.0e-30", "train.translate.steps=1")
    alone.run(job)
    begun, ended = (bundle.load(uri)[0].state_dict() for uri in (f"{root}/given", job.out))
    assert all(torch.equal(begun[k], ended[k]) for k in begun)


def test_coarse_to_fine(root: str, alone: Any) -> None:
    """The local enhancer starts from the global net's weights, and that half of it stays for half of the steps."""
    (_, coarse), (_, fine) = planned(root, COARSE, LOCAL)
    assert (coarse.role, fine.role, fine.start) == ("coarse", "translate", coarse.out)
    alone.run(coarse)
    fine_of_two = fine
    alone.run(fine_of_two)
    begun = bundle.load(coarse.out)[0].state_dict()
    assert bundle.read(coarse.out).role == "coarse"
    first = torch.load(f"{fine.checkpoints}/{1:09d}.pt", weights_only=True)["trainer"]["networks"]["G"]
    shared = [k for k in first if k.startswith("model.")]
    assert shared
    assert all(torch.equal(first[k], begun[k]) for k in shared)
    ended = bundle.load(fine.out)[0].state_dict()
    assert any(not torch.equal(ended[k], begun[k]) for k in shared)
    record = json.loads(storage.read_bytes(f"{coarse.journal}/record.json"))
    assert record["validations"][-1]["mae"] > 0
    text = refused(root, COARSE.replace("ngf: 8", "ngf: 6"), LOCAL, error=ModelError)
    assert "train.coarse" in text
    assert "GlobalGenerator(input_nc=3, output_nc=3, ngf=6" in text


def test_what_changes_no_weight_plans_nothing_anew(root: str) -> None:
    def ids(*more: str) -> list[str]:
        return [u.id for u, _ in planned(root, "train.enhancer=restormer", *more)]

    plain = ids()
    assert (
        ids("train.hang_s=5", "resources.workers=2", "train.translate.checkpoint_every=3", "train.validation=1")
        == plain
    )
    translator_alone = ids("train.enhance.lr=1.0e-5")
    assert translator_alone[0] == plain[0]
    assert translator_alone[1] != plain[1]
    for more in ("train.translate.micro=1", "train.seed=1", "speed.precision=bfloat16", "train.translate.select=best"):
        changed = ids(more)
        assert changed[0] != plain[0], more
        assert changed[1] != plain[1], more
    best = ids("train.translate.select=best")
    assert ids("train.translate.select=best", "train.validation=1")[0] != best[0]


def test_a_crash_of_the_first_network_is_tried_again_and_told_as_such(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is not begun on a bundle that is not there."""
    tried: list[str] = []

    def crash(cfg: object, root: str, unit: Unit, *_: object) -> None:
        tried.append(unit.key)
        raise ray.exceptions.ActorUnavailableError("the controller is out of reach", None)

    monkeypatch.setattr(cluster, "start", lambda cfg: None)
    monkeypatch.setattr("sar2eo_dist.pipeline.train._train", crash)
    monkeypatch.setattr("sar2eo_dist.pipeline.train.PAUSE_S", 0.0)
    with pytest.raises(TooManyFailures, match="translate: its worker died: ActorUnavailableError"):
        train(config(root, "train.enhancer=restormer", ENHANCE), Options())
    assert tried == ["translate"] * 3


@pytest.mark.cluster
def test_what_a_failed_training_leaves_reserved_is_given_back(
    ray_session: None, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray forgets a group of workers that it fails to shut down: every further attempt would wait for its CPUs."""
    made: list[PlacementGroup] = []

    def fit(self: Trainer) -> None:
        made.append(placement_group([{"CPU": 2}], name="left"))
        assert made[-1].wait(30), "what the attempt before left is still reserved"
        raise ray.train.ControllerError(RuntimeError("shutting down failed too"))

    monkeypatch.setattr(Trainer, "fit", fit)
    monkeypatch.setattr("sar2eo_dist.pipeline.train.PAUSE_S", 0.0)
    with pytest.raises(TooManyFailures, match="shutting down failed too"):
        train(config(root), Options())
    assert [placement_group_table(group)["state"] for group in made] == ["REMOVED"] * 3


def test_a_full_disk_is_told_with_its_node_and_what_to_do() -> None:
    told = "Failed to set up runtime environment.\n[Node 10.0.0.7] Traceback ...\nOSError: [Errno 28] No space left on device"
    said = _cause(ray.train.ControllerError(RuntimeError(told)))
    assert said.startswith("the disk of node 10.0.0.7 under Ray's folder (/tmp/ray) is full: make room there")
