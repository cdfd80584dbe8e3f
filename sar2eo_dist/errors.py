"""Every error a user can meet, by name. Each message carries the offending value and the URI."""

from __future__ import annotations


class Sar2EoError(Exception):
    """Base of all named errors of this package."""


class ConfigError(Sar2EoError):
    """A setting is unknown, missing or impossible. Raised before anything starts."""


class NothingYet(ConfigError):
    """There is nothing to work on: no scene in the range of dates, no tile to grade with. A scheduled run goes on."""


class StorageError(Sar2EoError):
    """An object-store operation failed. `uri` names the object."""

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(f"{message}: {uri}")
        self.uri = uri
        self.message = message

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return type(self), (self.uri, self.message)


class NotFound(StorageError):
    """No such object or bucket."""


class AccessDenied(StorageError):
    """The store refused the credentials (or there are none)."""


class Unavailable(StorageError):
    """The store did not answer after all retries; another attempt may succeed."""


class NotSaved(Unavailable):
    """No checkpoint could be written for so long that a training stopped; it goes on from the last one."""


class StorageFull(StorageError):
    """There is no room to write: disk full, quota used up, or read-only."""


class LeaseHeld(StorageError):
    """Another job works in this run folder."""


class LeaseLost(StorageError):
    """Another job has taken this run folder over while this one could not renew its lease."""


class Corrupt(StorageError):
    """An object's bytes are not those that were written: cut short, a flipped bit, or an index that disagrees."""


class SourceChanged(StorageError):
    """An input is no longer the one that was listed: its size, ETag or mtime differ."""


class BadInput(Sar2EoError):
    """One input is unusable: it is rejected with `reason` and the run goes on.

    reason: one of `records.REASONS`; uri: the file; detail: the offending value in words.
    """

    def __init__(self, reason: str, uri: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}: {uri}")
        self.reason, self.uri, self.detail = reason, uri, detail

    def __reduce__(self) -> tuple[object, tuple[str, str, str]]:
        return type(self), (self.reason, self.uri, self.detail)


class AlignmentError(Sar2EoError):
    """A write does not cover whole storage objects; the message gives the numbers."""


class AuditError(Sar2EoError):
    """A ledger entry's data is missing or differs from its recorded sha256."""


class ModelError(Sar2EoError):
    """A network was given input, options or weights that do not fit it."""


class NonFinite(ModelError):
    """A loss or a gradient is NaN or infinite; the weights are still those of the step before."""


class ReferenceSetError(Sar2EoError):
    """A Frechet reference set is too small, or was made by another extractor."""


class KeptOutOfBounds(Sar2EoError):
    """Stage 3 keeps a smaller or larger share of the tiles than the config allows: no pair may be used."""


class TooManyFailures(Sar2EoError):
    """More units failed than `run.tolerance` allows; the message names the first of them."""
