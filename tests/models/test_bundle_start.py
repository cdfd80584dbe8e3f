"""Training that starts from a bundle: all of its weights, or the part that a local enhancer inherits."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from sar2eo_dist import models, storage
from sar2eo_dist.errors import ModelError, NotFound
from sar2eo_dist.models import bundle

GLOBAL = {"ngf": 4, "n_downsampling": 2, "n_blocks": 2}
LOCAL = {**GLOBAL, "netG": "local", "ngf": 2, "n_blocks_local": 1}
RESTORMER = {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0, "heads": [1, 1, 2, 2]}
INFO = bundle.BundleInfo(
    model="pix2pixhd", options={}, in_channels=3, out_channels=3, scaling={"sar": "fixed"}, units="db",
    quantity="sigma0", sar_bands=("VV", "VH"), eo_bands=("B4", "B3", "B2"), data="d", code="0.1.0", step=7,
)  # fmt: skip


def build(options, seed, name="pix2pixhd"):
    torch.manual_seed(seed)
    return models.translator(name).build(options, 3, 3)


def saved(tmp_path, options, name="pix2pixhd"):
    net = build(options, 1, name)
    bundle.save(str(tmp_path), net, dataclasses.replace(INFO, model=name, options=options))
    return str(tmp_path), net.state_dict()


def refused(net, uri, *words):
    """The error's text; the network is as it was."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ModelError) as e:
        bundle.start(net, uri)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize(("name", "options"), [("pix2pixhd", GLOBAL), ("pix2pixhd", LOCAL), ("restormer", RESTORMER)])
def test_the_same_architecture_takes_all_weights(tmp_path, name, options):
    uri, state = saved(tmp_path, options, name)
    net = build(options, 2, name).train()
    assert bundle.start(net, uri) == bundle.read(uri)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert net.training


@pytest.mark.parametrize("downsampling", [1, 2, 4])
@pytest.mark.parametrize("enhancers", [1, 2])
def test_a_local_enhancer_takes_the_global_net_of_its_width_and_keeps_the_rest(tmp_path, downsampling, enhancers):
    more = {"n_downsampling": downsampling, "n_blocks": 3}
    uri, state = saved(tmp_path, {**GLOBAL, **more, "ngf": 2 * 2**enhancers})
    net = build({**LOCAL, **more, "n_local_enhancers": enhancers}, 2)
    own = copy.deepcopy(net.state_dict())
    info = bundle.start(net, uri)
    assert info.options["netG"] == "global"
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key] if key.startswith("model.") else own[key]), key
    output = {k for k in state if k not in own}
    last = max(int(k.split(".")[1]) for k in state)
    assert output == {f"model.{last}.weight", f"model.{last}.bias"}  # all that is left over


def test_a_local_enhancer_refuses_a_global_net_of_another_width_or_depth(tmp_path):
    uri, _ = saved(tmp_path, GLOBAL)
    refused(build({**LOCAL, "ngf": 4}, 2), uri, "pix2pixhd", "'ngf': 4", "LocalEnhancer", "misshapen", uri)
    refused(build({**LOCAL, "n_blocks": 3}, 2), uri, "pix2pixhd", "'n_blocks': 2", "LocalEnhancer", uri)
    refused(build({**LOCAL, "n_blocks": 1}, 2), uri, "pix2pixhd", "'n_blocks': 2", "LocalEnhancer", uri)


def test_another_architecture_is_refused_and_both_are_named(tmp_path):
    uri, _ = saved(tmp_path / "g", GLOBAL)
    refused(build(RESTORMER, 2, "restormer"), uri, "cannot start from a pix2pixhd", "'ngf': 4", "Enhancer", uri)
    refused(build({**GLOBAL, "ngf": 6}, 2), uri, "'ngf': 4", "GlobalGenerator", "misshapen", "model.1.weight", uri)
    uri, _ = saved(tmp_path / "l", LOCAL)
    refused(build(GLOBAL, 2), uri, "'netG': 'local'", "GlobalGenerator", "unexpected", uri)
    refused(build({**LOCAL, "ngf": 4}, 2), uri, "'ngf': 2", "LocalEnhancer", "misshapen", uri)
    uri, _ = saved(tmp_path / "r", RESTORMER, "restormer")
    refused(build(LOCAL, 2), uri, "cannot start from a restormer", "'dim': 4", "LocalEnhancer", uri)


def test_other_bands_are_refused(tmp_path):
    uri, _ = saved(tmp_path, GLOBAL)
    torch.manual_seed(2)
    net = models.translator("pix2pixhd").build(GLOBAL, 2, 3)
    refused(net, uri, "model.1.weight is (4, 3, 7, 7), wanted (4, 2, 7, 7)")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda d: d[:100], "no safetensors"), (lambda d: d[:-1], "no safetensors"), (lambda d: b"", "no safetensors"),
        (lambda d: b"\x80\x04N.", "a pickle can run code"), (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "not those that"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_bundles_own_are_named(tmp_path, damage, text):
    uri, _ = saved(tmp_path, GLOBAL)
    where = storage.join(uri, bundle.WEIGHTS)
    storage.put(where, damage(storage.read_bytes(where)))
    refused(build(GLOBAL, 2), uri, text, where)


def test_a_bundle_that_is_not_there_or_torn(tmp_path):
    with pytest.raises(NotFound):
        bundle.start(build(GLOBAL, 2), str(tmp_path / "none"))
    uri, _ = saved(tmp_path, GLOBAL)
    storage.delete(storage.join(uri, bundle.WEIGHTS))
    with pytest.raises(NotFound, match="weights"):
        bundle.start(build(GLOBAL, 2), uri)
    storage.put(storage.join(uri, bundle.FACTS), b"{")
    refused(build(GLOBAL, 2), uri, "not a bundle description", "bundle.json")
