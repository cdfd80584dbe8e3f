"""Bundles: exact round trip, equal bytes, and every way of being broken has a name."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import save as bytes_of

from sar2eo_dist import models, storage
from sar2eo_dist.errors import ConfigError, ModelError, NotFound
from sar2eo_dist.models import bundle, card

OPTIONS = {"ngf": 4, "n_downsampling": 1, "n_blocks": 1}
INFO = bundle.BundleInfo(
    model="pix2pixhd", options=OPTIONS, in_channels=3, out_channels=3, scaling={"sar": "fixed", "median": 3},
    units="db", quantity="sigma0", sar_bands=("VV", "VH"), eo_bands=("B4", "B3", "B2"), data="d" * 32, code="0.1.0",
    step=7, metrics={"mae": 0.25, "lpips": math.nan},
)  # fmt: skip


@pytest.fixture
def net():
    torch.manual_seed(0)
    return models.translator("pix2pixhd").build(OPTIONS, 3, 3)


@pytest.fixture
def saved(net, tmp_path):
    bundle.save(str(tmp_path), net, INFO)
    return str(tmp_path)


def test_round_trip_through_a_folder_and_an_object_store(net, tmp_path):
    x = torch.rand(1, 3, 9, 11)
    for uri in (str(tmp_path / "bundle"), "memory://bundles/one"):
        artifacts = bundle.save(uri, net, INFO)
        assert [a.path for a in artifacts] == ["weights.safetensors", "README.md", "bundle.json"]  # the facts last
        for a in artifacts:
            data = storage.read_bytes(storage.join(uri, a.path))
            assert (len(data), storage.sha256(data)) == (a.size, a.sha256)
        again, info = bundle.load(uri)
        assert not again.training
        with torch.no_grad():
            assert torch.equal(again(x), net.eval()(x))
        assert info.options == models.translator("pix2pixhd").complete(OPTIONS)
        assert math.isnan(info.metrics["lpips"])
        assert info.metrics["mae"] == 0.25
        assert info.weights_sha256 == artifacts[0].sha256
        kept = {"model", "in_channels", "scaling", "units", "quantity", "sar_bands", "eo_bands", "data", "code", "step"}
        assert all(getattr(info, k) == getattr(INFO, k) for k in kept)


def test_equal_weights_give_equal_bytes(net, tmp_path):
    shuffled = models.translator("pix2pixhd").build(OPTIONS, 3, 3)
    shuffled.load_state_dict(dict(reversed(net.state_dict().items())))
    first = bundle.save(str(tmp_path / "a"), net, INFO)
    second = bundle.save(str(tmp_path / "b"), shuffled.to(memory_format=torch.channels_last), INFO)
    assert first == second


def test_a_copy_of_the_folder_runs_anywhere_and_says_all(net, saved, tmp_path):
    wanted = net.eval()(torch.ones(1, 3, 9, 11))
    before = bundle.read(saved)
    copy = shutil.copytree(saved, tmp_path / "else" / "where")
    for name in (bundle.WEIGHTS, bundle.CARD, bundle.FACTS):
        (tmp_path / name).unlink()
    again, info = bundle.load(str(copy))
    assert torch.equal(again(torch.ones(1, 3, 9, 11)), wanted)
    facts = dataclasses.asdict(info)
    assert facts == dataclasses.asdict(before) | {"metrics": facts["metrics"]}
    assert all(facts[f.name] for f in dataclasses.fields(info) if f.name != "role")
    page = (copy / bundle.CARD).read_text()
    assert page == card.text(info, sum(p.numel() for p in again.parameters()))
    assert "| lpips | not measured |" in page
    (copy / bundle.CARD).unlink()  # for people only
    bundle.load(str(copy))


def test_the_role_is_kept_and_bundles_without_one_are_read(saved, net):
    where = storage.join(saved, bundle.FACTS)
    tree = json.loads(storage.read_bytes(where))
    assert tree.pop("role") == ""
    storage.put(where, json.dumps(tree).encode())
    old = bundle.load(saved)[1]
    bundle.save(saved, net, dataclasses.replace(INFO, role="enhance"))
    new = bundle.read(saved)
    assert (old.role, new.role) == ("", "enhance")
    assert bundle.digest(old) == bundle.digest(new)


def test_digest_is_of_what_the_bundle_computes(saved):
    info = bundle.read(saved)
    same = dataclasses.replace(info, metrics={}, step=9, code="2", data="x")
    assert bundle.digest(info) == bundle.digest(same)
    for change in ({"weights_sha256": "0"}, {"scaling": {"sar": "minmax"}}, {"units": "linear"}, {"eo_bands": ("B2",)}):
        assert bundle.digest(dataclasses.replace(info, **change)) != bundle.digest(info)


def put(folder, data):
    storage.put(storage.join(folder, bundle.WEIGHTS), data)


def test_truncated_and_altered_weights(saved):
    data = storage.read_bytes(storage.join(saved, bundle.WEIGHTS))
    for cut in (0, 5, 200, len(data) - 1):
        put(saved, data[:cut])
        with pytest.raises(ModelError, match=rf"truncated or no safetensors \({cut} bytes.*weights.safetensors"):
            bundle.load(saved)
    put(saved, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"not those that bundle.json describes: sha256"):
        bundle.load(saved)


def test_weights_of_another_network_are_named_key_by_key(saved, net):
    state = net.state_dict()
    state["model.1.weight"] = torch.zeros(4, 3, 5, 5)
    state["extra"] = state.pop("model.4.bias")
    put(saved, bytes_of(state))
    with pytest.raises(ModelError) as e:
        bundle.load(saved)
    for words in ("1 missing: model.4.bias", "1 unexpected: extra", "1 misshapen: model.1.weight is (4, 3, 5, 5)"):
        assert words in str(e.value)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_a_pickle_is_refused_unread(saved, net):
    for legacy in (False, True):
        buffer = io.BytesIO()
        torch.save({"a": Bomb()}, buffer, _use_new_zipfile_serialization=not legacy)
        put(saved, buffer.getvalue())
        with pytest.raises(ModelError, match="a pickle can run code when it is read: refused"):
            bundle.load(saved)


def test_torn_or_foreign_description(saved):
    where = storage.join(saved, bundle.FACTS)
    tree = json.loads(storage.read_bytes(where))
    trees = [[], {**tree, "format": 9}, {**tree, "colour": 1}, {"format": 1}]
    for text in ("", "{", *map(json.dumps, trees)):
        storage.put(where, text.encode())
        with pytest.raises(ModelError, match=r"not a bundle description .*bundle\.json"):
            bundle.read(saved)
    storage.put(where, json.dumps({**tree, "model": "pix3pix"}).encode())
    with pytest.raises(ConfigError, match="no translator 'pix3pix'"):
        bundle.load(saved)
    with pytest.raises(NotFound):
        bundle.load(saved + "/nowhere")


def test_what_cannot_be_saved(net, tmp_path):
    with pytest.raises(ModelError, match=r"misshapen: model.1.weight"):
        bundle.save(str(tmp_path), net, dataclasses.replace(INFO, in_channels=4))
    with torch.no_grad():
        net.model[1].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ModelError, match=r"1 weights are NaN or infinite, first model.1.weight: not saved"):
        bundle.save(str(tmp_path), net, INFO)
    assert not list(tmp_path.iterdir())
