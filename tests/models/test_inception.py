"""The FID network against pytorch-fid's own pipeline, with made-up weights; and how the official file is placed."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch

from sar2eo_dist import storage
from sar2eo_dist.errors import ConfigError, ModelError, NotFound
from sar2eo_dist.models import _torchvision, inception
from sar2eo_dist.models.bundle import load_official
from sar2eo_dist.models.extractors import extractor


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def weights_file(folder, monkeypatch, content, legacy=False):
    """A file of `content`, taken for the official one: the prefix that is looked for is made to be its own."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    monkeypatch.setattr(inception, "SHA256_PREFIX", hashlib.sha256(buffer.getvalue()).hexdigest()[:8])
    path = folder / "given.pth"
    path.write_bytes(buffer.getvalue())
    return path


def test_features_are_those_of_pytorch_fid(hub, tmp_path, monkeypatch):
    _torchvision.ensure()
    from pytorch_fid import inception as theirs

    torch.manual_seed(0)
    state = theirs._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
    plain = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}  # a loader should bear that
    given = weights_file(tmp_path, monkeypatch, plain)
    del state

    ours = extractor("inception", weights=str(given))
    assert (ours.name, ours.score_name, ours.dims) == ("inception", "fid", 2048)
    assert (hub / inception.WEIGHTS).read_bytes() == given.read_bytes()
    assert [p.name for p in hub.iterdir()] == [inception.WEIGHTS]  # no temporary file is left
    flat = load_official(inception.flat(), str(given))
    assert sum(p.numel() for p in flat.parameters()) == 23_850_960
    assert not flat.training
    given.unlink()
    reference = theirs.InceptionV3([0, 1, 2, 3]).eval()  # finds the file in torch hub's folder

    images = np.random.default_rng(0).integers(0, 256, (2, 3, 80, 96), dtype=np.uint8)
    entering = []
    flat.fc.register_forward_pre_hook(lambda m, args: entering.append(args[0].numpy()))
    with torch.no_grad():
        # ToTensor of the official script: uint8 HWC -> float CHW / 255
        x = torch.from_numpy(images).float().div(255)
        *maps, last = [y.numpy() for y in reference(x)]
        side = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
        assert flat(2 * side - 1).shape == (2, 1008)
    wanted = last[:, :, 0, 0]
    found = ours.features(images)
    assert found.shape == (2, 2048)
    assert found.dtype == np.float32
    assert close(found, wanted)
    assert close(entering[0], wanted)
    assert inception.place("") == hub / inception.WEIGHTS  # once placed, no URI is needed

    blocks = ours.maps(images)
    assert [b.shape for b in blocks] == [(2, 64, 73, 73), (2, 192, 35, 35), (2, 768, 17, 17), (2, 2048, 8, 8)]
    assert tuple(b.shape[1] for b in blocks) == ours.map_dims
    assert all(b.dtype == np.float32 and b.flags.c_contiguous for b in blocks)
    assert all(close(b, w) for b, w in zip(blocks, maps, strict=False))
    assert close(blocks[3].mean((2, 3)), wanted)
    pooled = ours.pooled(images[1:])  # batched otherwise, the same bits
    assert np.array_equal(pooled[3], found[1:])
    assert all(close(p, b[1:].mean((2, 3))) for p, b in zip(pooled, blocks, strict=True))
    assert all(len(m._forward_hooks) == 0 for m in ours._network.modules())


def close(found, wanted):
    return found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_flat_network_is_made_without_a_file_and_leaves_pytorch_fid_as_it_was(hub):
    _torchvision.ensure()
    from pytorch_fid import inception as theirs

    before = dict(vars(theirs))
    net = inception.flat()
    assert vars(theirs) == before
    assert not hub.exists()
    assert net.load_state_dict.__func__ is torch.nn.Module.load_state_dict
    assert type(net.Mixed_7c) is theirs.FIDInceptionE_2
    storage.put("memory://official/fid.pth", saved({"a": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"does not fit Inception3: \d+ missing.*1 unexpected: a: memory"):
        load_official(net, "memory://official/fid.pth")
    other = {k: v for k, v in net.state_dict().items() if k.startswith("Conv2d_1a_3x3")} | {
        "fc.weight": torch.zeros(1000, 2)
    }
    storage.put("memory://official/fid.pth", saved(other))
    with pytest.raises(
        ModelError, match=r"looks like an Inception v3 network of 1000 classes \(that for FID has 1008\)"
    ):
        load_official(net, "memory://official/fid.pth")


def saved(tree):
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def test_missing_weights_say_where_to_get_them_and_which_key_to_set(hub, tmp_path):
    with pytest.raises(ConfigError, match=r"releases/download/fid_weights/pt_inception.*set cca.weights") as e:
        extractor("inception")
    assert "6726825d" in str(e.value)
    with pytest.raises(NotFound):
        extractor("inception", weights=str(tmp_path / "nowhere.pth"))
    assert not hub.exists() or not list(hub.iterdir())


def test_wrong_weights_are_refused_and_not_placed(hub, tmp_path, monkeypatch):
    other = tmp_path / "other.pth"
    other.write_bytes(b"not the weights")
    with pytest.raises(ConfigError, match=r"other.pth is not the FID weights: its sha256 is .*expected 6726825d"):
        inception.place(str(other))
    good = weights_file(tmp_path, monkeypatch, {"a": torch.zeros(2)})
    full = hashlib.sha256(good.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="is not the FID weights"):
        inception.place(f"{good}#sha256={'0' * 64}")
    assert not list(hub.iterdir())
    assert inception.place(f"{good}#sha256={full}").read_bytes() == good.read_bytes()
    (hub / inception.WEIGHTS).write_bytes(b"torn")
    with pytest.raises(ConfigError, match="is not the FID weights: its sha256"):
        inception.place("")
    assert inception.place(str(good)).read_bytes() == good.read_bytes()  # a URI repairs it


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_the_file_is_never_run(hub, tmp_path, monkeypatch, legacy):
    bomb = weights_file(tmp_path, monkeypatch, {"a": torch.zeros(2), "b": Bomb()}, legacy)
    with pytest.raises(ConfigError, match="not a plain file of tensors"):
        inception.place(str(bomb))
    assert not list(hub.iterdir())


def test_torchvision_can_be_imported_more_than_once():
    _torchvision.ensure()
    _torchvision.ensure()
    import torchvision

    assert torchvision.models.inception_v3
