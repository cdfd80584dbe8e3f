"""The FID network: pytorch-fid's InceptionV3 with the official weights, as a feature extractor.

The network is pytorch_fid's own class, so its features are pytorch-fid's by construction. The weights
(`pt_inception-2015-12-05-6726825d.pth`, 95 MB) are in no package: the user names their URI. `flat` is the same network
under the keys of that file, with its classifier.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models import _torchvision
from sar2eo_dist.models.extractors import Network

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
SHA256_PREFIX = "6726825d"  # the part of the digest that the file name carries; no full one was ever published
SOURCE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS}"
_HELP = f"get it from {SOURCE} and set cca.weights to its path or URI (append #sha256=... to check the whole digest)"


class Inception(Network):
    """Pooled features of the last block, 2048 numbers, and the maps of all four; see `extractors.Extractor`.

    Maps, for any image size: (64, 73, 73) after the first max pooling, (192, 35, 35) after the second, (768, 17, 17)
    before the auxiliary classifier, (2048, 8, 8) before the last average. pytorch-fid's features of 64, 192, 768 and
    2048 dimensions are the averages of these (`Extractor.pooled`).

    weights: URI of the official file, optionally `#sha256=<64 hex digits>`; empty: torch hub's checkpoint folder
    already holds it. Raises ConfigError: no such file, or not the official weights.
    """

    score_name = "fid"
    dims = 2048
    map_dims = (64, 192, 768, 2048)
    preprocessing = "uint8 / 255; bilinear to 299x299, align_corners=False, no antialiasing; 2x - 1 (pytorch-fid 0.3.0)"

    def __init__(self, weights: str) -> None:
        super().__init__()
        place(weights)
        _torchvision.ensure()
        from pytorch_fid.inception import InceptionV3

        self.net = InceptionV3((InceptionV3.BLOCK_INDEX_BY_DIM[self.dims],))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.float() / 255.0)[0].flatten(1)  # type: ignore[no-any-return]

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        first, second, third, last = self.net.blocks
        seen: list[Tensor] = []
        # listening to its own forward keeps pytorch-fid's preprocessing; the last block ends in the average
        sources = (first, second, third, last[-2])
        hooks = [m.register_forward_hook(lambda _m, _i, out: seen.append(out)) for m in sources]
        try:
            self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(seen)


def flat() -> nn.Module:
    """The network of the FID file under its own keys (`Conv2d_1a_3x3.conv.weight` .. `fc.bias`), untrained, eval mode.

    For `bundle.load_official`, 23,850,960 parameters. Called with (N, 3, 299, 299) float32 in [-1, 1], it gives the
    (N, 1008) class scores; pytorch-fid's features are what enters `fc`. Raises ImportError without pytorch_fid.
    """
    _torchvision.ensure()
    from pytorch_fid import inception as theirs

    def bare(**options: Any) -> nn.Module:
        net: nn.Module = theirs._inception_v3(**options)
        net.load_state_dict = lambda state: None  # type: ignore[method-assign, assignment, misc]
        return net

    # their function builds the network and loads weights from the web: the same code, with nothing to load
    names = vars(theirs) | {"_inception_v3": bare, "load_state_dict_from_url": lambda *a, **k: None}
    net: nn.Module = FunctionType(theirs.fid_inception_v3.__code__, names)()
    del net.load_state_dict
    return net.eval()


def place(weights: str) -> Path:
    """Put the weights where pytorch_fid's loader looks, torch hub's checkpoint folder, and return that path.

    Nothing is fetched where the right file lies there already. A file is only ever put there complete, checked and
    atomically, and only if it unpickles as plain tensors: pytorch_fid's own loader would run code in it.
    """
    uri, _, wanted = weights.partition("#sha256=")
    target = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if target.is_file():
        found = _digest(_pieces_of(target))
        if found.startswith(SHA256_PREFIX) and found.startswith(wanted.lower()):
            return target
        if not uri:
            raise ConfigError(f"{target} is not the FID weights: its sha256 is {found}; {_HELP}")
    elif not uri:
        raise ConfigError(f"the inception extractor needs the FID weights {WEIGHTS}: {_HELP}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{WEIGHTS}.")
    except OSError as e:
        raise ConfigError(f"cannot write the FID weights to {target.parent} ({e}): set TORCH_HOME elsewhere") from e
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as f:
            found = _digest(_written(_pieces(uri), f))
        if not found.startswith(SHA256_PREFIX) or not found.startswith(wanted.lower()):
            expected = wanted or f"{SHA256_PREFIX}..."
            raise ConfigError(f"{uri} is not the FID weights: its sha256 is {found}, expected {expected}; {_HELP}")
        try:
            torch.load(temporary, map_location="cpu", weights_only=True)
        except Exception as e:
            raise ConfigError(f"{uri} is not a plain file of tensors ({type(e).__name__}: {e}); {_HELP}") from e
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _pieces(uri: str) -> Iterator[bytes]:
    from sar2eo_dist.models import bundle  # the one room of models that may touch storage

    yield from bundle.pieces(uri)


def _pieces_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as f:
        while piece := f.read(8 << 20):
            yield piece


def _written(pieces: Iterator[bytes], f: object) -> Iterator[bytes]:
    for piece in pieces:
        f.write(piece)  # type: ignore[attr-defined]
        yield piece


def _digest(pieces: Iterator[bytes]) -> str:
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return sha.hexdigest()
