"""Memory of the process, as its C library keeps it."""

import ctypes


def give_back() -> None:
    """Give memory that was freed back to the system; only glibc knows how, and others need not.

    It keeps what lies between blocks that are still in use: after a start, as much as was read.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
