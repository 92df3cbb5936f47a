import io
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from headrace_server.datasets.dataset import DatasetFormat, Description
from headrace_server.datasets.formats import image_archive
from headrace_server.datasets.inspection import inspect
from headrace_server.datasets.reading import read_columns, read_images
from headrace_server.errors import InvalidDataset, TooLarge
from headrace_server.settings import DatasetSettings
from tests.doubles import contents
from tests.doubles.contents import archive, png, two_classes


def inspected(folder: Path, content: bytes, limits: DatasetSettings = DatasetSettings()) -> Description:  # noqa: B008
    (folder / "a.zip").write_bytes(content)
    return inspect(folder / "a.zip", DatasetFormat.IMAGE_ZIP, limits)


def encoded(format: str, mode: str = "RGB") -> bytes:  # noqa: A002 - Pillow's word
    target = io.BytesIO()
    Image.new(mode, (5, 4)).save(target, format)
    return target.getvalue()


def promising(width: int, height: int) -> bytes:
    """A PNG whose header says it is larger than it is."""
    header = b"IHDR" + struct.pack(">2I", width, height) + b"\x08\0\0\0\0"
    return png()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]


def test_folders_are_classes(tmp_path: Path) -> None:
    description = inspected(tmp_path, archive(two_classes()))

    assert description == Description(num_rows=4, class_names=("cat", "dog"))


def test_images_come_decoded_and_in_the_order_of_their_names_whatever_the_order_in_the_archive(tmp_path: Path) -> None:
    inspected(tmp_path, archive(dict(reversed(two_classes().items()))))

    found = [(name, image.getpixel((0, 0)), image.size) for name, image in read_images(tmp_path / "a.zip")]

    assert found == [("cat", 10, (8, 6)), ("cat", 20, (8, 6)), ("dog", 30, (8, 6)), ("dog", 40, (8, 6))]


def test_a_single_common_folder_and_what_systems_leave_behind_are_passed_over(tmp_path: Path) -> None:
    entries = {f"pets/{name}": content for name, content in two_classes().items()}
    junk = {
        "__MACOSX/pets/cat/._1.png": b"junk",
        "pets/.DS_Store": b"junk",
        "pets/cat/Thumbs.db": b"junk",
        "pets/cat/": b"",
        "pets/.git/config": b"junk",
        "desktop.ini": b"junk",
    }

    assert inspected(tmp_path, archive({**junk, **entries})).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("ending", "format"),
    [("png", "PNG"), ("JPG", "JPEG"), ("jpeg", "JPEG"), ("bmp", "BMP"), ("gif", "GIF"), ("webp", "WEBP")],
)
def test_every_named_ending_can_be_read(tmp_path: Path, ending: str, format: str) -> None:  # noqa: A002
    inspected(tmp_path, archive({f"a/1.{ending}": encoded(format), f"b/1.{ending}": encoded(format)}))

    assert [(name, image.size) for name, image in read_images(tmp_path / "a.zip")] == [("a", (5, 4)), ("b", (5, 4))]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "there are no images; known endings are .bmp, .gif"),
        ({"a/1.png": png(), "a/2.png": png()}, "only one class, 'a'"),
        ({"1.png": png(), "a/1.png": png()}, "'1.png' must lie in a folder"),
        ({"train/a/1.png": png(), "test/a/1.png": png()}, "must lie in a folder that is named after its class"),
        ({"a/x/1.png": png(), "b/1.png": png()}, "'a/x/1.png' must lie in a folder"),
        ({**two_classes(), "cat/notes.txt": b""}, "'cat/notes.txt' is not an image; known endings are"),
        ({**two_classes(), "cat/noending": b""}, "'cat/noending' is not an image"),
        ({**two_classes(), "cat/3.png": b"not an image"}, "'cat/3.png' cannot be read as an image"),
        ({**two_classes(), "cat/3.png": b""}, "'cat/3.png' cannot be read as an image"),
        ({**two_classes(), "cat/3.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "cannot be read"),
        ({**two_classes(), "cat/3.png": encoded("TIFF")}, "cannot be read as an image"),
        ({**two_classes(), "cat/3.png": promising(9000, 9000)}, "9000 x 9000 pixels, and at most 67,108,864"),
        ({**two_classes(), "cat/3.png": promising(1 << 20, 100)}, "1048576 x 100 pixels|cannot be read"),
        ({**two_classes(), "cat/3.png": promising(1 << 30, 1 << 30)}, "pixels|cannot be read"),
        ({**two_classes(), "../cat/3.png": png()}, "'../cat/3.png' leads out of the archive"),
        ({**two_classes(), "cat/../../3.png": png()}, "leads out of the archive"),
        ({**two_classes(), "/cat/3.png": png()}, "leads out of the archive"),
        ({**two_classes(), "C:/3.png": png()}, "leads out of the archive"),
        ({**two_classes(), "cat\\3.png": png()}, "has a backslash"),
        ({**two_classes(), "cat//3.png": png()}, "has an empty part"),
        ({**two_classes(), "./cat/3.png": png()}, "has an empty part"),
        ({**two_classes(), "cat/\n.png": png()}, "has control characters"),
        ({**two_classes(), f"cat/{'x' * 2000}.png": png()}, "more than 1024"),
    ],
)
def test_what_is_not_an_image_of_a_class_is_refused_by_name(
    tmp_path: Path, entries: dict[str, bytes], said: str
) -> None:
    with pytest.raises(InvalidDataset, match=said):
        inspected(tmp_path, archive(entries))


def test_a_link_is_refused(tmp_path: Path) -> None:
    target = io.BytesIO(archive(two_classes()))
    with zipfile.ZipFile(target, "a") as packed:
        link = zipfile.ZipInfo("cat/3.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")

    with pytest.raises(InvalidDataset, match=r"'cat/3\.png' is a symbolic link"):
        inspected(tmp_path, target.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    target = io.BytesIO(archive(two_classes()))
    with zipfile.ZipFile(target, "a") as packed:
        packed.writestr("cat/1.png", png(99))

    with pytest.raises(InvalidDataset, match=r"'cat/1\.png' appears twice"):
        inspected(tmp_path, target.getvalue())


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    content = bytearray(archive(two_classes()))
    at = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, at + 8, 0x1)

    with pytest.raises(InvalidDataset, match="is encrypted"):
        inspected(tmp_path, bytes(content))


def test_bytes_that_do_not_match_their_checksum_are_refused(tmp_path: Path) -> None:
    content = bytearray(archive(two_classes(), zipfile.ZIP_STORED))
    content[content.index(b"IDAT") + 6] ^= 0xFF

    with pytest.raises(InvalidDataset, match=r"damaged.*CRC"):
        inspected(tmp_path, bytes(content))


def test_an_image_that_is_cut_off_is_named_when_it_is_read(tmp_path: Path) -> None:
    target = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(target, "JPEG")
    inspected(tmp_path, archive({**two_classes(), "cat/3.jpg": target.getvalue()[:600]}))

    with pytest.raises(InvalidDataset, match=r"'cat/3\.jpg' is damaged"):
        list(read_images(tmp_path / "a.zip"))


def test_more_entries_than_allowed_are_refused_before_they_are_looked_at(tmp_path: Path) -> None:
    limits = DatasetSettings(max_archive_entries=4)
    assert inspected(tmp_path, archive(two_classes()), limits).num_rows == 4

    with pytest.raises(InvalidDataset, match=r"more than 4 entries.*datasets\.max_archive_entries"):
        inspected(tmp_path, archive({**two_classes(), "cat/": b""}), limits)


def test_a_listing_larger_than_its_entries_could_need_is_refused(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as packed:
        for name, content in two_classes().items():
            entry = zipfile.ZipInfo(name)
            entry.comment = b"x" * 60_000
            packed.writestr(entry, content)

    with pytest.raises(InvalidDataset, match=r"datasets\.max_archive_entries"):
        inspected(tmp_path, target.getvalue(), DatasetSettings(max_archive_entries=4))


def test_an_archive_in_the_large_format_is_counted_too(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as packed:
        for number in range(66_000):
            packed.writestr(zipfile.ZipInfo(f"a/{number}.png"), b"")
    assert b"PK\x06\x06" in target.getvalue()

    with pytest.raises(InvalidDataset, match="more than 65,999 entries"):
        inspected(tmp_path, target.getvalue(), DatasetSettings(max_archive_entries=65_999))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is(tmp_path: Path) -> None:
    bomb = archive({**two_classes(), "cat/3.bmp": bytes(32 << 20)})
    assert len(bomb) < 1 << 16

    with pytest.raises(TooLarge, match=r"datasets\.max_unpacked_bytes"):
        inspected(tmp_path, bomb, DatasetSettings(max_unpacked_bytes=16 << 20))


def test_an_image_file_larger_than_any_image_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_archive, "MAX_IMAGE_BYTES", 1 << 20)

    with pytest.raises(InvalidDataset, match=r"'cat/3\.bmp' is larger than 1 MiB"):
        inspected(tmp_path, archive({**two_classes(), "cat/3.bmp": bytes(2 << 20)}))


def test_images_are_not_columns(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="no columns"):
        read_columns(tmp_path / "a.zip", DatasetFormat.IMAGE_ZIP, [])


SOUND = archive(
    {**two_classes(), "cat/3.jpg": encoded("JPEG"), "dog/3.gif": encoded("GIF"), "dog/4.webp": encoded("WEBP")}
)


@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_damage_does_worse_than_being_refused(at: int, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            description = inspected(Path(folder), SOUND[:at] + damage + SOUND[at + len(damage) :])
            assert sum(1 for _ in read_images(Path(folder) / "a.zip")) == description.num_rows
        except (InvalidDataset, TooLarge):
            pass


IMAGES = [png(7, 40, 30), encoded("JPEG"), encoded("GIF", "P"), encoded("WEBP"), encoded("BMP")]


@given(st.sampled_from(IMAGES), st.integers(0, 2000), st.binary(min_size=1, max_size=6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_damaged_image_does_worse_than_being_refused(image: bytes, at: int, damage: bytes, is_cut: bool) -> None:
    at %= len(image)
    damaged = image[:at] + damage + (b"" if is_cut else image[at + len(damage) :])
    with tempfile.TemporaryDirectory() as folder:
        try:
            description = inspected(Path(folder), contents.archive({**two_classes(), "cat/3.png": damaged}))
            assert sum(1 for _ in read_images(Path(folder) / "a.zip")) == description.num_rows
        except InvalidDataset as error:
            told = str(error)
        else:
            told = "cat/3.png is sound"
    assert "cat/3.png" in told
