"""Units of work: plan -> commit -> audit.

A unit owns whole storage objects. Once they are durable its entry `ledger/<stage>/<unit id>.json` is created if absent:
that entry IS the completion. Data without an entry is overwritten; an entry without its data is an audit failure. The
outputs' digests in an entry depend on inputs and config alone; seconds and attempt do not, and nothing reads them back
into a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sar2eo_dist import storage
from sar2eo_dist.errors import AuditError, NotFound
from sar2eo_dist.records import Artifact, Unit, digest


@dataclass(frozen=True, slots=True)
class Entry:
    """The completion of a unit. seconds: wall time of the attempt that completed; counts: what the stage counts; steps:
    seconds of each of its steps, where it has several that run apart."""

    unit: Unit
    outputs: tuple[Artifact, ...]
    seconds: float
    bytes_in: int = 0
    attempt: int = 1
    counts: dict[str, int] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_out(self) -> int:
        return sum(a.size for a in self.outputs)

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Entry:
        tree = json.loads(data)
        unit = Unit(**{k: tree["unit"][k] for k in ("stage", "key", "fingerprint", "inputs")})
        outputs = tuple(Artifact(**a) for a in tree["outputs"])
        more = tree["counts"], tree.get("steps", {})
        return cls(unit, outputs, tree["seconds"], tree["bytes_in"], tree["attempt"], *more)


@dataclass(frozen=True, slots=True)
class Fault:
    """One audit failure: which unit, which object, and what is wrong with it."""

    unit: Unit
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger of one run folder (any fsspec URI)."""

    root: str

    def _uri(self, stage: str, unit_id: str) -> str:
        return storage.join(self.root, "ledger", stage, f"{unit_id}.json")

    def done(self, stage: str) -> set[str]:
        """Ids of the completed units of a stage: one listing, whatever their number."""
        try:
            listed = storage.list_files(storage.join(self.root, "ledger", stage))
        except NotFound:
            return set()
        return {storage.name(i.uri)[:-5] for i in listed if i.uri.endswith(".json")}

    def commit(self, entry: Entry) -> bool:
        """Record a completion; False where another attempt already did (its outputs are equal by construction)."""
        return storage.put_if_absent(self._uri(entry.unit.stage, entry.unit.id), entry.to_json())

    def entry(self, unit: Unit) -> Entry:
        """The entry of a completed unit. Raises NotFound."""
        return Entry.from_json(storage.read_bytes(self._uri(unit.stage, unit.id)))

    def entries(self, units: Sequence[Unit]) -> list[Entry]:
        """Entries in the order of `units`; many small reads, so side by side."""
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.entry, units))

    def forget(self, units: Iterable[Unit]) -> None:
        """Take completions back (`--fresh`, or a failed audit): their data will be overwritten."""
        self.retract((unit.stage, unit.id) for unit in units)

    def retract(self, named: Iterable[tuple[str, str]]) -> None:
        """The same by (stage, id)."""
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: storage.delete(self._uri(*n)), named))

    def audit(self, units: Sequence[Unit], rehash: bool = True) -> list[Fault]:
        """What is wrong with the outputs of completed units: missing, another size, or (with `rehash`) another sha256.

        Sizes come from one listing of each folder that holds outputs, so a million objects are not asked for one by one.
        """
        entries = self.entries(units)
        sizes: dict[str, int] = {}
        for folder in sorted({_folder(a.path) for e in entries for a in e.outputs}):
            with contextlib.suppress(NotFound):
                listed = storage.list_files(storage.join(self.root, folder))
                sizes |= {_local(i.uri): i.size for i in listed}

        def check(entry: Entry) -> list[Fault]:
            found = [(a.path, _problem(storage.join(self.root, a.path), a, sizes, rehash)) for a in entry.outputs]
            return [Fault(entry.unit, path, problem) for path, problem in found if problem]

        with ThreadPoolExecutor(16) as pool:
            return [fault for faults in pool.map(check, entries) for fault in faults]


def _folder(path: str) -> str:
    """The folder to list for an output: of two levels where its path (below the run folder) has them."""
    if "://" in path or path.startswith("/"):
        return path.rpartition("/")[0]
    return "/".join(path.split("/")[:-1][:2])


def _local(uri: str) -> str:
    """One spelling of a URI that was joined or listed."""
    fs, path = storage.filesystem(uri)
    return str(fs.unstrip_protocol(path))


def _problem(uri: str, artifact: Artifact, sizes: Mapping[str, int], rehash: bool) -> str:
    size = sizes.get(_local(uri))
    if size is None:
        return "missing"
    if size != artifact.size:
        return f"size {size}, recorded {artifact.size}"
    if rehash:
        sha = hashlib.sha256()
        try:
            for piece in storage.chunks(uri):
                sha.update(piece)
        except NotFound:
            return "missing"
        if sha.hexdigest() != artifact.sha256:
            return f"sha256 {sha.hexdigest()[:12]}, recorded {artifact.sha256[:12]}"
    return ""


def outputs_digest(entries: Iterable[Entry]) -> str:
    """One digest of everything a set of units wrote: equal for equal results, whatever the schedule was."""
    return digest(sorted((a.path, a.size, a.sha256) for e in entries for a in e.outputs))


def require(faults: Sequence[Fault]) -> None:
    """Raise AuditError that names the first faults."""
    if faults:
        first = "; ".join(f"{f.path} {f.problem} (unit {f.unit.key})" for f in faults[:5])
        raise AuditError(f"{len(faults)} audit failure(s): {first}; --audit without --dry-run makes them again")
