"""What a worker is told of the driver that it works for: the run's name, for its metrics, and the code to be of."""

from __future__ import annotations

import functools
import hashlib
import socket
from dataclasses import dataclass
from pathlib import Path

import sar2eo_dist
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline import metrics


@dataclass(frozen=True, slots=True)
class Driver:
    """run: as its metrics name it; code: of `code()`. Made in the driver, carried by all that goes to a worker."""

    run: str
    code: str

    def meet(self) -> None:
        """In a worker, before any of its work.

        Raises ConfigError where it is of another code: an image of last month's in one of the cluster's groups would leave
        bytes that no other worker leaves, and `code` is in no unit's fingerprint.
        """
        metrics.name_run(self.run)
        if code() != self.code:
            raise ConfigError(
                f"the worker on {socket.gethostname()} is sar2eo_dist {code()}, the driver {self.code}: give all nodes one "
                "image, or ship the code with the job (ray job submit --working-dir)"
            )


def here() -> Driver:
    return Driver(metrics.named_run(), code())


@functools.cache
def code() -> str:
    """Version and digest of this package's sources."""
    home = Path(sar2eo_dist.__file__).parent
    files = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(home.rglob("*.py"))))
    return f"{sar2eo_dist.__version__} ({files.hexdigest()[:12]})"
