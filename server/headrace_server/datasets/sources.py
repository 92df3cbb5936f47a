"""What RegisterDataset may read: files and folders of images below the folders that the settings allow.

Blocks: call it in a thread.  Links are resolved before the path is compared with the allowed folders, and none is
followed after that, so that a link put in place meanwhile leads nowhere.
"""

import errno
import os
import stat
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.formats.image_archive import is_junk
from headrace_server.datasets.formats.names import is_clean, shown
from headrace_server.errors import InvalidDataset, InvalidSpec, StorageFull, TooLarge, Unsupported, Violation
from headrace_server.settings import DatasetSettings

LONGEST_URI = 4096
DEEPEST = 3
BLOCK_BYTES = 1 << 20
# The same folder must give the same bytes every time, so nothing of an entry but its path and content may matter.
_TIME = (1980, 1, 1, 0, 0, 0)


def locate(uri: str, roots: Sequence[Path]) -> Path:
    """The file or folder that a URI names, with all links resolved.

    Raises Unsupported for other schemes than file, InvalidSpec for what is malformed, missing, or not allowed.
    """
    path = _parse(uri)
    try:
        resolved = path.resolve()
        is_allowed = any(resolved.is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is too long
        raise _wrong_uri(f"cannot be followed to a file: {error}") from error
    if not is_allowed:
        now = "" if roots else ", which names none now"
        raise _wrong_uri(f"must lie below one of the folders of the server's setting datasets.roots{now}")
    if not resolved.exists():
        raise _wrong_uri("names nothing that exists")
    return resolved


def open_file(path: Path) -> BinaryIO:
    """Open a file that `locate` found.  Raises InvalidSpec for what is not a file or may not be read."""
    with _blame_uri(), _open_folder(path.parent) as folder:
        return _open_regular(path.name, folder)


def pack_images(folder: Path, archive: Path, settings: DatasetSettings, stop: threading.Event) -> None:
    """Write a folder with one folder of images for each class into a zip archive: same images, same bytes.

    Raises InvalidSpec when it may not be read, InvalidDataset for links and other strange files, TooLarge, StorageFull.
    Ends early, with an archive of no use, when `stop` is set.
    """
    num_files = num_bytes = 0
    with _blame_uri(), _open_folder(folder) as top, zipfile.ZipFile(archive, "x", zipfile.ZIP_STORED) as packed:
        for path, name, parent in _files(top, ""):
            if stop.is_set():
                return
            with _open_regular(name, parent) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                num_files += 1
                num_bytes += size_bytes
                _check_limits(num_files, num_bytes, settings)
                _pack(packed, path, file, size_bytes)


def _parse(uri: str) -> Path:
    if len(uri) > LONGEST_URI:
        raise _wrong_uri(f"has more than {LONGEST_URI} characters")
    try:
        parts = urlsplit(uri)
        path = unquote(parts.path, errors="strict")
    except ValueError as error:
        raise _wrong_uri(f"is malformed: {error}") from error
    if parts.scheme and parts.scheme != "file":
        raise Unsupported(f"the URI scheme {parts.scheme!r}", "use file:///path, or upload the content")
    if not parts.scheme or parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise _wrong_uri("must be of the form file:///path")
    if parts.query or parts.fragment:
        raise _wrong_uri("must have neither ? nor #; write %3F and %23 in a path")
    if "\0" in path:
        raise _wrong_uri("has a zero byte")
    return Path(path)


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """Open a folder step by step from the root, following no link."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(path.anchor, flags)
    try:
        for part in path.parts[1:]:
            inner = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _open_regular(name: str, folder: int) -> BinaryIO:
    # Opening a pipe would wait for somebody to write to it.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _wrong_uri(f"leads to {shown(name)}, which is not a file")
    return os.fdopen(descriptor, "rb", buffering=0)


def _files(folder: int, prefix: str) -> Iterator[tuple[str, str, int]]:
    """All files below a folder in the order of their paths: path, name, descriptor of the folder it is in."""
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        with os.scandir(listing) as entries:
            found = sorted((entry for entry in entries if not is_junk(entry.name)), key=lambda entry: entry.name)
        for entry in found:
            path = f"{prefix}{entry.name}"
            if not is_clean(path):
                raise _invalid(f"the name {shown(path)} is too long, or not readable text")
            if entry.is_symlink():
                raise _invalid(f"{shown(path)} is a link; only files of the folder itself are taken")
            if not entry.is_dir(follow_symlinks=False):
                yield path, entry.name, listing
                continue
            if path.count("/") + 1 >= DEEPEST:
                raise _invalid(
                    f"{shown(path)} is too deep: images must lie in a folder that is named after their class"
                )
            inner = os.open(entry.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=listing)
            try:
                yield from _files(inner, f"{path}/")
            finally:
                os.close(inner)
    finally:
        os.close(listing)


def _pack(packed: zipfile.ZipFile, path: str, file: BinaryIO, size_bytes: int) -> None:
    entry = zipfile.ZipInfo(path, _TIME)
    entry.create_system, entry.external_attr, entry.file_size = 3, 0o644 << 16, size_bytes
    with packed.open(entry, "w") as target:
        left_bytes = size_bytes
        while left_bytes and (block := file.read(min(BLOCK_BYTES, left_bytes))):
            target.write(block)
            left_bytes -= len(block)


def _check_limits(num_files: int, num_bytes: int, settings: DatasetSettings) -> None:
    if num_files > settings.max_archive_entries:
        raise _invalid(
            f"the folder has more than {settings.max_archive_entries:,} files, the limit of the setting "
            "datasets.max_archive_entries"
        )
    if num_bytes > settings.max_upload_bytes:
        raise TooLarge("dataset", settings.max_upload_bytes, "datasets.max_upload_bytes")


@contextmanager
def _blame_uri() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(0) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _wrong_uri("names what the server may not read") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise _wrong_uri("names what is not there any more, or is not a file") from error
        raise


def _wrong_uri(problem: str) -> InvalidSpec:
    return InvalidSpec([Violation("uri", problem)])


def _invalid(problem: str) -> InvalidDataset:
    return InvalidDataset(problem, DatasetFormat.IMAGE_ZIP)
