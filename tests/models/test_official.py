"""Official checkpoints: every way in which they were saved loads to the same weights; everything else has a name."""

from __future__ import annotations

import argparse
import io
import math
import os
import pickle
import pickletools

import pytest
import torch

from sar2eo_dist import storage
from sar2eo_dist.errors import ModelError, NotFound
from sar2eo_dist.models import official
from sar2eo_dist.models.bundle import load_official
from sar2eo_dist.models.pix2pixhd import GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator
from sar2eo_dist.models.restormer import Restormer


def generator(**other):
    return GlobalGenerator(**{"input_nc": 3, "output_nc": 3, "ngf": 4, "n_downsampling": 1, "n_blocks": 1} | other)


def discriminator(**other):
    return MultiscaleDiscriminator(**{"input_nc": 6, "ndf": 4, "n_layers": 2, "num_D": 2} | other)


def restormer(**other):
    small = {"dim": 8, "num_blocks": (1, 2, 1, 1), "num_refinement_blocks": 1}
    return Restormer(**small | other)


def drawn(net, seed=7):
    """The network with weights of its own, none of them at its start value."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.tensor(5))
    return net


def written(tree, legacy=False):
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.fixture
def put(tmp_path):
    def fn(content, legacy=False):
        path = tmp_path / "40_net_G.pth"
        path.write_bytes(content if isinstance(content, bytes) else written(content, legacy))
        return str(path)

    return fn


def same(a, b):
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("make", [generator, discriminator, lambda: generator(norm="batch"), restormer])
def test_both_formats_load_to_the_same_weights(put, make, legacy):
    wanted = drawn(make())
    net = make()
    assert load_official(net, put(wanted.state_dict(), legacy)) is net
    assert same(net, wanted)


def test_any_uri_and_none():
    wanted = drawn(generator())
    storage.put("memory://official/latest_net_G.pth", written(wanted.state_dict()))
    assert same(load_official(generator(), "memory://official/latest_net_G.pth"), wanted)
    with pytest.raises(NotFound):
        load_official(generator(), "memory://official/none.pth")


def as_python_2(data):
    """A file of the older format as Python 2 wrote it: names as byte strings."""
    out, rest = b"", io.BytesIO(data)
    for _ in range(5):  # magic number, protocol, system, state dict, storages
        begin = rest.tell()
        ops = [(op.name, arg, at) for op, arg, at in pickletools.genops(rest)]
        ends = [*(at for _, _, at in ops[1:]), rest.tell()]
        for (name, arg, at), end in zip(ops, ends, strict=True):
            text = name == "BINUNICODE"
            out += b"U" + bytes([len(arg)]) + arg.encode() if text else data[at:end]
        assert ops[0][2] == begin
    return out + data[rest.tell() :]


def test_a_file_of_2018(put):
    """Python 2, several GPUs, idle running statistics of instance norms, and batch norms without a counter."""
    wanted = drawn(generator())
    state = {}
    for k, v in wanted.state_dict().items():
        state[f"module.{k}"] = v
        if k == "model.1.bias":
            state |= {"module.model.2.running_mean": torch.zeros(4), "module.model.2.running_var": torch.ones(4)}
    old = as_python_2(written(state, legacy=True))
    assert b"U" + bytes([21]) + b"module.model.1.weight" in old
    assert same(load_official(generator(), put(old)), wanted)

    batch = drawn(generator(norm="batch"))
    state = {k: v for k, v in batch.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(batch.state_dict())
    found = load_official(drawn(generator(norm="batch"), 3), put(state))
    for k, v in found.state_dict().items():
        assert torch.equal(v, state.get(k, torch.tensor(0)))


def test_running_statistics_that_were_used_are_not_passed_over(put):
    with pytest.raises(
        ModelError, match=r"unexpected: model.2.bias.*model.2.running_mean.*norm='batch'\): build the network to match"
    ):
        load_official(generator(), put(generator(norm="batch").state_dict()))
    state = generator().state_dict() | {"model.99.running_mean": torch.zeros(4)}
    with pytest.raises(ModelError, match="1 unexpected: model.99.running_mean"):
        load_official(generator(), put(state))


def test_which_entry_is_taken(put):
    plain, ema = drawn(restormer(), 1), drawn(restormer(), 2)
    both = {"params": plain.state_dict(), "params_ema": ema.state_dict()}
    assert same(load_official(restormer(), put(both)), ema)
    assert same(load_official(restormer(), put(both), key="params"), plain)
    assert same(load_official(restormer(), put({"params": plain.state_dict()})), plain)
    other = {"epoch": 3, "state_dict": plain.state_dict()}
    assert same(load_official(restormer(), put(other), key="state_dict"), plain)
    with pytest.raises(ModelError, match=r"2 of 2 entries are no plain tensors: epoch, state_dict.*by key=.*net_G.pth"):
        load_official(restormer(), put(other))
    with pytest.raises(ModelError, match="no state dict under key 'params'; its entries: epoch, state_dict"):
        load_official(restormer(), put(other), key="params")


def test_values_take_the_dtype_of_the_network(put):
    state = {k: v.half() for k, v in drawn(generator()).state_dict().items()}
    net = load_official(generator(), put(state))
    assert all(v.dtype == torch.float32 and torch.equal(v, state[k].float()) for k, v in net.state_dict().items())
    state["model.4.bias"] = torch.full((8,), 1e5)
    with pytest.raises(ModelError, match=r"1 weights are NaN or infinite as torch.float16: model.4.bias: not loaded"):
        load_official(generator().half(), put(state))


def test_numbers_that_are_no_weights(put):
    for bad, words in (
        (torch.full((8,), math.nan), "1 weights are NaN or infinite as torch.float32: model.4.bias"),
        (torch.full((8,), -math.inf), "1 weights are NaN or infinite"),
        (torch.ones(8, dtype=torch.uint8), r"1 weights are of another kind of number: model.4.bias \(torch.uint8\)"),
        (torch.ones(8, dtype=torch.complex64), "another kind of number"),
        (torch.ones(8).to_sparse(), "1 of 12 entries are no plain tensors: model.4.bias"),
    ):
        net = drawn(generator())
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(ModelError, match=words):
            load_official(net, put(generator().state_dict() | {"model.4.bias": bad}))
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_refused_and_never_run(put, tmp_path):
    boom = tmp_path / "boom"
    state = generator().state_dict()
    plain = [pickle.dumps({**state, "x": Bomb(boom)}, protocol=p) for p in (0, 2, 5)]
    pickle.loads(pickle.dumps(Bomb(boom))).close()  # the bomb works
    assert boom.exists()
    boom.unlink()
    for data in (written(state | {"x": Bomb(boom)}), written(state | {"x": Bomb(boom)}, legacy=True), *plain):
        with pytest.raises(ModelError) as e:
            load_official(generator(), put(data))
        assert not boom.exists()
        assert "weights_only" not in str(e.value)  # torch's own text says how to run it
        assert str(e.value).endswith("40_net_G.pth")
        if data is not plain[0]:  # a text without a mark: no checkpoint
            assert "can run code when it is read: refused, nothing was run" in str(e.value)
    for tree, name in (({"opt": argparse.Namespace(a=1)}, "argparse.Namespace"), (generator(), "GlobalGenerator")):
        with pytest.raises(
            ModelError, match=rf"a pickle of more than tensors \(\S*{name}\).*torch.save\(net.state_dict"
        ):
            load_official(generator(), put(tree))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_and_foreign_files(put, legacy):
    data = written(generator().state_dict(), legacy)
    for part in (
        b"",
        data[:1],
        data[:5],
        data[:300],
        data[: len(data) // 2],
        data[:-1],
        b"<!DOCTYPE html>",
        os.urandom(9),
    ):
        with pytest.raises(
            ModelError, match=r"(truncated, or no checkpoint \(\d+ bytes|a pickle of more).*40_net_G.pth"
        ):
            load_official(generator(), put(part))
    with pytest.raises(ModelError, match=r"truncated, or no checkpoint \(15 bytes that begin b'<!DOCTYP'"):
        load_official(generator(), put(b"<!DOCTYPE html>"))


def test_what_is_no_state_dict(put):
    for tree, words in (
        ([torch.ones(1)], "holds a list, no state dict"),
        (torch.ones(1), "holds a Tensor, no state dict"),
        ({}, "holds an empty state dict"),
        ({"params": {}}, "holds an empty state dict"),
        ({"a": 1, "b": torch.ones(1)}, "1 of 2 entries are no plain tensors: a"),
        ({1: torch.ones(1)}, "1 of 1 entries are no plain tensors: 1"),
    ):
        with pytest.raises(ModelError, match=rf"{words}.*40_net_G.pth"):
            load_official(generator(), put(tree))


def test_another_network_is_named_with_its_options(put):
    with pytest.raises(ModelError) as e:
        load_official(generator(), put(generator(n_blocks=2, ngf=5).state_dict()))
    text = str(e.value)
    for words in (
        "fit GlobalGenerator: 4 missing: model.12.bias, model.12.weight, model.8.bias, model.8.weight; ", "unexpected: ",
        "misshapen: ", "model.1.weight is (5, 3, 7, 7), wanted (4, 3, 7, 7)",
        "GlobalGenerator(input_nc=3, output_nc=3, ngf=5, n_downsampling=1, n_blocks=2, norm='instance'): "
        "build the network to match, or give its own file",
    ):  # fmt: skip
        assert words in text, text
    with pytest.raises(ModelError, match=r"looks like a pix2pixHD MultiscaleDiscriminator\(input_nc=6"):
        load_official(generator(), put(discriminator().state_dict()))
    alone = {"a": torch.ones(1), "model.1.weight": torch.ones(1)}  # one official key tells nothing
    with pytest.raises(
        ModelError, match=r"11 missing: .*; 1 unexpected: a; 1 misshapen: model.1.weight is \(1,\)"
    ) as e:
        load_official(generator(), put(alone))
    assert "looks like" not in str(e.value)


OPTIONS = [
    (GlobalGenerator, "a pix2pixHD GlobalGenerator", {}),
    (GlobalGenerator, "a pix2pixHD GlobalGenerator", {"input_nc": 4, "ngf": 32, "n_downsampling": 3, "norm": "batch"}),
    (LocalEnhancer, "a pix2pixHD LocalEnhancer", {}),
    (LocalEnhancer, "a pix2pixHD LocalEnhancer",
     {"output_nc": 4, "ngf": 16, "n_downsample_global": 2, "n_blocks_global": 5, "n_local_enhancers": 2, "n_blocks_local": 1}),
    (MultiscaleDiscriminator, "a pix2pixHD MultiscaleDiscriminator", {}),
    (MultiscaleDiscriminator, "a pix2pixHD MultiscaleDiscriminator",
     {"input_nc": 39, "ndf": 32, "n_layers": 4, "num_D": 3, "norm": "batch"}),
    (MultiscaleDiscriminator, "a pix2pixHD MultiscaleDiscriminator", {"n_layers": 2, "get_interm_feat": False}),
    (Restormer, "a Restormer", {}),
    (Restormer, "a Restormer", {"inp_channels": 6, "dual_pixel_task": True, "LayerNorm_type": "BiasFree"}),
    (Restormer, "a Restormer",
     {"dim": 24, "num_blocks": [2, 3, 3, 4], "heads": [1, 1, 2, 4], "ffn_expansion_factor": 2.0, "bias": True}),
]  # fmt: skip
DEFAULTS = {
    GlobalGenerator: {"input_nc": 3, "output_nc": 3, "ngf": 64, "n_downsampling": 4, "n_blocks": 9, "norm": "instance"},
    LocalEnhancer: {"input_nc": 3, "output_nc": 3, "ngf": 32, "n_downsample_global": 4, "n_blocks_global": 9,
                    "n_local_enhancers": 1, "n_blocks_local": 3, "norm": "instance"},
    MultiscaleDiscriminator: {"input_nc": 6, "ndf": 64, "n_layers": 3, "norm": "instance", "num_D": 2,
                              "get_interm_feat": True},
    Restormer: {"inp_channels": 3, "out_channels": 3, "dim": 48, "num_blocks": [4, 6, 6, 8], "num_refinement_blocks": 4,
                "heads": [1, 2, 4, 8], "ffn_expansion_factor": 2.66, "bias": False, "LayerNorm_type": "WithBias",
                "dual_pixel_task": False},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "options"), OPTIONS)
def test_options_are_told_from_keys_and_shapes(kind, name, options, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "normal_", lambda *a: None)  # on the meta device it imports half of torch
    options = DEFAULTS[kind] | options
    with torch.device("meta"):
        state = kind(**options).state_dict()
    assert official.describe(state) == f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def test_a_local_enhancer_by_the_published_layout_alone():
    shapes = {
        "model.1": (64, 3, 7, 7), "model.4": (128, 64, 3, 3), "model.7.conv_block.1": (128, 128, 3, 3),
        "model.7.conv_block.5": (128, 128, 3, 3), "model.8": (128, 64, 3, 3), "model1_1.1": (32, 3, 7, 7),
        "model1_1.4": (64, 32, 3, 3), "model1_2.0.conv_block.1": (64, 64, 3, 3), "model1_2.1": (64, 32, 3, 3),
        "model1_2.5": (4, 32, 7, 7),
    }  # fmt: skip
    assert official.describe({f"{k}.weight": torch.empty(s, device="meta") for k, s in shapes.items()}) == (
        "a pix2pixHD LocalEnhancer(input_nc=3, output_nc=4, ngf=32, n_downsample_global=1, n_blocks_global=1, "
        "n_local_enhancers=1, n_blocks_local=1, norm='instance')"
    )
    assert official.describe({}) == official.describe({"patch_embed.proj.weight": torch.ones(())}) == ""


def test_a_global_net_passes_its_pretraining_to_a_local_enhancer(put):
    sizes = {"n_downsample_global": 2, "n_blocks_global": 2, "n_blocks_local": 1}
    coarse = drawn(generator(ngf=8, n_downsampling=2, n_blocks=2))
    net = drawn(LocalEnhancer(3, 3, 4, **sizes), 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    path = put(coarse.state_dict())
    with pytest.raises(ModelError, match="does not fit LocalEnhancer"):
        load_official(net, path)
    load_official(net, path, prefix="model.")
    passed = 0
    for k, v in net.state_dict().items():
        passed += k.startswith("model.")
        assert torch.equal(v, coarse.state_dict()[k] if k.startswith("model.") else before[k]), k
    assert passed == len(coarse.state_dict()) - 2  # all but the output conv, weight and bias

    with pytest.raises(ModelError, match=r"unexpected.*GlobalGenerator\(.*n_blocks=3"):
        load_official(net, put(generator(ngf=8, n_downsampling=2, n_blocks=3).state_dict()), prefix="model.")
    with pytest.raises(ModelError, match=r"misshapen: model.1.bias is \(4,\), wanted \(8,\)"):
        load_official(net, put(generator(ngf=4, n_downsampling=2, n_blocks=2).state_dict()), prefix="model.")
    with pytest.raises(ModelError, match=r"LocalEnhancer has no weights below 'modle.', only: model"):
        load_official(net, path, prefix="modle.")
    with pytest.raises(ModelError, match="missing: model.1.bias"):
        load_official(net, put(discriminator().state_dict()), prefix="model.")


def test_a_prefix_that_cuts_blocks_short_is_no_fit(put):
    state = restormer(num_blocks=(1, 4, 1, 1)).state_dict()
    with pytest.raises(ModelError, match=r"unexpected: encoder_level2.2"):
        load_official(restormer(), put(state), prefix="encoder_level2.")
