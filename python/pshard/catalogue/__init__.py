"""Published models by name: plan ``llama-3.3-70b:Q4_K_M`` without a download.

A name is ``MODEL:QUANTISATION``. What comes back is what the header of the published file holds: hyperparameters,
tensor names, shapes and types. Vocabulary arrays are not shipped; their length and approximate size are.
"""

from pshard.catalogue.published import Entry, entries, header, names, resolve
from pshard.catalogue.skeleton import write_skeleton

__all__ = ["Entry", "entries", "header", "names", "resolve", "write_skeleton"]
