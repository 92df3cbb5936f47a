import asyncio
import os
from pathlib import Path

import pytest

from headrace_server.database.database import Database
from headrace_server.datasets.catalog import Catalog
from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.datasets.sources import open_file
from headrace_server.errors import InvalidDataset, InvalidSpec, TooLarge, Unsupported
from headrace_server.settings import DatasetSettings
from headrace_server.storage.local import LocalBlobStore
from tests.doubles import contents

TABLE = contents.csv("a,b", "1,x")


@pytest.fixture
def root(settings: DatasetSettings) -> Path:
    return settings.roots[0]


def write_images(folder: Path) -> None:
    for name, content in contents.two_classes().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


async def test_a_file_is_copied_and_its_uri_remembered(catalog: Catalog, store: LocalBlobStore, root: Path) -> None:
    (root / "my table.csv").write_bytes(TABLE)
    uri = f"file://{root}/my%20table.csv"

    version = await catalog.register("wine", uri, format=None)
    (root / "my table.csv").unlink()

    assert version.source_uri == uri
    assert version.format is DatasetFormat.CSV
    assert await store.get_bytes(version.blob_key) == TABLE


async def test_what_was_registered_and_what_was_uploaded_are_the_same_content(catalog: Catalog, root: Path) -> None:
    (root / "t.csv").write_bytes(TABLE)
    registered = await catalog.register("wine", f"file://localhost{root}/t.csv", format=None)

    again = await catalog.register("wine", f"file://{root}/../{root.name}/t.csv", format=DatasetFormat.CSV)

    assert again == registered


async def test_a_folder_of_images_is_packed_into_the_same_bytes_every_time(
    catalog: Catalog, root: Path, tmp_path: Path
) -> None:
    write_images(root / "first")
    first = await catalog.register("pets", f"file://{root}/first", format=None)
    for name, content in reversed(contents.two_classes().items()):
        (root / "second" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "second" / name).write_bytes(content)
        os.utime(root / "second" / name, (1, 1))
        (root / "second" / name).chmod(0o600)
    (root / "second" / ".DS_Store").write_bytes(b"junk")
    (root / "second" / "cat" / "Thumbs.db").write_bytes(b"junk")

    second = await catalog.register("pets", f"file://{root}/second/", format=DatasetFormat.IMAGE_ZIP)

    assert second == first
    assert first.description.class_names == ("cat", "dog")
    assert first.description.num_rows == 4
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("uri", ["s3://bucket/key", "https://example.com/t.csv", "hdfs:///x"])
async def test_other_schemes_are_refused_with_what_to_do_instead(catalog: Catalog, uri: str) -> None:
    with pytest.raises(Unsupported, match="file:///path, or upload"):
        await catalog.register("wine", uri, format=None)


@pytest.mark.parametrize(
    "uri",
    ["", "/etc/passwd", "file:etc", "file://other.host/etc/passwd", "file:///a?b", "file:///a#b", "file:///a%00b",
     "file:///%ff", "file://[::1", "file:///" + "a" * 5000, "file:///" + "a" * 300, "not a uri"],
)  # fmt: skip
async def test_a_malformed_uri_is_blamed_on_the_uri(catalog: Catalog, uri: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        await catalog.register("wine", uri, format=DatasetFormat.CSV)

    assert [violation.field for violation in caught.value.violations] == ["uri"]


async def test_nothing_outside_of_the_roots_is_read_or_found_out(catalog: Catalog, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_bytes(TABLE)
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "t.csv").write_bytes(TABLE)
    (root / "link.csv").symlink_to(tmp_path / "secret.csv")
    (root / "linked").symlink_to(tmp_path)
    outside = [
        f"{tmp_path}/secret.csv",
        f"{tmp_path}/missing.csv",
        f"{root}/../secret.csv",
        f"{root}/%2e%2e/secret.csv",
        f"{root}/link.csv",
        f"{root}/linked/secret.csv",
        f"{tmp_path}/root-beside/t.csv",
        "/",
    ]
    said = set()
    for path in outside:
        with pytest.raises(InvalidSpec, match=r"datasets\.roots") as caught:
            await catalog.register("wine", f"file://{path}", format=DatasetFormat.CSV)
        said.add(str(caught.value))

    assert len(said) == 1


async def test_without_roots_nothing_can_be_registered(
    database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    catalog = Catalog(database, store, DatasetSettings(), tmp_path / "scratch")
    (tmp_path / "t.csv").write_bytes(TABLE)

    with pytest.raises(InvalidSpec, match=r"datasets\.roots, which names none"):
        await catalog.register("wine", f"file://{tmp_path}/t.csv", format=None)


async def test_a_link_that_stays_below_a_root_is_followed(catalog: Catalog, root: Path) -> None:
    (root / "data").mkdir()
    (root / "data" / "v1.csv").write_bytes(TABLE)
    (root / "newest.csv").symlink_to(root / "data" / "v1.csv")

    assert (await catalog.register("wine", f"file://{root}/newest.csv", format=None)).size_bytes == len(TABLE)


async def test_a_root_may_itself_be_a_link(database: Database, store: LocalBlobStore, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "t.csv").write_bytes(TABLE)
    (tmp_path / "linked-root").symlink_to(tmp_path / "real")
    catalog = Catalog(database, store, DatasetSettings(roots=(tmp_path / "linked-root",)), tmp_path / "scratch")

    version = await catalog.register("wine", f"file://{tmp_path}/linked-root/t.csv", format=None)

    assert version.size_bytes == len(TABLE)


def test_a_link_put_in_place_after_the_check_is_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_bytes(TABLE)
    (root / "t.csv").symlink_to(tmp_path / "secret.csv")
    (root / "folder").symlink_to(tmp_path)

    for swapped in (root / "t.csv", root / "folder" / "secret.csv"):
        with pytest.raises(InvalidSpec, match="not there any more, or is not a file"):
            open_file(swapped)


async def test_what_is_missing_or_not_a_file_is_blamed_on_the_uri(catalog: Catalog, root: Path) -> None:
    os.mkfifo(root / "pipe.csv")
    (root / "loop").symlink_to(root / "loop")
    (root / "folder").mkdir()

    for name in ("missing.csv", "pipe.csv", "loop"):
        with pytest.raises(InvalidSpec) as caught:
            async with asyncio.timeout(60):
                await catalog.register("wine", f"file://{root}/{name}", format=DatasetFormat.CSV)
        assert caught.value.violations[0].field == "uri"
    with pytest.raises(InvalidSpec, match="a folder can only be IMAGE_ZIP"):
        await catalog.register("wine", f"file://{root}/folder", format=DatasetFormat.CSV)


async def test_a_link_inside_a_folder_of_images_is_refused(catalog: Catalog, root: Path, tmp_path: Path) -> None:
    write_images(root / "pets")
    (tmp_path / "secret.png").write_bytes(contents.png())
    (root / "pets" / "cat" / "3.png").symlink_to(tmp_path / "secret.png")

    with pytest.raises(InvalidDataset, match=r"'cat/3\.png' is a link"):
        await catalog.register("pets", f"file://{root}/pets", format=None)

    assert list((tmp_path / "scratch").iterdir()) == []


async def test_limits_hold_for_folders_too(
    database: Database, store: LocalBlobStore, root: Path, tmp_path: Path
) -> None:
    write_images(root / "pets")
    few = DatasetSettings(roots=(root,), max_archive_entries=3)
    small = DatasetSettings(roots=(root,), max_upload_bytes=200)

    with pytest.raises(InvalidDataset, match=r"more than 3 files.*datasets\.max_archive_entries"):
        await Catalog(database, store, few, tmp_path / "scratch").register("pets", f"file://{root}/pets", format=None)
    with pytest.raises(TooLarge, match=r"200 bytes.*datasets\.max_upload_bytes"):
        await Catalog(database, store, small, tmp_path / "scratch").register("pets", f"file://{root}/pets", format=None)

    assert await store.list("") == []


async def test_a_folder_that_is_too_deep_or_strangely_named_is_refused(catalog: Catalog, root: Path) -> None:
    write_images(root / "deep" / "a" / "b" / "c" / "d")
    write_images(root / "strange")
    (root / "strange" / "cat" / "\n.png").write_bytes(b"")

    with pytest.raises(InvalidDataset, match="too deep"):
        await catalog.register("pets", f"file://{root}/deep", format=None)
    with pytest.raises(InvalidDataset, match="not readable text"):
        await catalog.register("pets", f"file://{root}/strange", format=None)
