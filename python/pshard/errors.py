"""What can go wrong, and the exit code that the command line gives it.

PshardError (1)
├── GgufError (1)           a file that is not a sound GGUF
├── ModelError (1)          a model that cannot be planned
├── MachineError (1)        a profile or hardware description that cannot be used
├── FileError (1)           a file that cannot be read or written
├── MetricsError (1)        latencies that cannot be had
├── DocumentError (1)       a document of this program that is missing, broken, or was changed meanwhile
├── EngineError (1)         a plan that an engine cannot run
├── SettingError (2)        an argument outside its range
└── NoFeasiblePlanError (3) nothing fits
"""

from __future__ import annotations


class PshardError(Exception):
    """Base of all errors that pshard raises on purpose. The message says what happened, why, and what to do."""

    exit_code = 1


class GgufError(PshardError):
    """A file is not a sound GGUF; the message carries file, offset, value and remedy."""


class ModelError(PshardError):
    """A sound file whose model cannot be planned."""


class MachineError(PshardError):
    """A machine profile or a hardware description that cannot be used."""


class FileError(PshardError):
    """A file that cannot be read, written or locked; the message carries its path and the system's reason."""


class MetricsError(PshardError):
    """Latencies that cannot be had: no file, no engine, or nothing in it that tells them."""


class DocumentError(PshardError):
    """A document that this program wrote, or should have written: missing, broken, or changed by another meanwhile."""


class EngineError(PshardError):
    """A plan that the engine which is to run it cannot run; the message says why."""


class SettingError(PshardError, ValueError):
    """An argument outside its range; the message names the argument and the rule."""

    exit_code = 2


class NoFeasiblePlanError(PshardError):
    """No placement fits.

    Attributes
    ----------
    missing_bytes : int
        Bytes by which the smallest placement exceeds the budget (VRAM or RAM, as the message says).
    """

    exit_code = 3

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes
