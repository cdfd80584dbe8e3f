"""A training's record as a TensorBoard event file, so that it can be watched beside others in the viewer people know.

The messages are tensorboardX's; the framing (TFRecord: length, masked CRC-32C, message, masked CRC-32C) is written here,
because its own writer stamps the file with the clock and the host, and takes its CRC byte by byte in Python. tensorboardX
loads torch where that is installed, so nothing else in this room imports this module.
"""

from __future__ import annotations

import bisect
import datetime as dt
import io
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
from PIL import Image
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboardX.summary import text as text_summary  # type: ignore[import-untyped]

from sar2eo_dist.report.load import as_number
from sar2eo_dist.report.text import redact

VERSION = "brain.Event:2"  # what TensorBoard wants to read in a file's first event
_MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # Summary.Image.colorspace


def encode(record: Mapping[str, Any], grids: Mapping[int, bytes]) -> bytes:
    """One event file (what goes into `events.out.tfevents...`) of a training.

    record: train/<role>/record.json. Its history becomes the scalars train/<name>, its validations validation/<name>,
    with validation/mae_<baseline> of every baseline beside them, its events the texts of tag "events".
    grids: PNG bytes by step, the images of tag "samples"; one that is no PNG is left out.
    Values that are null or not finite are left out, numbers are stored as float32.

    In order of the step, then history, validation, events, grid. Each has the wall time (seconds since 1970) of the
    history line of the nearest step, the earlier of two as near; the file's first event that of `started`. The same
    record gives the same bytes, and one that goes on begins with those of before.
    Raises KeyError or TypeError for a record that lacks a list of lines or whose lines lack a step.
    """
    clock = _Clock(record)
    baselines = {f"mae_{k}": v.get("mae") for k, v in (record.get("baselines") or {}).items()}
    dated: list[tuple[int, int, Any]] = []
    for line in record["history"]:
        rest = {k: v for k, v in line.items() if k not in ("step", "time")}
        dated.append((int(line["step"]), 0, _scalars("train", rest)))
    for line in record["validations"]:
        rest = {k: v for k, v in line.items() if k != "step"} | baselines
        dated.append((int(line["step"]), 1, _scalars("validation", rest)))
    for event in record["events"]:
        words = redact(f"{event['event']}: {event.get('text') or ''}")
        dated.append((int(event["step"]), 2, text_summary("events", words)))
    for step, png in grids.items():
        dated.append((step, 3, _image(png)))
    dated.sort(key=lambda d: d[:2])
    events = [Event(wall_time=clock.start, file_version=VERSION)]
    events += [Event(wall_time=clock.at(step), step=step, summary=found) for step, _, found in dated if found.value]
    return b"".join(_framed(e.SerializeToString()) for e in events)


class _Clock:
    """Step -> seconds since 1970."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        read = ((int(line["step"]), _seconds(line.get("time"))) for line in record["history"])
        lines = sorted((step, time) for step, time in read if time is not None)
        self._steps: Sequence[int] = [step for step, _ in lines]
        self._times: Sequence[float] = [time for _, time in lines]
        started = _seconds(record.get("started"))
        self.start = started if started is not None else self._times[0] if lines else 0.0

    def at(self, step: int) -> float:
        if not self._steps:
            return self.start
        after = bisect.bisect_left(self._steps, step)
        near = [i for i in (after - 1, after) if 0 <= i < len(self._steps)]
        return self._times[min(near, key=lambda i: abs(self._steps[i] - step))]


def _seconds(iso: Any) -> float | None:
    """ISO 8601 -> seconds since 1970 (UTC where no zone is given); None for anything else."""
    try:
        time = dt.datetime.fromisoformat(iso)
    except (ValueError, TypeError):
        return None
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()


def _scalars(prefix: str, values: Mapping[str, Any]) -> Any:
    """A Summary of what is a finite number."""
    known = {k: n for k, v in values.items() if (n := as_number(v)) is not None and math.isfinite(n)}
    return Summary(value=[Summary.Value(tag=f"{prefix}/{k}", simple_value=n) for k, n in known.items()])


def _image(png: bytes) -> Any:
    """A Summary of one picture, its bytes as they are; empty where they are no picture."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
            width, height, mode = opened.width, opened.height, opened.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Summary()
    image = Summary.Image(width=width, height=height, colorspace=_MODES.get(mode, 3), encoded_image_string=png)
    return Summary(value=[Summary.Value(tag="samples", image=image)])


def _framed(message: bytes) -> bytes:
    """One TFRecord: uint64 length, its CRC, the message, its CRC, all little-endian."""
    length = struct.pack("<Q", len(message))
    return length + _crc(length) + message + _crc(message)


def _crc(data: bytes) -> bytes:
    """CRC-32C, rotated by 15 bits and offset: the format's guard against a CRC of data that hold CRCs."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
