"""Every exception that rlx_ray raises on purpose.

::

    RlxError                      the root; carries what to do about it
    +-- ConfigError               a config, option or spec that is invalid (CLI exit 2)
    |   +-- UnknownModelError     a model name that the config does not have (HTTP 404)
    |   +-- InputError            a request that cannot be answered as it stands (HTTP 400)
    +-- CheckpointError           a source that is missing, damaged or lacks a tensor
    +-- CompileError              a variant that does not compile
    |   +-- ToolchainMissing      no toolchain for the target on this machine
    |   +-- ToolchainMismatch     the toolchain here is not the pinned one
    |   +-- BuildLimitError       a build took more time or memory than it may
    +-- StoreError                the store cannot be reached, read or written
    +-- ClusterError              Ray or its endpoint does not start, or a cluster cannot be joined
    +-- ArtifactError             an artifact that must not be used: torn, altered, foreign
    |   +-- FormatError           one that another version of rlx_ray wrote
    +-- Busy                      no executor takes more work now (HTTP 503)
    +-- DeviceError               a device that is not there, or refused a call (HTTP 503)
    |   +-- DeviceMemoryError     it has no room (HTTP 503, the load is shed)
    |   +-- DeviceLost            nothing works on it any more in this process (HTTP 503)
    +-- VariantMissing            aot mode and the store has no artifact (HTTP 503)
    +-- EngineError               a text engine that has been closed or has failed (HTTP 503)
    +-- VerifyError               an IR that breaks its level's rules: a bug in a pass

Messages name the field, the value and the remedy. `RlxError.remedy` holds the last part alone.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from dataclasses import dataclass


class RlxError(Exception):
    """Root of all errors of this package.

    Args:
        message: what is wrong, naming the field and the value.
        remedy: what to do about it, as one sentence.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def __reduce__(self) -> tuple[type[RlxError], tuple[str, str]]:
        return type(self), (self.message, self.remedy)


class ConfigError(RlxError):
    """A config, option or spec that is invalid."""


class UnknownModelError(ConfigError):
    """A model name that is not in the config."""


class InputError(ConfigError):
    """A request that cannot be answered as it stands."""


class CheckpointError(RlxError):
    """A checkpoint that is missing, damaged or lacks a tensor."""


class CompileError(RlxError):
    """A variant that does not compile."""


class ToolchainMissing(CompileError):
    """No toolchain for the target on this machine."""


class ToolchainMismatch(CompileError):
    """The toolchain on this machine is not the one that the BuildSpec pins."""


class BuildLimitError(CompileError):
    """A build took more time or memory than it may. A crash or a kill is none."""


class StoreError(RlxError):
    """The store cannot be reached, read or written."""


class ClusterError(RlxError):
    """Ray or its endpoint does not start, or a cluster is away or refuses this process."""


class ArtifactError(RlxError):
    """An artifact that must not be used: torn, altered, or made for something else."""


class FormatError(ArtifactError):
    """An artifact in the format of another version of rlx_ray: sound perhaps, but not ours."""


class Busy(RlxError):
    """No executor takes more work now."""


class DeviceError(RlxError):
    """A device is not there, has failed, or refused what it was asked."""


class DeviceMemoryError(DeviceError):
    """A device has no room for what was to be put there."""


class DeviceLost(DeviceError):
    """A device has failed in a way that only another process can use it again."""


class VariantMissing(RlxError):
    """The store has no artifact for a variant and the mode forbids compiling it."""


class EngineError(RlxError):
    """A text engine has been closed, or a step of it failed for a reason that is a bug."""


class VerifyError(RlxError):
    """An IR that breaks the rules of its level: a bug in the pass that made it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as plain data between processes: its class and its words."""

    kind: str
    message: str
    remedy: str

    @classmethod
    def of(cls, error: RlxError) -> Failure:
        """The failure that an error is."""
        return cls(type(error).__name__, error.message, error.remedy)

    def error(self) -> RlxError:
        """The error that a failure is; one of an unknown class is an RlxError."""
        kind = globals().get(self.kind, RlxError)
        known = isinstance(kind, type) and issubclass(kind, RlxError)
        return kind(self.message, self.remedy) if known else RlxError(self.message, self.remedy)


REPORT = "That is a fault of the compiler: report it with this line and the variant's config."
"""The remedy for what should not happen."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint such as `did you mean 'batch'?`, or the empty string.

    Args:
        word: what the user wrote.
        allowed: what would have been accepted.
    """
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


_CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")


def signalled(what: str, number: int, detail: str = "") -> CompileError:
    """The error for a part of the compiler that a signal ended, by no limit of this package.

    Args:
        what: which part.
        number: the signal.
        detail: more that is known of it, as a clause.
    """
    names = [s.name for s in signal.Signals if s == number]
    name = f"signal {number} ({names[0]})" if names else f"signal {number}"
    if number == signal.SIGKILL:
        how = "was killed (SIGKILL), not by a limit of rlx_ray"
        remedy = "The machine may have run out of memory: see its log, or build less at once."
    elif names and names[0] in _CRASHES:
        how = f"crashed: ended by {name}"
        remedy = REPORT
    else:
        how = f"was ended by {name} from outside"
        remedy = "Build again, and see who sent it."
    return CompileError(f"{what} {how}{detail and '; '}{detail}.", remedy)
