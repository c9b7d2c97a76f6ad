"""What treadle raises on purpose, and how it warns.

::

    TreadleError
    +-- ConfigError      the settings contradict each other or the machine (also a ValueError)
    +-- ModuleError      a Module or DataModule lacks something, or returns what a loop can't use (also a TypeError)
    +-- DataError        a loader gives no batch, or batches of unknown size
    +-- TrainingError    the numbers went wrong: a loss that is not finite
    +-- DistributedError a rank failed, did not come, or did something else than the others
    +-- CheckpointError  a checkpoint is missing, damaged or not ours

Every message has three parts: the fact, the rule behind it, and what to type.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from difflib import get_close_matches


class TreadleError(Exception):
    """Base class of every error raised on purpose.

    Args:
        what: The fact, with the offending value in it.
        why: The rule that was broken, in the user's terms.
        fix: One thing to type, first.
    """

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        super().__init__(f"{what}\n  why: {why}\n  fix: {fix}")
        self.what, self.why, self.fix = what, why, fix

    def __reduce__(self) -> tuple[object, ...]:
        # An exception crosses process borders by its constructor's arguments, and these are keywords.
        return (_rebuild, (type(self), self.what, self.why, self.fix))


def _rebuild(cls: type[TreadleError], what: str, why: str, fix: str) -> TreadleError:
    return cls(what, why=why, fix=fix)


class ConfigError(TreadleError, ValueError):
    """The settings contradict each other or the machine. Raised before any training starts."""


class ModuleError(TreadleError, TypeError):
    """A Module or DataModule lacks something, or returned something a loop can't use."""


class DataError(TreadleError):
    """A loader gives no batch, or batches whose size can't be known."""


class TrainingError(TreadleError):
    """The numbers went wrong while training."""


class DistributedError(TreadleError):
    """A rank failed, did not come, or did something else than the others."""


class CheckpointError(TreadleError):
    """A checkpoint is missing, damaged, or not one this version can continue from."""


class TreadleWarning(UserWarning):
    """Something works differently from what one may expect. Each carries a code: ``treadle[code]: ...``."""


def warn(code: str, message: str) -> None:
    """Warn once, with a code: ``warnings.filterwarnings("ignore", message=r"treadle\\[code\\]")`` mutes it."""
    warnings.warn(f"treadle[{code}]: {message}", TreadleWarning, stacklevel=3)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known name, or all of them.

    >>> nearest("adamm", ["adam", "sgd"])
    "did you mean 'adam'?"
    >>> nearest("x", ["adam", "sgd"])
    "use one of 'adam', 'sgd'."
    """
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(map(repr, known))}."
