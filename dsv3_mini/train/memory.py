"""Keep the memory of one training step for the next.

A step allocates and frees the same few hundred megabytes every time. glibc hands large blocks back to the system at
once and gets them again as untouched pages, each of which costs a trap and is filled with zeros: much of the time of
a small model's step. Two settings make it keep them. Elsewhere (macOS, musl) this does nothing.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_NEVER = 2**31 - 1
_OLD_LIMIT = 2**25  # the largest block that older versions agree to keep


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for this process; gives whether it agreed. Harmless to call again."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _NEVER) or mallopt(_M_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _NEVER))
