"""The key of a section: a hash of everything but the budget that a plan was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pshard.registry.format import STRATEGIES

if TYPE_CHECKING:
    from pshard.registry.format import Settings

_OFFSET, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def fingerprint(settings: Settings, file_bytes: int) -> int:
    """Hash the settings of a run as the pull request does, eight bytes at a time.

    Parameters
    ----------
    settings : Settings
        `n_ctx` as given on the command line: 0 stays 0. A strategy that is none of the four counts as none forced.
    file_bytes : int
        Of the first part of the model.

    Returns
    -------
    int
        64 bits.
    """
    strategy = STRATEGIES.index(settings.strategy) if settings.strategy in STRATEGIES else -1
    value = _OFFSET
    for number in (
        settings.n_ctx,
        settings.n_seq_max,
        settings.n_threads,
        settings.flash_attn,
        settings.type_k,
        settings.type_v,
        file_bytes,
        strategy,
    ):
        value = (value ^ (number & _MASK)) * _PRIME & _MASK
    return value
