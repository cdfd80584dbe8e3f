"""What a machine must have before any job: packages, room, a user, a token, a clock, and the GPU that its image is for.

At module level the standard library alone is imported: an import that fails is what this is to tell of.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import importlib.metadata
import os
import pwd
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sar2eo_dist

#: the folder that has jobs/ beside the package: a checkout, an image's /app, or what `--working-dir` shipped
ROOT = Path(sar2eo_dist.__file__).parents[1]
#: what a job cannot do without, the cheap ones first
IMPORTS = (
    "numpy",
    "cv2",
    "h5py",
    "pyarrow.parquet",
    "pydantic",
    "zarr",
    "rasterio",
    "s3fs",
    "numba",
    "torch",
    "ray.data",
)
GB = 1 << 30
FREE, SHM = GB, GB  # bytes below which Ray's folder cannot be used, and below which Ray leaves /dev/shm for the disk
TOO_FULL = 0.95  # of a disk, where Ray ends to spill (RAY_local_fs_capacity_threshold)
DRIVER = "a driver for CUDA 13 (580 or later), `--gpus all` or the limit nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at. FAIL: no job can run so; WARN: a job can, and may meet it later. said: with the remedy."""

    mark: Literal["OK", "WARN", "FAIL"]
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.mark:4s}  {self.what}: {self.said}"


def check() -> Iterator[Line]:
    """All of it, line by line, the cheapest first."""
    constraints = ROOT / "infra" / "constraints.txt"
    yield packages(constraints.read_text() if constraints.exists() else "")
    yield user()
    yield from folders()
    yield room(os.environ.get("RAY_TMPDIR", "/tmp"))  # noqa: S108
    if os.path.isdir("/dev/shm"):  # noqa: S108
        yield shared_memory("/dev/shm")  # noqa: S108
    yield token()
    yield clock(dt.datetime.now(dt.UTC).timestamp())
    broken = [line for name in IMPORTS if (line := imported(name, lambda n=name: importlib.import_module(n)))]  # type: ignore[misc]
    if not broken:
        broken = [line for line in [imported("torchvision", _torchvision)] if line]
    yield from broken or [Line("OK", "imports", ", ".join((*IMPORTS, "torchvision")))]
    if not broken:
        yield gpu(os.environ.get("SAR2EO_IMAGE", ""))


def packages(constraints: str) -> Line:
    """Installed versions against those that were tested together. constraints: text of infra/constraints.txt, or ""."""
    found = {_plain(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)", constraints, re.MULTILINE))
    # a local part ("2.13.0+cpu") says how a version was built, not which it is
    differ = [
        f"{name} {there} (not {version})"
        for name, version in wanted.items()
        if (there := found.get(_plain(name))) and there.partition("+")[0] != version
    ]
    code = f"sar2eo_dist {sar2eo_dist.__version__} in {ROOT}"
    if differ:
        said = f"{code}; not what was tested together: {', '.join(differ[:5])}{' and more' if len(differ) > 5 else ''}"
        # an image is built of the constraints: one that differs was meddled with
        return Line("FAIL" if os.environ.get("SAR2EO_IMAGE") else "WARN", "packages",
                    f"{said}. Install with -c infra/constraints.txt, or build the image again")  # fmt: skip
    known = sum(_plain(name) in found for name in wanted)
    return Line("OK", "packages", f"{code}; {known} at the versions of infra/constraints.txt" if known else code)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def user() -> Line:
    uid = os.geteuid()
    if uid == 0:
        return Line(
            "WARN", "user", "root: use one without rights (the image's is 1000:100; runAsNonRoot in Kubernetes)"
        )
    try:
        return Line("OK", "user", f"{pwd.getpwuid(uid).pw_name} ({uid}:{os.getegid()})")
    except KeyError:
        if os.environ.get("USER") or os.environ.get("LOGNAME"):
            return Line("OK", "user", f"{uid}:{os.getegid()}, named by the environment")
        return Line("WARN", "user", f"{uid} has no name, which torch.compile wants: run as 1000:100, or set USER")


def folders() -> Iterator[Line]:
    """Each folder that is written beside the results; one line if all can be."""
    places = {
        "HOME": "Ray's token is kept there", "TMPDIR": "temporary files", "RAY_TMPDIR": "Ray's sessions",
        "MPLCONFIGDIR": "plots", "NUMBA_CACHE_DIR": "compiled loops",
    }  # fmt: skip
    asked = {name: Path(os.environ[name]) for name in places if os.environ.get(name)}
    closed = {name: path for name, path in asked.items() if not _writable(path)}
    for name, path in closed.items():
        mark: Literal["WARN", "FAIL"] = "FAIL" if name in ("TMPDIR", "RAY_TMPDIR") else "WARN"
        yield Line(
            mark, "folders", f"{name}={path} cannot be written ({places[name]}): mount a volume there, or set {name}"
        )
    if not closed:
        yield Line("OK", "folders", ", ".join(f"{name}={path}" for name, path in asked.items()) or "the usual ones")


def _writable(path: Path) -> bool:
    """Whether a folder can be written, or made where it is not there yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def room(folder: str) -> Line:
    """Room for Ray's sessions, logs and spilled objects. folder: RAY_TMPDIR; they go to `ray` in it."""
    own = os.path.join(folder, "ray")
    disk = shutil.disk_usage(own if os.path.isdir(own) else folder)
    said = f"{disk.free / GB:.1f} of {disk.total / GB:.0f} GiB free in {own}"
    remedy = "clear it, mount a volume there, or set RAY_TMPDIR to a larger disk"
    if disk.free < FREE:
        return Line("FAIL", "room", f"{said}; Ray wants {FREE / GB:.0f} GiB: {remedy}")
    if disk.used > TOO_FULL * disk.total:
        return Line("WARN", "room", f"{said}, and Ray spills nothing to a disk fuller than {TOO_FULL:.0%}: {remedy}")
    return Line("OK", "room", said)


def shared_memory(folder: str) -> Line:
    """Room for Ray's object store. Docker and Kubernetes give 64 MB unless told otherwise."""
    size = shutil.disk_usage(folder).total
    said = f"{size / GB:.2f} GiB in {folder}"
    if size < SHM:
        return Line("WARN", "shared memory", f"{said}: a Ray here would keep its objects on the disk, many times slower. "
                    "docker run --shm-size=2g, or an emptyDir with medium: Memory (no matter where no Ray runs)")  # fmt: skip
    return Line("OK", "shared memory", said)


def token() -> Line:
    """Who may submit jobs to a Ray of this machine, and with what this machine goes to another's."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return Line(
            "WARN", "token", "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports runs code here. Set it to token"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Line("OK", "token", "from RAY_AUTH_TOKEN")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    where = Path(path) if path else Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        if where.read_text().strip():
            return Line("OK", "token", f"from {where}")
    if path:
        return Line(
            "FAIL", "token", f"RAY_AUTH_TOKEN_PATH={path} cannot be read or is empty: mount the cluster's token there"
        )
    return Line("OK", "token", "none yet: a job's own Ray makes one; `ray start` and a cluster want RAY_AUTH_TOKEN")


def clock(now: float) -> Line:
    """A clock that is behind this very code is wrong; what a store's clock says is told with a config. now: seconds, Unix."""
    said = dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="seconds")
    written = Path(sar2eo_dist.__file__).stat().st_mtime
    if now < written - 3600:
        later = dt.datetime.fromtimestamp(written, dt.UTC).isoformat(timespec="seconds")
        return Line(
            "WARN", "clock", f"{said}, but this code was written at {later}: set it by NTP, S3 refuses wrong clocks"
        )
    return Line("OK", "clock", said)


def imported(name: str, load: Callable[[], object]) -> Line | None:
    """None where it could be; whatever is raised on the way, a missing shared library among it, is the answer."""
    try:
        load()
    except Exception as e:  # a package may raise anything while it is imported
        said = f"{name} cannot be imported ({type(e).__name__}: {e}): install with -c infra/constraints.txt"
        return Line("FAIL", "imports", said)
    return None


def _torchvision() -> None:
    from sar2eo_dist.models import _torchvision as here  # imports torch

    here.ensure()


def gpu(image: str) -> Line:
    """The GPU by a product that it computes. image: SAR2EO_IMAGE, "gpu" where one is to be there."""
    import torch  # not at module level: see there

    built = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        try:
            side = torch.ones(64, 64, device="cuda")
            if float((side @ side).sum()) != 64.0**3:
                return Line("FAIL", "GPU", f"{names}: a product of ones is wrong. Take this machine out of the cluster")
        except RuntimeError as e:
            return Line(
                "FAIL", "GPU", f"{names} does not compute with {built} ({str(e).splitlines()[0]}): wants {DRIVER}"
            )
        return Line("OK", "GPU", f"{names}; {built}")
    if image == "gpu" and torch.version.cuda is None:
        return Line("FAIL", "GPU", f"{built} in the GPU image is a CPU build: build the image again")
    if image == "gpu":
        return Line("WARN", "GPU", f"none is seen by {built}; this image is for machines with {DRIVER}")
    if os.path.exists("/dev/nvidiactl"):
        return Line("WARN", "GPU", f"one is there, and {built} cannot use it: take the GPU image, with {DRIVER}")
    return Line("OK", "GPU", f"none; {built}")
