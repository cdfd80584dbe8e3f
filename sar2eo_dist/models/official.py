"""Checkpoints of the official implementations, by their own keys: pix2pixHD, Restormer and pytorch-fid.

`bundle.load_official` is the way in; this file takes bytes and touches no storage. A checkpoint is a pickle, so it is
read as plain tensors or not at all, and what does not fit is named, with the options of the network that it would fit.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models._weights import difference, first

KEYS = ("params_ema", "params")  # of BasicSR checkpoints (Restormer); the first that is there is taken
COUNTER = "num_batches_tracked"  # of batch norms; torch before 0.4.1 had none, and nothing reads it
#: what torch before 0.4 also saved for instance norms, which used the image's own statistics all the same
IDLE = ("running_mean", "running_var", COUNTER)


def read(data: bytes, where: str, key: str | None = None) -> dict[str, Tensor]:
    """The state dict of a checkpoint in either format of torch.save, on the CPU, without the `module.` of DataParallel.

    key: entry that holds it, where the file has several. Raises ModelError: see `bundle.load_official`.
    """
    try:
        tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # whatever damaged bytes make of an unpickler
        raise ModelError(f"{_refusal(data, e)}: {where}") from e
    if not isinstance(tree, Mapping):
        raise ModelError(f"holds a {type(tree).__name__}, no state dict (name -> tensor): {where}")
    if key is None and not all(map(_is_plain, tree.values())):
        key = next((k for k in KEYS if k in tree), None)
    if key is not None:
        if not isinstance(tree.get(key), Mapping):
            raise ModelError(f"holds no state dict under key {key!r}; its entries: {_names(tree)}: {where}")
        tree = tree[key]
    if not tree:
        raise ModelError(f"holds an empty state dict: {where}")
    if odd := [k for k, v in tree.items() if not isinstance(k, str) or not _is_plain(v)]:
        what = f"{len(odd)} of {len(tree)} entries are no plain tensors: {_names(odd)}"
        raise ModelError(f"no state dict ({what}): if one of its entries is, name it by key=...: {where}")
    wrapped = all(k.startswith("module.") for k in tree)
    return {k.removeprefix("module.") if wrapped else k: v for k, v in tree.items()}


def fit(model: nn.Module, state: Mapping[str, Tensor], where: str, prefix: str = "") -> None:
    """Put a state dict into a network, all of it or nothing. Raises ModelError: see `bundle.load_official`."""
    whole = model.state_dict()
    own = {k: v for k, v in whole.items() if k.startswith(prefix)}
    found = {k: v for k, v in state.items() if k.startswith(prefix)}
    if not own:
        raise ModelError(f"{type(model).__name__} has no weights below {prefix!r}, only: {_names(whole)}: {where}")
    if prefix and found:  # a network that goes on from these layers has its own output layer
        output = [*found][-1].rpartition(".")[0]
        found = {k: v for k, v in found.items() if k in own or k.rpartition(".")[0] != output}
    found = {k: v for k, v in found.items() if k in own or not _is_idle(k, model, state)}
    found |= {k: torch.zeros_like(v) for k, v in own.items() if k.endswith(f".{COUNTER}") and k not in found}
    if text := difference(own, found):
        guess = describe(state)
        hint = f"; the file looks like {guess}: build the network to match, or give its own file" if guess else ""
        raise ModelError(f"checkpoint does not fit {type(model).__name__}: {text}{hint}: {where}")
    kinds = [f"{k} ({v.dtype})" for k, v in found.items() if v.is_floating_point() != own[k].is_floating_point()]
    if kinds:
        raise ModelError(f"{len(kinds)} weights are of another kind of number: {first(kinds)}: {where}")
    found = {k: v.to(own[k].dtype) for k, v in found.items()}
    bad = [k for k, v in found.items() if not v.is_meta and not bool(torch.isfinite(v).all())]
    if bad:
        dtype = own[bad[0]].dtype
        raise ModelError(f"{len(bad)} weights are NaN or infinite as {dtype}: {first(bad)}: not loaded: {where}")
    model.load_state_dict(whole | found)


def describe(state: Mapping[str, Tensor]) -> str:
    """What network a state dict is of, with the constructor options that its keys and shapes tell; empty if unknown."""
    try:
        if "patch_embed.proj.weight" in state:
            name, options = "a Restormer", _restormer(state)
        elif "Conv2d_1a_3x3.conv.weight" in state:
            return f"an Inception v3 network of {len(state['fc.weight'])} classes (that for FID has 1008)"
        elif heads := _all(state, r"(?:scale(\d+)_layer0\.0|layer(\d+)\.0)\.weight"):
            name, options = "a pix2pixHD MultiscaleDiscriminator", _discriminator(state, heads)
        elif levels := _all(state, r"model(\d+)_1\.1\.weight"):
            name, options = "a pix2pixHD LocalEnhancer", _enhancer(state, levels)
        elif "model.1.weight" in state:
            name, options = "a pix2pixHD GlobalGenerator", _generator(state)
        else:
            return ""
    except (IndexError, KeyError, TypeError):  # some of its keys, but not the layers behind them
        return ""
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def _generator(state: Mapping[str, Tensor]) -> dict[str, Any]:
    convs = _convs(state, r"model\.\d+\.weight")
    return {
        "input_nc": convs[0].shape[1], "output_nc": len(convs[-1]), "ngf": len(convs[0]),
        "n_downsampling": (len(convs) - 2) // 2, "n_blocks": _blocks(state, r"model"), "norm": _norm(state),
    }  # fmt: skip


def _enhancer(state: Mapping[str, Tensor], levels: list[re.Match[str]]) -> dict[str, Any]:
    n = max(int(m[1]) for m in levels)
    stem, up = state[f"model{n}_1.1.weight"], _convs(state, rf"model{n}_2\.\d+\.weight")
    return {
        "input_nc": stem.shape[1], "output_nc": len(up[-1]), "ngf": len(stem),
        "n_downsample_global": (len(_convs(state, r"model\.\d+\.weight")) - 1) // 2,
        "n_blocks_global": _blocks(state, r"model"), "n_local_enhancers": n,
        "n_blocks_local": _blocks(state, rf"model{n}_2"), "norm": _norm(state),
    }  # fmt: skip


def _discriminator(state: Mapping[str, Tensor], heads: list[re.Match[str]]) -> dict[str, Any]:
    stem, every_map = state[heads[0][0]], heads[0][1] is not None
    layers = _convs(state, r"scale0_layer\d+\.0\.weight" if every_map else r"layer0\.\d+\.weight")
    return {
        "input_nc": stem.shape[1], "ndf": len(stem), "n_layers": len(layers) - 2, "norm": _norm(state),
        "num_D": len(heads), "get_interm_feat": every_map,
    }  # fmt: skip


def _restormer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    heads = [len(state[k]) if (k := f"{level}.0.attn.temperature") in state else 1 for level in levels]
    dim = len(state["patch_embed.proj.weight"])
    # the channels of the widest block tell the factor best: int(dim * factor) of them
    hidden = {v.shape[0]: v.shape[1] for k, v in state.items() if k.endswith("ffn.project_out.weight")}
    widest = max(hidden, default=1)
    return {
        "inp_channels": state["patch_embed.proj.weight"].shape[1], "out_channels": len(state["output.weight"]),
        "dim": dim, "num_blocks": [_count(state, rf"{level}\.(\d+)\.") for level in levels],
        "num_refinement_blocks": _count(state, r"refinement\.(\d+)\."), "heads": heads,
        "ffn_expansion_factor": round((hidden.get(widest, 0) + 0.5) / widest, 2),
        "bias": _has(state, r".*\.attn\.qkv\.bias"),
        "LayerNorm_type": "WithBias" if _has(state, r".*\.norm1\.body\.bias") else "BiasFree",
        "dual_pixel_task": "skip_conv.weight" in state,
    }  # fmt: skip


def _all(state: Mapping[str, Tensor], pattern: str) -> list[re.Match[str]]:
    return [m for k in state if (m := re.fullmatch(pattern, k))]


def _has(state: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.match(pattern, k) for k in state)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for k in state if (m := re.match(pattern, k))})


def _convs(state: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    """Kernels in the order of the file, which is that of the layers."""
    return [state[m[0]] for m in _all(state, pattern) if state[m[0]].ndim == 4]


def _blocks(state: Mapping[str, Tensor], root: str) -> int:
    return _count(state, rf"{root}\.(\d+)\.conv_block\.")


def _norm(state: Mapping[str, Tensor]) -> str:
    affine = any(v.ndim == 1 and k.endswith(".weight") for k, v in state.items())
    return "batch" if affine else "instance"


def _is_idle(key: str, model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Running statistics of a norm that has none in `model` (module there, without state) and was not affine either."""
    owner, _, name = key.rpartition(".")
    if name not in IDLE or f"{owner}.weight" in state:
        return False
    try:
        return not model.get_submodule(owner).state_dict()
    except AttributeError:
        return False


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _names(entries: Any) -> str:
    return first([str(k) for k in entries]) or "none"


def _refusal(data: bytes, error: Exception) -> str:
    """Why torch did not read it. Its own text is not passed on: that advises to read the file with code and all."""
    text = str(error)
    refused = isinstance(error, UnpicklingError)
    if refused and data.startswith((b"PK", b"\x80")):
        found = re.search(r"GLOBAL (\S+)", text)
        return (
            f"a pickle of more than tensors ({found[1] if found else 'objects'}), which can run code when it is read: "
            f"refused, nothing was run; ask its author for torch.save(net.state_dict(), ...) alone"
        )
    why = "no torch.save file" if refused else text.partition(". ")[0].partition("\n")[0] or "it ends early"
    return f"truncated, or no checkpoint ({len(data)} bytes that begin {data[:8]!r}; {why})"
