"""Keep freed memory in the process instead of returning it to the system."""

import ctypes
from functools import cache

# Names of glibc's malloc.h, and the largest value that it takes for each.
_TRIM_THRESHOLD, _NEVER = -1, 2**31 - 1
_MMAP_THRESHOLD, _MOST = -3, 32 * 2**20


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for what it allocates next. True if the C library can.

    Training and acting allocate activations, and free them all, again and again. glibc returns freed memory to the
    system, which hands it out again page by page, filled with zeros: a fifth of the time of a training step in
    bfloat16. What the process needs at most stays the same. Tensors above 32 MiB are still returned.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_THRESHOLD, _MOST))
