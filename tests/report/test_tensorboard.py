"""The event file of a training, read back by a small reader of our own: frames, checksums, tags, steps, values."""

from __future__ import annotations

import copy
import datetime as dt
import io
import struct
from typing import Any

import google_crc32c
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from sar2eo_dist.report.tensorboard import encode

START = dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)


def time(step: int) -> str:
    return (START + dt.timedelta(seconds=2 * step)).isoformat()


def wall(step: int) -> float:
    return START.timestamp() + 2 * step


def png(width: int = 6, height: int = 4, mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (width, height), 77).save(sink, "PNG")
    return sink.getvalue()


def record(until: int = 60) -> dict[str, Any]:
    lines = [
        {"step": s, "time": time(s), "samples_per_s": 12.5, "lr": 2e-4, "replaced": 0, "G_L1": 3.0 - s / 100}
        for s in range(20, until + 1, 20)
    ]
    return {
        "role": "translate", "started": START.isoformat(), "history": lines,
        "validations": [{"step": s, "mae": s / 1000, "psnr": 20.5} for s in range(30, until + 1, 30)],
        "baselines": {"baseline_mean": {"mae": 0.07, "rmse": 0.1}, "baseline_zero": {"mae": 0.15}},
        "events": [{"step": 41, "event": "non_finite", "text": "G_L1 at step 41"}],
    }  # fmt: skip


def unmasked(stored: bytes) -> int:
    """The CRC that was masked: the mask undone, as the format describes it."""
    rotated = (struct.unpack("<I", stored)[0] - 0xA282EAD8) % 2**32
    return (rotated >> 17 | rotated << 15) % 2**32


def read(data: bytes) -> list[Event]:
    events, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        assert unmasked(data[at + 8 : at + 12]) == google_crc32c.value(data[at : at + 8])
        message = data[at + 12 : at + 12 + size]
        assert len(message) == size
        assert unmasked(data[at + 12 + size : at + 16 + size]) == google_crc32c.value(message)
        events.append(Event.FromString(message))
        at += 16 + size
    return events


def scalars(events: list[Event]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for e in events:
        for v in e.summary.value:
            if v.WhichOneof("value") == "simple_value":
                assert e.step not in found.setdefault(v.tag, {})
                found[v.tag][e.step] = v.simple_value
    return found


def test_the_first_event_names_the_format() -> None:
    first, *rest = read(encode(record(), {}))
    assert first.file_version == "brain.Event:2"
    assert first.wall_time == wall(0)
    assert not any(e.file_version for e in rest)


def test_frames_are_those_of_another_writer() -> None:
    data = encode(record(), {})
    (size,) = struct.unpack_from("<Q", data)
    assert struct.unpack_from("<I", data, 8)[0] == masked_crc32c(data[:8])
    assert struct.unpack_from("<I", data, 12 + size)[0] == masked_crc32c(data[12 : 12 + size])


def test_scalars() -> None:
    found = scalars(read(encode(record(), {})))
    flat = dict.fromkeys((30, 60), 0.07)
    expected = {
        "train/samples_per_s": dict.fromkeys((20, 40, 60), 12.5),
        "train/lr": dict.fromkeys((20, 40, 60), 0.0002),
        "train/replaced": dict.fromkeys((20, 40, 60), 0.0),
        "train/G_L1": {20: 2.8, 40: 2.6, 60: 2.4},
        "validation/mae": {30: 0.03, 60: 0.06},
        "validation/psnr": {30: 20.5, 60: 20.5},
        "validation/mae_baseline_mean": flat,
        "validation/mae_baseline_zero": dict.fromkeys(flat, 0.15),
    }
    assert found.keys() == expected.keys()
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-6), tag


def test_order_and_wall_times() -> None:
    """Steps ascend; a validation between two lines has the time of the nearer, the earlier of two as near."""
    r = record()
    r["validations"] = [{"step": s, "mae": 0.1} for s in (1, 30, 31, 60, 999)]
    events = read(encode(r, {60: png(), 20: png()}))[1:]
    first = [(e.step, e.summary.value[0].tag.partition("/")[0], e.wall_time) for e in events]
    assert first == [
        (1, "validation", wall(20)), (20, "train", wall(20)), (20, "samples", wall(20)), (30, "validation", wall(20)),
        (31, "validation", wall(40)), (40, "train", wall(40)), (41, "events", wall(40)), (60, "train", wall(60)),
        (60, "validation", wall(60)), (60, "samples", wall(60)), (999, "validation", wall(60)),
    ]  # fmt: skip


def test_events_are_text() -> None:
    r = record()
    r["events"] += [{"step": 41, "event": "preempted", "text": "s3://me:word@host/k?sig=1 <b>ü</b>"}]
    values = [v for e in read(encode(r, {})) for v in e.summary.value if v.tag.startswith("events")]
    assert [v.tensor.string_val[0].decode() for v in values] == [
        "non_finite: G_L1 at step 41", "preempted: s3://***@host/k?*** <b>ü</b>",
    ]  # fmt: skip
    assert {v.metadata.plugin_data.plugin_name for v in values} == {"text"}


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4), ("L", 1)])
def test_images_keep_their_bytes(mode: str, channels: int) -> None:
    grids = {20: png(6, 4, mode), 40: b"\x89PNG torn", 60: b""}
    events = [e for e in read(encode(record(), grids)) if any(v.tag == "samples" for v in e.summary.value)]
    ((event, value),) = [(e, v) for e in events for v in e.summary.value]
    assert event.step == 20
    assert value.image.encoded_image_string == grids[20]
    assert (value.image.width, value.image.height, value.image.colorspace) == (6, 4, channels)
    assert np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string))).shape[:2] == (4, 6)


def test_what_is_no_finite_number_is_left_out() -> None:
    r = record(20)
    r["history"][0] |= {
        "G_L1": None,
        "lr": float("nan"),
        "D": float("inf"),
        "note": "x",
        "flag": True,
        "samples_per_s": 3,
    }
    r["validations"] = [{"step": 20, "mae": None, "psnr": None}]
    r["baselines"] = {"baseline_mean": {"mae": None}}
    assert scalars(read(encode(r, {}))) == {"train/samples_per_s": {20: 3.0}, "train/replaced": {20: 0.0}}


def test_a_longer_record_begins_with_the_shorter_one() -> None:
    grids = {s: png(s, 4) for s in (30, 60, 90, 120)}
    long = record(120)
    long["events"].append({"step": 121, "event": "resumed", "text": "attempt 2"})
    data = encode(long, grids)
    assert data == encode(copy.deepcopy(long), dict(reversed(grids.items())))
    short = encode(record(60), {s: grids[s] for s in (30, 60)})
    assert data.startswith(short)
    assert len(data) > len(short)


def test_a_record_that_has_only_begun() -> None:
    r = {"history": [], "validations": [], "events": [{"step": 0, "event": "started", "text": None}], "started": ""}
    first, event = read(encode(r, {}))
    assert (first.wall_time, event.wall_time, event.step) == (0.0, 0.0, 0)
    assert event.summary.value[0].tensor.string_val[0] == b"started: "
    r["started"] = START.replace(tzinfo=None).isoformat()  # no zone: UTC
    assert {e.wall_time for e in read(encode(r, {}))} == {wall(0)}
