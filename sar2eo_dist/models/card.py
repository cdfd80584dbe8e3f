"""The model card of a bundle: one markdown page for people, a function of the bundle's facts alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sar2eo_dist.models.bundle import BundleInfo

#: role -> (title, what it does)
ROLES = {
    "translate": (
        "radar to optical",
        "turns a Sentinel-1 radar (SAR) image into the optical (EO) image that Sentinel-2 might have seen without clouds",
    ),
    "enhance": (
        "optical to better optical",
        "is meant to improve the optical (EO) image that a translator made from Sentinel-1 radar (SAR)",
    ),
    "": (
        "image to optical",
        "makes an optical (EO) image, from Sentinel-1 radar (SAR) or from a translator's EO image: "
        "the bundle does not record which",
    ),
}
#: values of the config's `scaling` section in words; the functions and their constants: sar2eo_dist.radiometry
SAR = {
    "minmax": "each channel's minimum and maximum in the image go to -1 and 1",
    "tanh": "tanh((x - median) / (1.4826 MAD)) of each channel of the image, then its minimum and maximum to -1 and 1",
    "tanh_fixed": "tanh of each channel about a constant centre with a constant scale",
    "fixed": "constant ranges, the same for every image, go to [-1, 1], clipped",
}
EO = {
    "minmax": "each band's minimum and maximum in the image go to -1 and 1, so DN cannot be had back from the output",
    "fixed": "a constant range of DN goes to [-1, 1], clipped; `radiometry.unscale_eo` inverts it",
}
THIRD = {
    "difference_db": "VV - VH in dB",
    "mean_db": "(VV + VH) / 2 in dB",
    "ratio_stretched": "VV' / VH', where ' is a stretch to one range (its minimum to maximum, or the fixed range)",
}
PER_IMAGE = {"minmax", "tanh"}
UNITS = {"db": "dB", "linear": "linear power"}
LICENCES = {
    "restormer": "The network is an independent implementation of Restormer. The weights that its authors published are "
    "for academic, non-commercial use only: if these were trained from them, or are them, the same holds here.",
}


def text(info: BundleInfo, parameters: int) -> str:
    """Markdown of the card. parameters: of the network that `info` describes. Equal facts give equal text."""
    title, does = ROLES.get(info.role, ROLES[""])
    shape_in, shape_out = (f"(N, {c}, H, W) float32 in [-1, 1]" for c in (info.in_channels, info.out_channels))
    facts = {
        "network": f"`{info.model}`, {parameters:,} parameters", "trained": f"{info.step:,} steps",
        "training data": f"digest `{info.data}`", "code": f"`{info.code}`",
        "weights": f"`weights.safetensors`, sha256 `{info.weights_sha256}`",
    }  # fmt: skip
    load = ["from sar2eo_dist.models import bundle", 'net, info = bundle.load("<folder or URI of this page>")',
            f"image = net(x)  # torch, {shape_in} -> {shape_out}"]  # fmt: skip
    sections = {
        "": [f"A network that {does}. This page is generated from `bundle.json`, which holds the same facts."],
        "Facts": _table(("", ""), facts),
        "Input": [f"{shape_in}.", "", *_list(_input(info))],
        "Output": [f"{shape_out}: {_bands(info.eo_bands)}.", "", *_list(_output(info.scaling))],
        "Load": ["```python", *load, "```"],
        "Metrics": _metrics(info.metrics),
        "Intended use and limits": _list(_limits(info)),
        "Options": _table(("option", "value"), _values(info.options)),
        "Scaling": _table(("setting", "value"), _values(info.scaling)),
    }
    if note := LICENCES.get(info.model):
        sections["Licence"] = [note]
    parts = [f"## {name}\n\n" * bool(name) + "\n".join(lines) for name, lines in sections.items()]
    return "\n\n".join([f"# {info.model}: {title}", *parts]) + "\n"


def _input(info: BundleInfo) -> list[str]:
    if info.role == "enhance":
        return [f"The output of a translator: {_bands(info.eo_bands)}, scaled as the output below.",
                f"That translator saw {_bands(info.sar_bands)}, {_sar(info)}."]  # fmt: skip
    scaling = info.scaling
    more = {
        0: "",
        1: f", then {THIRD.get(scaling.get('third', ''), 'one made from them')}",
    }.get(info.in_channels - len(info.sar_bands), "; the bundle does not say how the channels are made from them")
    blur = scaling.get("median", 0)
    return [
        f"Channels: {_bands(info.sar_bands)}{more}; {_sar(info)}.",
        f"First a median blur of {blur} x {blur} pixels." if blur else "No median blur.",
        f"Scaling `{scaling.get('sar')}`: {SAR.get(scaling.get('sar', ''), 'as that version of the code defines it')}.",
        "No data is 0 in every channel; NaN and infinite values are refused.",
        "`sar2eo_dist.radiometry.scale_sar` does all of this.",
    ]


def _output(scaling: dict[str, Any]) -> list[str]:
    how = EO.get(scaling.get("eo", ""), "as that version of the code defines it")
    return [f"Scaling `{scaling.get('eo')}`: {how}.", "Height and width are those of the input, whatever they are."]


def _limits(info: BundleInfo) -> list[str]:
    lines = [
        "For cloud-free views of land like that of the training data, from the same sensors, bands and processing. "
        "What that data was, real or synthetic, and of which region, is not recorded here: its digest names it.",
        "The output is an estimate, not a measurement: detail in it can be invented. Do not take single pixels, "
        "small objects or changes in it as evidence without another source.",
        f"Input from SAR other than {_sar(info)}, or scaled otherwise, gives images that mean nothing.",
    ]
    if {info.scaling.get("sar"), info.scaling.get("eo")} & PER_IMAGE:
        lines.append("Scaled by each image's own values: for single patches. Windows of a mosaic would not match.")
    return lines


def _metrics(metrics: dict[str, float]) -> list[str]:
    if not metrics:
        return ["None were recorded: the quality of this network was not measured."]
    shown = {k: f"{v:.6g}" if math.isfinite(v) else "not measured" for k, v in sorted(metrics.items())}
    return _table(("metric", "value"), shown)


def _table(head: tuple[str, str], rows: dict[str, str]) -> list[str]:
    return [f"| {k} | {v} |" for k, v in (head, ("---", "---"), *rows.items())]


def _list(lines: list[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _bands(names: tuple[str, ...]) -> str:
    return f"{', '.join(names)} in this order"


def _values(tree: dict[str, Any]) -> dict[str, str]:
    return {k: f"`{json.dumps(v, sort_keys=True)}`" for k, v in sorted(tree.items())}


def _sar(info: BundleInfo) -> str:
    return f"{info.quantity} in {UNITS.get(info.units, info.units)}"
