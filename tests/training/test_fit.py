"""A training that is interrupted and resumed equals an undisturbed one, bit by bit; what goes wrong is told."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from state_trees import same

from sar2eo_dist import models
from sar2eo_dist.errors import ModelError, NonFinite
from sar2eo_dist.training import checkpoint
from sar2eo_dist.training.fit import Average, Course, Hooks, Record, fit, restore, seed, state, watched
from sar2eo_dist.training.loader import Loader
from sar2eo_dist.training.phases import phases

FIXED = SimpleNamespace(sar="fixed", eo="fixed", third="difference_db", median=0)
TINY = {
    "pix2pixhd": {"netG": "local", "ngf": 4, "n_downsampling": 1, "n_blocks": 1, "ndf": 4, "lambda_l1": 1.0,
                  "niter_fix_global": 0.5},
    "restormer": {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0, "heads": [1, 1, 2, 2]},
}  # fmt: skip
PLAN = phases(6, [1, 1], [12, 16], [3, 2])


def read(i):
    rng = np.random.default_rng(i)
    sar = rng.integers(-2500, -500, (2, 20, 20)).astype(np.int16)
    return sar, rng.integers(0, 3000, (3, 20, 20)).astype(np.uint16), rng.random((20, 20)) > 0.1


def course(plan=PLAN, **more):
    def make(phase, origin):
        return Loader(read, range(5), 2, phase.batch, phase.crop, FIXED, 5, origin=origin)

    return Course(plan, make, 5, 5, **more)


class Training:
    """A training as a new process has it; `urgent` steps want a checkpoint at once."""

    def __init__(self, name, junk=0, urgent=(), **more):
        torch.manual_seed(junk)
        torch.rand(junk)
        seed(5, -1)
        t = models.translator(name)
        self.net = t.build(TINY[name], 3, 3)
        self.average = Average(self.net, 0.9)
        self.trainer = t.Trainer(self.net, TINY[name], 1e-3, PLAN[-1].stop)
        self.trainer.accelerate(micro=2)
        self.record, self.saved, self.urgent = Record(), {}, set(urgent)
        self.course = course(log_every=2, checkpoint_every=4, **more)

    def run(self):
        hooks = Hooks(lambda: None, lambda line: None, self.pause, lambda: self.record.step in self.urgent)
        fit(self.trainer, self.course, self.record, hooks, self.average, self.net)
        return self

    def pause(self, regular):
        assert regular == (self.record.step in (4, 6))
        self.saved[self.record.step] = checkpoint.encode(state(self.trainer, self.average, self.record))

    def curve(self):
        timed = {"samples_per_s", "busy", "wait"}
        return [{k: v for k, v in line.items() if k not in timed} for line in self.record.history]


@pytest.mark.parametrize("name", sorted(TINY))
def test_resumed_after_any_step_equals_undisturbed(name):
    """Through a change of phase, accumulation, averaged weights, and the switch to all parameters."""
    whole = Training(name, urgent=(1, 2, 3, 5)).run()
    assert sorted(whole.saved) == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in whole.curve()] == [2, 4, 6]
    for step in (1, 2, 3, 5):
        part = Training(name, junk=9)
        part.record = restore(checkpoint.decode(whole.saved[step], "x"), part.trainer, part.average, "x")
        assert part.record.step == step
        part.run()
        assert part.curve() == whole.curve()
        assert same(part.trainer.state_dict(), whole.trainer.state_dict())
        assert same(part.average.model.state_dict(), whole.average.model.state_dict())
    assert not same(whole.net.state_dict(), Training(name).net.state_dict())
    assert not same(whole.net.state_dict(), whole.average.net.state_dict())


def test_the_average_is_that_of_the_formula():
    made = Training("restormer")
    want = {k: v.clone() for k, v in made.net.state_dict().items()}
    step = made.trainer.step

    def follow(*args):
        losses = step(*args)
        for k, v in made.net.state_dict().items():
            # the first update takes the weights as they are, as torch.optim.swa_utils has it
            want[k] = 0.9 * want[k] + 0.1 * v if made.record.step > 1 else v.clone()
        return losses

    made.trainer.step = follow
    made.run()
    for k, v in made.average.net.state_dict().items():
        assert torch.allclose(v, want[k], rtol=1e-5, atol=1e-7), k


class Fake:
    """A trainer of one number."""

    def __init__(self, bad=(), sick=()):
        self.networks, self.bad, self.sick, self.drawn = {"G": torch.nn.Linear(1, 1)}, set(bad), set(sick), []

    def learning_rate(self, index):
        return 0.1

    def symptoms(self, means):
        return {"sickness": f"x is {means['x']:g}"} if means["x"] in self.sick else {}

    def step(self, index, source, target, valid, weight=1.0):
        assert weight == 1.0
        self.drawn.append(float(torch.rand(())))
        if index in self.bad:
            raise NonFinite(f"step {index}: x = nan")
        return {"x": float(index)}


def go(trainer, steps=7, record=None, **more):
    lines, ends = [], []
    record = record or Record()
    made = course(phases(steps, [1], [16], [2]), **{"log_every": 3, "checkpoint_every": 5} | more)
    fit(trainer, made, record, Hooks(lambda: None, lines.append, ends.append, lambda: False))
    return record, lines, ends


def test_logged_losses_are_means_since_the_last_log():
    trainer = Fake()
    record, lines, ends = go(trainer)
    assert {line["step"]: line["x"] for line in lines} == {3: 1.0, 6: 4.0, 7: 6.0}
    assert ends == [True, True]
    assert len(set(trainer.drawn)) == 7  # the generator is a function of (seed, step)
    assert all(0 <= line["wait"] <= 1 and 0 <= line["busy"] <= 1 and line["samples_per_s"] > 0 for line in lines)
    assert all(line["lr"] == 0.1 and line["skipped"] == 0 for line in lines)
    assert record.seconds > 0


def test_steps_that_are_not_finite_are_skipped_counted_and_bounded():
    record, lines, _ = go(Fake(bad=(1, 4)), max_skipped=2)
    assert (record.skipped, record.step) == (2, 7)
    assert [line.get("x") for line in lines] == [1.0, 4.0, 6.0]
    assert [e["event"] for e in record.events] == ["non_finite"] * 2
    assert record.events[0]["step"] == 2
    samples = ", ".join(map(str, course(phases(7, [1], [16], [2])).make(PLAN[1], None).samples(1)))
    assert record.events[0]["text"] == f"step 1: x = nan; the step was skipped; its samples in the store: {samples}"
    with pytest.raises(
        ModelError, match=r"2 steps were skipped, train.max_skipped allows 1.*lower lr.*step 4: x = nan"
    ):
        go(Fake(bad=(1, 4)), max_skipped=1)
    _, lines, _ = go(Fake(bad=(0, 1, 2)))
    assert "x" not in lines[0]


def test_a_symptom_is_an_event_after_three_lines_in_a_row_and_told_once():
    record, _, _ = go(Fake(sick=range(2, 30)), steps=10, log_every=1)  # x = 2 .. 9
    assert record.events == [{"step": 5, "event": "sickness", "text": "x is 4"}]
    record, _, _ = go(Fake(sick=(1, 2, 4, 5)), steps=10, log_every=1)
    assert record.events == []


def valued(*maes, peaks=()):
    record = Record()
    for i, mae in enumerate(maes):
        record.step = i
        record.validations.append({"step": i, "mae": mae, "peak": dict(enumerate(peaks)).get(i, 5.0)})
        watched(record)
    return record


def test_overfitting_is_told_once_when_five_validations_are_worse_than_the_best():
    record = valued(0.5, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    assert [(e["step"], e["event"]) for e in record.events] == [(6, "overfit")]
    assert "best at step 1 (0.1000) and is 0.2000 now" in record.events[0]["text"]
    assert valued(0.5, 0.1, 0.2, 0.2, 0.101, 0.2, 0.2, 0.2).events == []
    assert valued(*np.linspace(0.5, 0.1, 20)).events == []
    assert valued(None, None).best() is None


def test_a_blob_is_told():
    record = valued(*[0.1] * 5, peaks=[5, 6, 5, 7, 40])
    assert [(e["step"], e["event"]) for e in record.events] == [(4, "blob")]
    assert valued(*[0.1] * 5, peaks=[5, 6, 5, 7, 12]).events == []
    assert valued(*[0.1] * 5, peaks=[1, 1, 1, 1, 9]).events == []


def test_the_best_validation_is_the_first_of_equals_of_those_asked_for():
    record = valued(0.5, 0.1, 0.1, None)
    assert record.best()["step"] == 1
    assert record.best({0, 2, 3})["step"] == 2
    assert record.best({3}) is None


def test_a_record_survives_json():
    record = Record(3, [{"x": 0.1}], replaced={7: "gone"}, started="now")
    assert Record.of(json.loads(json.dumps(state(Fake2(), None, record)["record"]))) == record


class Fake2:
    def state_dict(self):
        return {}


def test_the_state_of_another_training_is_named():
    tree = state(Training("restormer").trainer, None, Record())
    with pytest.raises(ModelError, match=r"another trainer.*here"):
        restore(tree, Training("pix2pixhd").trainer, None, "here")
    made = Training("restormer")
    with pytest.raises(ModelError, match=r"another training \(KeyError: 'average'\): here"):
        restore(tree, made.trainer, made.average, "here")
    with pytest.raises(ModelError, match=r"another training.*here"):
        restore(
            {"step": 1, "trainer": tree["trainer"], "record": {"replaced": {}, "more": 1}}, made.trainer, None, "here"
        )
