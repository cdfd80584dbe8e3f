"""How a network is run: memory layout, precision, compilation, activation checkpointing, heap. Not what it computes.

Tolerances against float32 with every option off, as a share of the output's standard deviation: channels_last, compile and
checkpointing 1e-4 at most; bfloat16 about 3e-2 (pix2pixHD) and 1e-2 (Restormer) root mean square, single pixels ten times
that.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import nn

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models._network import Accelerated

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TRIM, _MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_NEVER = 2**31 - 1


def apply(net: nn.Module, precision: str = "float32", compile: bool = False, checkpointing: bool = False) -> nn.Module:
    """`net`, set in place to run fast: channels_last, and what the options say. Its keys and parameters stay float32.

    precision: of convolutions and matrix products; norms, softmax and losses stay float32. bfloat16 is for training
    and inference, float16 for inference alone (nothing scales the loss). compile: torch.compile of each network, for
    fixed shapes; wants a C++ compiler on a CPU, Triton on a GPU. checkpointing: training keeps few activations and
    computes the others twice. Raises ConfigError.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in net.modules():
        if isinstance(part, Accelerated):
            part.precision, part.checkpointing = PRECISIONS[precision], checkpointing
    if compile and isinstance(net, Accelerated):
        net.core = torch.compile(net.core, dynamic=False)  # type: ignore[method-assign]
    return net


def keep_heap() -> bool:
    """Let this process keep freed memory instead of giving every large tensor back to the system; True where it took.

    glibc maps each tensor of 32 MB or more anew, and the first touch of its pages then costs more than most layers'
    arithmetic: the full Restormer on a CPU runs twice as fast without. The process stays at its peak size.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP, _NEVER)) and bool(mallopt(_TRIM, _NEVER))
