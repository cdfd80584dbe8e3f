"""The enhancement set holds the numbers that the enhancer's training makes, where any reader finds them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sar2eo_dist import models, shards, storage
from sar2eo_dist.config import load
from sar2eo_dist.errors import Corrupt, NotFound, Sar2EoError
from sar2eo_dist.models import bundle, speed
from sar2eo_dist.pipeline import pairset
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.radiometry import scale_counts
from sar2eo_dist.reader import PairReader
from sar2eo_dist.sections import Scaling

COUNT, PER, STORE = 5, 2, "shards/abc"
OPTIONS = {"ngf": 4, "n_downsampling": 1, "n_blocks": 1}


@given(hnp.arrays(np.float32, 20, elements=st.floats(-1.5, 1.5, width=32)))
def test_quantised_images_come_back(image: np.ndarray) -> None:
    stored = pairset.quantise(image)
    assert stored.dtype == np.int16
    back = stored * np.float32(pairset.STEP)
    assert np.abs(back - np.clip(image, -1, 1)).max() <= 2e-5
    assert (np.abs(back) <= 1).all()
    ends = np.array([-1, 0, 1], np.float32)
    np.testing.assert_array_equal(pairset.quantise(ends) * np.float32(pairset.STEP), ends)


def write_pairs(root: str) -> None:
    """A pair store with speckle, and nodata in one corner of every patch."""
    rng = np.random.default_rng(7)
    arrays = shards.pair_arrays(COUNT, PER)
    shards.write_template(root, STORE, arrays, {"store": "s" * 32})
    for spec in arrays:
        low, high = {"sar": (-2600, -400), "eo": (100, 2900), "valid": (0, 2)}[spec.name]
        data = rng.integers(low, high, spec.shape).astype(spec.dtype)
        if spec.name == "sar":
            data[:, :, :9, :5] = shards.NODATA_DB
        for i in range(spec.grid[0]):
            shards.write_shard(root, STORE, spec, (i,) + (0,) * (data.ndim - 1), data[i * PER : (i + 1) * PER])


def put_summary(root: str, planned: int = 4, quarantined: tuple[str, ...] = ()) -> None:
    summary = {
        "status": "partial" if quarantined else "complete", "planned": planned, "digest": "d" * 32,
        "quarantined": [{"unit": "u", "key": f"{STORE}/{n}", "reason": "r"} for n in quarantined],
        "counts": {"pairs": COUNT, "pairs a shard": PER}, "outputs": {"store": STORE},
    }  # fmt: skip
    storage.put(storage.join(root, "shard/summary.json"), json.dumps(summary).encode())


def put_bundle(uri: str, scaling: str) -> str:
    torch.manual_seed(1)
    net = models.translator("pix2pixhd").build(OPTIONS, 3, 3)
    facts = Scaling.model_validate({"sar": scaling, "eo": scaling, "median": 3}).model_dump()
    info = bundle.BundleInfo(
        "pix2pixhd", OPTIONS, 3, 3, facts, "db", "sigma0", ("VV", "VH"), ("B4", "B3", "B2"), "d" * 32, "0", 1
    )
    bundle.save(uri, net, info)
    return uri


def planned(root: str, *more: str, weights: str = "w") -> tuple[pairset.PairSet, list[Any]]:
    return pairset.plan(load(overrides=[f"run.out={root}", *more]), root, weights)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    write_pairs(str(tmp_path))
    put_summary(str(tmp_path))
    return str(tmp_path)


@pytest.fixture(scope="module", params=["fixed", "minmax"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A whole set, written in another order than its own, by a real network; two scalings."""
    root = str(tmp_path_factory.mktemp("set"))
    write_pairs(root)
    put_summary(root)
    uri = put_bundle(storage.join(root, "bundle"), request.param)
    cfg = load(overrides=[f"run.out={root}"])
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    chain = Chain([uri], 1, cfg.speed)
    weights = bundle.digest(bundle.read(uri))
    made, units = pairset.plan(cfg, root, weights)
    pairset.write_template(root, made)
    entries = [pairset.write(chain, root, made, unit, n, 3) for unit, n in reversed(units)]
    yield SimpleNamespace(root=root, uri=storage.join(root, made.folder), bundle=uri, chain=chain, weights=weights,
                          made=made, units=units, entries=entries)  # fmt: skip
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_samples_are_the_translators_images_of_whole_patches(whole: SimpleNamespace) -> None:
    net, info = bundle.load(whole.bundle)
    net, scaling = speed.apply(net), Scaling.model_validate(info.scaling)
    read, pair = pairset.TranslatedReader(whole.uri), PairReader(storage.join(whole.root, STORE))
    assert len(read) == len(pair) == COUNT
    images = [read(i) for i in range(COUNT)]
    for i, image in enumerate(images):
        with torch.no_grad():
            want = net(torch.from_numpy(scale_counts(pair(i)[0], scaling))[None])[0].numpy()
        assert (image.shape, image.dtype) == ((3, 256, 256), np.float32)
        assert np.abs(image - want).max() <= 2e-5
        np.testing.assert_array_equal(image, pairset.quantise(want) * np.float32(pairset.STEP))
    assert min(np.abs(a - images[0]).max() for a in images[1:]) > 1e-2  # no sample stands for another


def test_units_are_shard_objects_and_say_what_they_wrote(whole: SimpleNamespace) -> None:
    assert [n for _, n in whole.units] == [0, 1, 2]
    assert [e.counts["pairs"] for e in whole.entries] == [1, 2, 2]
    for entry in whole.entries:
        (artifact,) = entry.outputs
        data = storage.read_bytes(storage.join(whole.root, artifact.path))
        assert (len(data), storage.sha256(data)) == (artifact.size, artifact.sha256)
        assert entry.attempt == 3
        assert entry.bytes_in == entry.counts["pairs"] * 2 * 256 * 256 * 2
    unit, n = whole.units[1]
    again = pairset.write(whole.chain, whole.root, whole.made, unit, n, 1)
    assert again.outputs == whole.entries[1].outputs


def test_other_tools_open_it_with_its_scale(whole: SimpleNamespace) -> None:
    read = pairset.TranslatedReader(whole.uri)
    want = np.stack([read(i) for i in range(COUNT)])
    with xarray.open_zarr(whole.uri, consolidated=False, zarr_format=3) as found:
        assert dict(found.sizes) == {"sample": COUNT, "band": 3, "row": 256, "col": 256}
        np.testing.assert_allclose(found["translated"].values, want, rtol=0, atol=2e-7)
        assert found.attrs["pair_store"] == STORE
        assert found.attrs["pair_store_digest"] == "s" * 32
        assert found.attrs["bundle_digest"] == whole.weights
    raw = zarr.open_group(whole.uri, mode="r")["translated"]
    np.testing.assert_array_equal(raw[:] * np.float32(pairset.STEP), want)
    assert raw.shards == (PER, 3, 256, 256)
    assert (whole.made.folder.rpartition("/")[0], raw.dtype) == ("shards", np.int16)


def test_the_set_is_named_by_all_that_its_pixels_depend_on(pairs: str) -> None:
    made, units = planned(pairs)
    same = planned(pairs, "translate.block=1024", "translate.window=256", "translate.halo=0", "resources.translators=2")
    assert same == (made, units)
    others = [
        planned(pairs, weights="v"), planned(pairs, "translate.threads=2"), planned(pairs, "speed.precision=bfloat16")
    ]  # fmt: skip
    assert len({m.folder for m, _ in others} | {made.folder}) == 4
    ids = [u.id for _, some in [(made, units), *others] for u, _ in some]
    assert len(set(ids)) == 12


def test_a_shard_that_is_not_there_is_not_planned(pairs: str) -> None:
    everything = planned(pairs)[1]
    put_summary(pairs, quarantined=("00001",))
    assert planned(pairs)[1] == [everything[0], everything[2]]
    put_summary(pairs, planned=3)  # --limit 2
    assert planned(pairs)[1] == everything[:2]
    with pytest.raises(Sar2EoError, match=r"jobs/shard\.py"):
        planned(storage.join(pairs, "elsewhere"))


def test_runs_are_read_in_order_whatever_their_length(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, _, _ = PairReader(storage.join(pairs, STORE)).run(0, COUNT)
    for run in (1, 2, 3, 16):
        monkeypatch.setattr(pairset, "RUN", run)
        got = pairset._Samples(storage.join(pairs, STORE), "sar")
        np.testing.assert_array_equal(np.concatenate(list(got.ahead(0, COUNT))), want)
        np.testing.assert_array_equal(np.concatenate(list(got.ahead(3, 4))), want[3:4])


def test_a_reader_travels_and_names_what_is_wrong(whole: SimpleNamespace, tmp_path: Path) -> None:
    read = pairset.TranslatedReader(whole.uri)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read))(4), read(4))
    for i in (-1, COUNT):
        with pytest.raises(IndexError, match=str(COUNT)):
            read(i)
    with pytest.raises(NotFound, match="nothing"):
        pairset.TranslatedReader(str(tmp_path / "nothing"))(0)
    root = str(tmp_path)
    pairset.write_template(root, whole.made)
    data = bytearray(Path(whole.uri, "translated/c/0/0/0/0").read_bytes())
    data[100] ^= 1
    storage.put(storage.join(root, whole.made.folder, "translated/c/0/0/0/0"), bytes(data))
    with pytest.raises(Corrupt, match="chunk 0"):
        pairset.TranslatedReader(storage.join(root, whole.made.folder))(0)
