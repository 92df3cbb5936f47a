"""A folder on a disk that is nearly full, made as the rights of the user allow."""

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM_BYTES = 1 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def full_tmpfs(folder: Path) -> Iterator[bool]:
    """Mount a file system with about ROOM_BYTES of room on `folder`; yields False where that is forbidden."""
    options = f"size={ROOM_BYTES}".encode()
    is_mounted = _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            assert _LIBC.umount2(os.fsencode(folder), 2) == 0  # MNT_DETACH


@contextmanager
def small_files_only() -> Iterator[None]:
    """Let no file of this process grow beyond ROOM_BYTES: what a full disk is to those who may not mount one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
