"""Memory that stays: freed pages that the C library keeps for the next tensor."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def can_keep_pages() -> bool:
    """Whether the C library of this process can be told to keep freed memory."""
    return platform.libc_ver()[0] == "glibc"


def keep_pages() -> str:
    """Has glibc keep freed memory for the rest of the process; says what was done.

    By default every large tensor is mapped anew and its pages are zeroed by the system when they
    are first touched, which costs several times what a neuron layer does with them, and given back
    when it is freed. Afterwards they come from memory that the process keeps: it holds as much as
    it ever used at once. The same as ``MALLOC_MMAP_MAX_=0`` and a huge ``MALLOC_TRIM_THRESHOLD_``
    in the environment. On other systems nothing is done, and the answer says so.

    Raises:
        RuntimeError: glibc refused.
    """
    if not can_keep_pages():
        return f"freed memory is not kept: the C library of {platform.system()} cannot be told to"
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)):
        raise RuntimeError("mallopt of glibc refused to keep freed pages")
    return (
        "freed memory is kept: malloc maps nothing by itself (M_MMAP_MAX = 0) and gives nothing "
        "back (M_TRIM_THRESHOLD = -1)"
    )
