"""What happens when there is no room: nothing is kept, the error says why, and room makes everything well again."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from headrace_server.errors import CannotStart, StorageFull
from headrace_server.storage.local import LocalBlobStore
from tests.doubles.small_disk import ROOM_BYTES, full_tmpfs, small_files_only


@pytest.fixture(params=["full disk", "limited files"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limited files":
        with small_files_only():
            yield folder
        return
    with full_tmpfs(folder) as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a file system needs more rights")
        yield folder


async def megabytes(number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield b"x" * (1 << 20)


async def test_a_full_disk_is_told_as_such_and_nothing_is_left_behind(small_disk: Path) -> None:
    store = LocalBlobStore(small_disk / "store")
    await store.open()
    await store.put_bytes("kept", b"old")

    for key in ("kept", "new/folder/object"):
        with pytest.raises(StorageFull) as caught:
            await store.put(key, megabytes(3))
        assert int(caught.value.metadata["needed_bytes"]) > ROOM_BYTES // 2

    assert await store.list("") == ["kept"]
    assert await store.get_bytes("kept") == b"old"
    assert list((small_disk / "store" / "drafts").iterdir()) == []


async def test_a_smaller_object_still_finds_room_afterwards(small_disk: Path) -> None:
    store = LocalBlobStore(small_disk / "store")
    await store.open()
    with pytest.raises(StorageFull):
        await store.put("big", megabytes(3))

    blob = await store.put_bytes("small", b"x" * (ROOM_BYTES // 2))

    assert blob.size_bytes == ROOM_BYTES // 2


async def test_fetching_to_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "store")
    await store.open()
    await store.put("big", megabytes(3))
    target = tmp_path / "target"

    with small_files_only(), pytest.raises(StorageFull):
        await store.fetch("big", target / "copy")

    assert list(target.iterdir()) == []


async def test_a_store_does_not_open_on_a_disk_without_room(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with full_tmpfs(folder) as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a file system needs more rights")
        with (folder / "filler").open("wb", buffering=0) as filler:
            assert filler.write(b"x" * (2 * ROOM_BYTES)) <= ROOM_BYTES

        with pytest.raises(CannotStart, match=r"No space left|disk is full"):
            await LocalBlobStore(folder / "store").open()
