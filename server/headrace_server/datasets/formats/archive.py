"""Zip files from strangers: what is looked at before anything is unpacked.

Nothing here writes to disk.  Every entry is checked by its listing first (names, kinds, sizes) and by its bytes when it
is read: `zipfile` compares length and checksum with the listing at the end of an entry.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.formats.names import LONGEST_NAME, is_clean, shown, words
from headrace_server.errors import InvalidDataset, TooLarge
from headrace_server.settings import DatasetSettings

# Others take as much memory as the archive likes (LZMA), or are never met.
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}

# The layout of PKWARE's APPNOTE 6.3, sections 4.3.12 to 4.3.16.
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64_BYTES = 20
_ENTRY_MAGIC = b"PK\x01\x02"
_LISTED_BYTES = 256
"""How much of the listing an entry may take on average: 46, its path, and a few times and owners."""


@contextmanager
def open_archive(path: Path, format: DatasetFormat) -> Iterator[zipfile.ZipFile]:  # noqa: A002 - the contract's word
    """Open a zip file.  Whatever is wrong with it, now or when an entry is read, becomes InvalidDataset."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, OverflowError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise InvalidDataset(f"the zip archive is damaged: {words(error)}", format) from error


def check_archive(path: Path, format: DatasetFormat, settings: DatasetSettings) -> None:  # noqa: A002
    """Raise InvalidDataset or TooLarge for an archive that is unsafe to open, or unpacks to more than is allowed."""
    _check_listing(path, format, settings.max_archive_entries)
    with open_archive(path, format) as archive:
        seen: set[str] = set()
        for entry in archive.infolist():
            if problem := _problem(entry, seen):
                name = shown(entry.orig_filename)
                raise InvalidDataset(f"the entry {name} {problem}", format, entry=name)
            seen.add(entry.filename)
        if sum(entry.file_size for entry in archive.infolist()) > settings.max_unpacked_bytes:
            raise TooLarge("unpacked data set", settings.max_unpacked_bytes, "datasets.max_unpacked_bytes")


def _problem(entry: zipfile.ZipInfo, seen: set[str]) -> str:
    parts = entry.filename.removesuffix("/").split("/")
    problems = {
        "appears twice": entry.filename in seen,
        "is encrypted": bool(entry.flag_bits & 0x1),
        "lies outside of the archive": entry.header_offset < 0,
        "is a symbolic link": stat.S_ISLNK(entry.external_attr >> 16),
        "leads out of the archive": ".." in parts or entry.filename.startswith("/") or entry.filename[1:2] == ":",
        "has an empty part in its name": "" in parts or "." in parts,
        "has a backslash in its name": "\\" in entry.orig_filename,
        f"has control characters or more than {LONGEST_NAME} of any kind in its name": not is_clean(
            entry.orig_filename
        ),
        "is compressed in another way than deflate": entry.compress_type not in _COMPRESSIONS,
    }
    return next((problem for problem, is_true in problems.items() if is_true), "")


def _check_listing(path: Path, format: DatasetFormat, max_entries: int) -> None:  # noqa: A002
    """Opening an archive makes an object of every entry that its listing names, so count them before that."""
    with path.open("rb") as file:
        for start, num_bytes in _listings(file):
            if num_bytes > (max_entries + 256) * _LISTED_BYTES or _count(file, start, num_bytes) > max_entries:
                raise InvalidDataset(
                    f"the archive has more than {max_entries:,} entries, the limit of the setting "
                    "datasets.max_archive_entries",
                    format,
                )


def _listings(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where `zipfile` may look for the listing: offset and length.  Nothing where there is no end record."""
    size_bytes = file.seek(0, 2)
    tail_at = max(0, size_bytes - _END.size - 65_536)
    file.seek(tail_at)
    tail = file.read()
    for at in {len(tail) - _END.size, tail.rfind(b"PK\x05\x06")}:
        if at < 0 or len(tail) - at < _END.size:
            continue
        magic, *_, num_bytes, _, _ = _END.unpack_from(tail, at)
        if magic != b"PK\x05\x06":
            continue
        yield tail_at + at - num_bytes, num_bytes
        end_64_at = tail_at + at - _LOCATOR_64_BYTES - _END_64.size
        if end_64_at >= 0:
            file.seek(end_64_at)
            magic, *_, num_bytes, _ = _END_64.unpack(file.read(_END_64.size))
            if magic == b"PK\x06\x06":
                yield end_64_at - num_bytes, num_bytes


def _count(file: BinaryIO, start: int, num_bytes: int) -> int:
    file.seek(max(0, start))
    return file.read(num_bytes).count(_ENTRY_MAGIC)
