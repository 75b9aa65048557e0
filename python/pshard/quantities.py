"""Sizes, rates and times as people write them: ``24G``, ``100Gbit/s``, ``2us``."""

from __future__ import annotations

import re

from pshard.errors import SettingError

MIB, GIB = 1 << 20, 1 << 30
# More than any memory has, and few enough to be summed.
MAX_BYTES = 1 << 50

_BINARY = {"": 30, "b": 0, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30, "t": 40, "tib": 40}
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "µs": 1e6, "μs": 1e6, "ns": 1e9}
_NUMBER = r"(\d{1,15}(?:\.\d{1,15})?)"


def parse_bytes(text: str | float) -> int:
    """Bytes of ``12G``, ``12GiB``, ``12288M``, ``1.5T``, ``4096B`` or ``12``, which is GiB as well.

    Raises
    ------
    SettingError
        None of these, or more than `MAX_BYTES`.
    """
    found = re.fullmatch(_NUMBER + r"\s*([a-z]*)", str(text).strip().lower())
    if not found or found[2] not in _BINARY:
        message = f"{text!r} is not a size; examples: 12G, 12GiB, 12288M, 11.5 (GiB where no unit is given)"
        raise SettingError(message)
    n_bytes = round(float(found[1]) * (1 << _BINARY[found[2]]))
    if n_bytes > MAX_BYTES:
        message = f"{text!r} is more than any memory has; at most {MAX_BYTES >> 40}T"
        raise SettingError(message)
    return n_bytes


def parse_rate(text: str) -> float:
    """Bytes/s of ``300GB/s``, ``100Gbit/s``, ``100Gb/s`` or ``100Gbps``; prefixes are powers of ten.

    Raises
    ------
    SettingError
        None of these; a capital B is bytes, a small b bits.
    """
    found = re.fullmatch(_NUMBER + r"\s*([kKMGT]?)(B/s|bit/s|b/s|bps)", str(text).strip())
    if not found:
        message = f"{text!r} is not a rate; examples: 300GB/s (bytes), 100Gbit/s, 100Gb/s or 100Gbps (bits)"
        raise SettingError(message)
    return float(found[1]) * _PREFIX[found[2]] / (1.0 if found[3] == "B/s" else 8.0)


def parse_seconds(text: str) -> float:
    """Seconds of ``2us``, ``0.1ms`` or ``300ns``.

    Raises
    ------
    SettingError
        None of these.
    """
    found = re.fullmatch(_NUMBER + r"\s*([a-zµμ]+)", str(text).strip())
    if not found or found[2] not in _PER_SECOND:
        message = f"{text!r} is not a time; examples: 2us, 0.1ms, 300ns"
        raise SettingError(message)
    return float(found[1]) / _PER_SECOND[found[2]]
