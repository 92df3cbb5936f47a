"""A zip archive with one folder of images for each class, at the top or in a single common folder.

What operating systems leave in archives is passed over: hidden files, `__MACOSX`, thumbnails.  Everything else that is
not an image of a class is refused by name, so that nothing is left out unnoticed.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from headrace_server.datasets.dataset import DatasetFormat, Description
from headrace_server.datasets.formats.archive import check_archive, open_archive
from headrace_server.datasets.formats.names import shown, words
from headrace_server.errors import InvalidDataset
from headrace_server.settings import DatasetSettings

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
MAX_PIXELS = 64 << 20
MAX_IMAGE_BYTES = 256 << 20
MAX_CLASSES = 100_000
_DECODERS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
# What Pillow's decoders raise for bytes in memory that are not what they should be.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, OverflowError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class _Picture:
    class_name: str
    entry_name: str


def inspect(path: Path, settings: DatasetSettings) -> Description:
    """Read every byte, and the header of every image.  Raises InvalidDataset, which names the file, or TooLarge."""
    check_archive(path, DatasetFormat.IMAGE_ZIP, settings)
    with open_archive(path, DatasetFormat.IMAGE_ZIP) as archive:
        pictures = _pictures(archive)
        class_names = sorted({picture.class_name for picture in pictures})
        if not pictures:
            raise _invalid(f"there are no images; known endings are {', '.join(ENDINGS)}")
        if len(class_names) < 2:
            raise _invalid(f"there is only one class, {shown(class_names[0])}; at least two are needed")
        if len(class_names) > MAX_CLASSES:
            raise _invalid(f"there are {len(class_names):,} classes, and at most {MAX_CLASSES:,} are allowed")
        for picture in pictures:
            content = _content(archive, picture)
            with _open(content, picture) as image:
                _check_header(image, picture)
    return Description(num_rows=len(pictures), class_names=tuple(class_names))


def read_images(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Every image with the name of its class, decoded, sorted by class and file name.

    The mode ("L", "RGB", "P"…) is the file's own.  Raises InvalidDataset, which names the file, for a damaged image.
    """
    with open_archive(path, DatasetFormat.IMAGE_ZIP) as archive:
        for picture in _pictures(archive):
            with _open(_content(archive, picture), picture) as image:
                _check_header(image, picture)
                _decode(image, picture)
                yield picture.class_name, image


def list_classes(path: Path) -> list[str]:
    """The name of the class of every image, in the order of `read_images`, without decoding any."""
    with open_archive(path, DatasetFormat.IMAGE_ZIP) as archive:
        return [picture.class_name for picture in _pictures(archive)]


def _pictures(archive: zipfile.ZipFile) -> list[_Picture]:
    paths = [entry.filename.split("/") for entry in archive.infolist() if not entry.is_dir()]
    paths = [parts for parts in paths if not any(is_junk(part) for part in parts)]
    tops = {parts[0] for parts in paths}
    num_above = 1 if len(tops) == 1 and all(len(parts) == 3 for parts in paths) else 0
    pictures = []
    for parts in paths:
        name = "/".join(parts)
        if not parts[-1].lower().endswith(ENDINGS):
            raise _invalid(f"{shown(name)} is not an image; known endings are {', '.join(ENDINGS)}", entry=shown(name))
        if len(parts) != num_above + 2:
            raise _invalid(
                f"{shown(name)} must lie in a folder that is named after its class, as in cat/1.png", entry=shown(name)
            )
        pictures.append(_Picture(parts[num_above], name))
    return sorted(pictures)


def is_junk(part: str) -> bool:
    """Whether a file or folder of this name is what operating systems leave behind."""
    return part.startswith(".") or part.lower() in _JUNK


def _content(archive: zipfile.ZipFile, picture: _Picture) -> bytes:
    if archive.getinfo(picture.entry_name).file_size > MAX_IMAGE_BYTES:
        raise _damaged(picture, f"is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return archive.read(picture.entry_name)


def _open(content: bytes, picture: _Picture) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_DECODERS)
    except _DAMAGED as error:
        raise _damaged(picture, "cannot be read as an image") from error


def _check_header(image: Image.Image, picture: _Picture) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _damaged(picture, f"has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are allowed")


def _decode(image: Image.Image, picture: _Picture) -> None:
    try:
        image.load()
    except _DAMAGED as error:
        raise _damaged(picture, f"is damaged: {words(error)}") from error


def _damaged(picture: _Picture, problem: str) -> InvalidDataset:
    return _invalid(f"{shown(picture.entry_name)} {problem}", entry=shown(picture.entry_name))


def _invalid(problem: str, **metadata: object) -> InvalidDataset:
    return InvalidDataset(problem, DatasetFormat.IMAGE_ZIP, **metadata)
