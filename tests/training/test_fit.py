"""A training that is interrupted and resumed equals an undisturbed one, bit by bit."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sar2eo_dist import models
from sar2eo_dist.errors import ModelError
from sar2eo_dist.training import checkpoint
from sar2eo_dist.training.fit import fit, seed
from sar2eo_dist.training.loader import Loader

FIXED = SimpleNamespace(sar="fixed", eo="fixed", third="difference_db", median=0)
TINY = {
    "pix2pixhd": {"ngf": 4, "n_downsampling": 1, "n_blocks": 1, "ndf": 4, "lambda_l1": 1.0},
    "restormer": {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0, "heads": [1, 1, 2, 2]},
}
STEPS = 6


def read(i):
    rng = np.random.default_rng(i)
    sar = rng.integers(-2500, -500, (2, 20, 20)).astype(np.int16)
    return sar, rng.integers(0, 3000, (3, 20, 20)).astype(np.uint16), rng.random((20, 20)) > 0.1


def fresh(name, junk=0):
    """A trainer and a loader as a new process has them."""
    torch.manual_seed(junk)
    torch.rand(junk)
    seed(5, -1)
    t = models.translator(name)
    trainer = t.Trainer(t.build(TINY[name], 3, 3), TINY[name], 1e-3, STEPS)
    return trainer, Loader(read, range(5), 2, 2, 16, FIXED, 5)


def flat(tree, name=""):
    """All leaves of a state by path."""
    if isinstance(tree, dict):
        return {k: v for key in tree for k, v in flat(tree[key], f"{name}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, e in enumerate(tree) for k, v in flat(e, f"{name}/{i}").items()}
    return {name: tree}


def same(a, b):
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("name", sorted(TINY))
def test_resumed_equals_undisturbed(name, tmp_path):
    logs, saved = {}, []
    trainer, loader = fresh(name)

    def keep(done):
        saved.append(done)
        checkpoint.save(str(tmp_path / str(done)), trainer, done, {"losses": logs[done]})

    fit(trainer, loader, 0, STEPS, 2, logs.__setitem__, 4, keep)
    assert sorted(logs) == [2, 4, 6]
    assert saved == [4, 6]
    assert all(np.isfinite(v) for losses in logs.values() for v in losses.values())

    other, loader = fresh(name, junk=9)
    again = {}
    start = checkpoint.load(str(tmp_path / "4"), other)
    assert start == 4 == checkpoint.read_meta(str(tmp_path / "4"))["step"]
    assert checkpoint.read_meta(str(tmp_path / "4"))["losses"] == logs[4]
    fit(other, loader, start, STEPS, 2, again.__setitem__, 100, lambda done: None)
    assert again == {6: logs[6]}
    assert same(trainer.state_dict(), other.state_dict())
    assert not same(trainer.state_dict()["networks"], fresh(name)[0].state_dict()["networks"])


def test_logged_losses_are_means_since_the_last_log():
    class Counting:
        def __init__(self):
            self.networks = {"G": torch.nn.Linear(1, 1)}

        def step(self, index, source, target, valid):
            return {"x": float(index), "r": float(torch.rand(()))}

    logs, ends = {}, []
    loader = Loader(read, range(5), 2, 2, 16, FIXED, 5)
    fit(Counting(), loader, 0, 7, 3, logs.__setitem__, 5, ends.append)
    assert {k: v["x"] for k, v in logs.items()} == {3: 1.0, 6: 4.0, 7: 6.0}
    assert ends == [5, 7]
    part = {}
    fit(Counting(), loader, 3, 7, 3, part.__setitem__, 5, ends.append)
    assert part == {6: logs[6], 7: logs[7]}  # the generator is a function of (seed, step)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_broken_checkpoints_are_named(tmp_path):
    trainer, _ = fresh("restormer")
    with pytest.raises(ModelError, match=r"no readable checkpoint .*state.pt"):
        checkpoint.load(str(tmp_path), trainer)
    with pytest.raises(ModelError, match=r"no readable checkpoint .*meta.json"):
        checkpoint.read_meta(str(tmp_path))
    checkpoint.save(str(tmp_path), trainer, 3, {})
    path = tmp_path / checkpoint.STATE
    assert sorted(p.name for p in tmp_path.iterdir()) == ["meta.json", "state.pt"]
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match=r"state.pt"):
            checkpoint.load(str(tmp_path), trainer)
    for content in ({"step": 1, "trainer": Bomb()}, Bomb()):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        path.write_bytes(buffer.getvalue())
        with pytest.raises(ModelError, match="not a plain state of tensors, refused"):
            checkpoint.load(str(tmp_path), trainer)
    path.write_bytes(whole)
    with pytest.raises(ModelError, match=r"another trainer.*state.pt"):
        checkpoint.load(str(tmp_path), fresh("pix2pixhd")[0])
    assert checkpoint.load(str(tmp_path), trainer) == 3
