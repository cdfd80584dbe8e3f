"""A trained network as one folder or URI: `weights.safetensors` and `bundle.json`. Nothing else is needed to run it.

A model card `README.md` lies beside them, written from the facts and never read. No pickle is ever read in a bundle;
`load_official` reads those of the official implementations, tensors only. The bytes are a function of weights and facts
alone. The only file of models that uses storage.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import nn

from sar2eo_dist import models, records, storage
from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import card, official
from sar2eo_dist.models._weights import load_weights
from sar2eo_dist.records import Artifact

WEIGHTS, CARD, FACTS = "weights.safetensors", "README.md", "bundle.json"
FORMAT = 1  # of bundle.json

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """What a bundle says about itself.

    model: file of `models/`; options: all of them, completed on saving; in_channels, out_channels: of the network.
    scaling: the config's `scaling` section by which its inputs and targets were made; units ("db" or "linear") and
    quantity ("sigma0" or "gamma0") of the SAR; sar_bands, eo_bands: in channel order. data: digest of the training
    data; code: version that trained it; step: steps done; metrics: name -> value (NaN = not measured).
    weights_sha256: of weights.safetensors, filled in on saving. role: what it is fed, "translate" (SAR) or "enhance" (a
    translator's EO image); empty where nobody said.
    """

    model: str
    options: dict[str, Any]
    in_channels: int
    out_channels: int
    scaling: dict[str, Any]
    units: str
    quantity: str
    sar_bands: tuple[str, ...]
    eo_bands: tuple[str, ...]
    data: str
    code: str
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    weights_sha256: str = ""
    role: str = ""


def save(uri: str, net: nn.Module, info: BundleInfo) -> list[Artifact]:
    """Publish weights, card and facts of `net` below `uri`, the facts last: a bundle that has them is complete.

    Paths of the artifacts are relative to `uri`. Raises ModelError: NaN or infinite weights, or a network that
    `info` does not describe; ConfigError: options that its model does not know.
    """
    state = {k: v.detach().to("cpu").contiguous() for k, v in sorted(net.state_dict().items())}
    bad = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise ModelError(f"{len(bad)} weights are NaN or infinite, first {bad[0]}: not saved: {uri}")
    info = dataclasses.replace(info, options=models.translator(info.model).complete(info.options))
    again = _network(info)
    load_weights(again, state, uri)
    data = bytes_of(state)
    info = dataclasses.replace(info, weights_sha256=storage.sha256(data))
    text = card.text(info, sum(p.numel() for p in again.parameters()))
    files = ((WEIGHTS, data), (CARD, text.encode()), (FACTS, _encode(info)))
    return [storage.publish(uri, name, content) for name, content in files]


def load(uri: str, device: str = "cpu") -> tuple[nn.Module, BundleInfo]:
    """The network in eval mode on a device, and its facts.

    Raises NotFound; ModelError: truncated or altered weights, a pickle, keys or shapes that do not fit (all named).
    """
    info = read(uri)
    where = storage.join(uri, WEIGHTS)
    data = storage.read_bytes(where)
    state = _tensors(data, where)
    net = _network(info)
    load_weights(net, state, where)
    _same(data, info, where)
    return net.eval().to(device), info


def start(net: nn.Module, uri: str) -> BundleInfo:
    """Put a bundle's weights into a network that is to be trained on; returns the bundle's facts.

    All of them, or, where `net` names a part that it inherits (pix2pixHD's local enhancer: the global net), that part.
    Raises NotFound; ModelError: weights of another architecture, all keys and shapes that differ named, with both options.
    """
    info = read(uri)
    where = storage.join(uri, WEIGHTS)
    data = storage.read_bytes(where)
    state = _tensors(data, where)
    _same(data, info, where)
    layers = sorted(state, key=lambda k: [(len(part), part) for part in k.split(".")])  # the output layer last
    state = {k: state[k] for k in layers}
    try:
        inherit(net, state, where)
    except ModelError as e:
        raise ModelError(f"training cannot start from a {info.model} of {info.options}: {e}") from e
    return info


def inherit(net: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """What `start` puts into `net`, from a state dict; on meta tensors a check of keys and shapes. Raises ModelError."""
    whole = set(state) == set(net.state_dict())
    official.fit(net, state, where, "" if whole else str(getattr(net, "inherits", "")))


def read(uri: str) -> BundleInfo:
    """The facts alone. Raises NotFound, or ModelError where `bundle.json` is torn or of another format."""
    where = storage.join(uri, FACTS)
    try:
        tree = json.loads(storage.read_bytes(where))
        if tree.pop("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        tree["sar_bands"], tree["eo_bands"] = tuple(tree["sar_bands"]), tuple(tree["eo_bands"])
        tree["metrics"] = {k: math.nan if v is None else float(v) for k, v in tree["metrics"].items()}
        return BundleInfo(**tree)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise ModelError(f"not a bundle description ({type(e).__name__}: {e}): {where}") from e


def digest(info: BundleInfo) -> str:
    """Identity of what a saved bundle computes: weights, network, scaling, bands, units; not metrics or provenance."""
    others = {"metrics", "data", "code", "step", "role"}
    return records.digest("bundle", {k: v for k, v in dataclasses.asdict(info).items() if k not in others})


def load_official(model: N, path: str, key: str | None = None, prefix: str = "") -> N:
    """Put a checkpoint of the official implementations into `model`, in place; returns `model`, on its device.

    path: file or URI: pix2pixHD's `*_net_G.pth` and `*_net_D.pth`, Restormer's `{params[, params_ema]}`, pytorch-fid's
    weights (`inception.flat`), or any state dict under the keys of `model`, in the zip or the older format of
    torch.save. key: entry that holds the state dict; default: the whole file, else `params_ema`, else `params` (the
    official test script reads `params`: name it to repeat its numbers where a file has both).

    Strict, and all or nothing: every key and shape must agree. Passed over are only a `module.` before every key
    (DataParallel), batch norms' `num_batches_tracked` where missing (0), and running statistics that torch before 0.4
    saved for instance norms without using them. Values take the dtypes of `model`.

    prefix: load only the keys that begin so, as strictly; the last module that the file has there, its output layer,
    may lack in `model`. So pix2pixHD's pretraining passes on: a global net of width 2^n * ngf into a local enhancer
    with prefix="model.". The other weights of `model` stay.

    Raises NotFound; ModelError: truncated or empty file, no state dict, code in the pickle (never run), missing,
    unexpected and misshapen keys (all named, and what the file looks like), NaN or infinite weights.
    """
    official.fit(model, official.read(storage.read_bytes(path), path, key), path, prefix)
    return model


def pieces(uri: str) -> Iterator[bytes]:
    """A weights file piece by piece, for the extractors. Raises NotFound and other storage errors."""
    return storage.chunks(uri)


def _tensors(data: bytes, where: str) -> dict[str, torch.Tensor]:
    if data[:2] == b"PK" or data[:1] == b"\x80":
        raise ModelError(f"a pickle can run code when it is read: refused, a bundle holds safetensors only: {where}")
    try:
        state: dict[str, torch.Tensor] = tensors_of(data)
    except (SafetensorError, ValueError) as e:
        raise ModelError(f"weights are truncated or no safetensors ({len(data)} bytes, {e}): {where}") from e
    return state


def _same(data: bytes, info: BundleInfo, where: str) -> None:
    if storage.sha256(data) != info.weights_sha256:
        raise ModelError(f"weights are not those that {FACTS} describes: sha256 {storage.sha256(data)}: {where}")


def _network(info: BundleInfo) -> nn.Module:
    return models.translator(info.model).build(info.options, info.in_channels, info.out_channels)


def _encode(info: BundleInfo) -> bytes:
    tree: Mapping[str, Any] = {"format": FORMAT, **dataclasses.asdict(info)}
    metrics = {k: v if math.isfinite(v) else None for k, v in info.metrics.items()}
    return (json.dumps({**tree, "metrics": metrics}, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
