"""Make `import torchvision` work beside a CPU-only torch; the feature extractor alone needs it.

The registry's torchvision is a CUDA build. Beside CPU torch its compiled part does not load, the failure is swallowed,
and the import dies later at the registration of a fake kernel: "operator torchvision::nms does not exist". Declaring
the two operators that it registers is enough; calling them still raises. Upstream: vision#9085, vision#9077.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_DECLARED: list[Any] = []  # the registration lasts as long as the library object


def ensure() -> None:
    """After this `import torchvision` works in this process, or ImportError says why not."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as e:
        if "torchvision::nms" not in str(e):
            raise ImportError(f"torchvision cannot be imported: {e}") from e
        for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
            del sys.modules[name]
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
        importlib.import_module("torchvision")
