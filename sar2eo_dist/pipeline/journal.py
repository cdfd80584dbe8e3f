"""What a training tells while it runs: record.json, history.jsonl, a TensorBoard file and sample grids, in one folder."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.evaluation.validation import Held, peak
from sar2eo_dist.radiometry import decode_db, display, scale_sar, to_uint8
from sar2eo_dist.report import tensorboard
from sar2eo_dist.report.cost import kwh_of
from sar2eo_dist.sections import Cost
from sar2eo_dist.training.fit import Record
from sar2eo_dist.training.phases import Phase

SHOWN = 4  # held-out places in a grid
KEPT = 8  # grids in the TensorBoard file
GAP = 6  # pixels between its pictures
EVENTS = "events.out.tfevents.sar2eo"


def describe(facts: dict[str, Any], plan: Sequence[Phase], record: Record, cost: Cost, ended: str) -> dict[str, Any]:
    """record.json: `facts` of the training (what, on what, on which machines) and how it has gone so far."""
    hours = record.seconds * facts["workers"] / 3600
    gpu = facts["device"] != "cpu"
    gpu_hours, cpu_hours = hours * gpu, 0.0 if gpu else hours * facts["threads"]
    kwh = kwh_of(gpu_hours, cpu_hours, cost.gpu_watts, cost.cpu_watts)
    price = gpu_hours * cost.gpu_hour + cpu_hours * cost.cpu_hour + kwh * cost.kwh
    tree: dict[str, Any] = _finite({
        **facts, "steps": plan[-1].stop, "phases": [asdict(p) for p in plan], "started": record.started, "ended": ended,
        "seconds": record.seconds, "attempts": record.attempts, "history": record.history,
        "validations": record.validations, "baselines": record.baselines, "best": record.best(), "events": record.events,
        "cost": {"gpu_hours": gpu_hours, "cpu_hours": cpu_hours, "amount": price or None, "currency": cost.currency,
                 "kwh": kwh or None, "kg_co2": kwh * cost.kwh_co2 / 1000 or None},
    })  # fmt: skip
    return tree


def _finite(tree: Any) -> Any:
    """NaN and infinity as null: JSON knows neither."""
    if isinstance(tree, dict):
        return {str(k): _finite(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def publish(folder: str, tree: dict[str, Any], grids: Mapping[int, bytes], step: int) -> None:
    """Write what `describe` gave below a URI, and the grid of this step where there is one; `grids`: PNG by step."""
    if step in grids:
        storage.put(storage.join(folder, "samples", f"{step:08d}.png"), grids[step])
    lines = "".join(json.dumps(line, sort_keys=True) + "\n" for line in tree["history"])
    storage.put(storage.join(folder, "history.jsonl"), lines.encode())
    storage.put(storage.join(folder, EVENTS), tensorboard.encode(tree, grids))
    storage.put(storage.join(folder, "record.json"), json.dumps(tree, indent=1, sort_keys=True).encode())


def grids(folder: str, before: int) -> dict[int, bytes]:
    """The newest grids that lie below a URI, of steps before this one."""
    try:
        found = {int(storage.name(i.uri)[:-4]): i.uri for i in storage.list_files(storage.join(folder, "samples"))}
    except NotFound:
        return {}
    return {step: storage.read_bytes(uri) for step, uri in sorted(found.items())[-KEPT:] if step < before}


def look(net: nn.Module, held: Held, device: torch.device) -> tuple[bytes, float | None]:
    """(PNG of SAR | source of an enhancer | output | real, a row a place; the network's `peak` there), of the first few."""
    places = list(held.samples[:SHOWN])
    if not places:
        return b"", None
    shown = held.scaling.model_copy(update={"sar": "fixed", "third": "difference_db", "median": 0})  # type: ignore[attr-defined]
    rows, largest, was = [], 0.0, net.training
    net.eval()
    for i in places:
        source, truth, _, _ = held.read(i)
        batch = torch.from_numpy(source)[None].to(device)
        with torch.no_grad():
            made = net(batch)[0].float().cpu().numpy()
        largest = max(largest, peak(net, batch))
        images = [made, truth * 2 - 1] if held.image is None else [source, made, truth * 2 - 1]
        radar = to_uint8(scale_sar(decode_db(held.pairs(i)[0]), shown))
        if held.scale > 1:
            radar = radar[:, :: held.scale, :: held.scale]
        rows.append([radar, *(display(to_uint8(x)) for x in images)])
    net.train(was)
    return _png(rows), largest if math.isfinite(largest) else None


def columns(role: str) -> list[str]:
    """What the pictures of a grid's row are."""
    return ["SAR", "translated", "enhanced", "real"] if role == "enhance" else ["SAR", "translated", "real"]


def _png(rows: Sequence[Sequence[npt.NDArray[np.uint8]]]) -> bytes:
    side = rows[0][0].shape[-1]
    step = side + GAP
    canvas = np.full((len(rows) * step - GAP, len(rows[0]) * step - GAP, 3), 128, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas[y * step : y * step + side, x * step : x * step + side] = picture.transpose(1, 2, 0)
    sink = io.BytesIO()
    Image.fromarray(canvas).save(sink, "PNG", optimize=True)
    return sink.getvalue()
