import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from headrace_server.errors import CannotStart, StoreAway
from headrace_server.storage.local import LocalBlobStore
from headrace_server.storage.streaming import read_file

KEYS = ("a", "b.1", "c/a", "c/d/e-f", "c/d/g_h", "x/y/z/0.json")


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def folders_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_dir()}


async def test_what_is_put_can_be_got_in_every_way(store: LocalBlobStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "source").write_bytes(content)

    blob = await store.put_file("models/digits/1/model.onnx", tmp_path / "source")
    fetched = await store.fetch(blob.key, tmp_path / "deep" / "copy")
    path = await store.local_path(blob.key)

    assert (blob.size_bytes, blob.digest) == (len(content), digest_of(content))
    assert fetched == blob
    assert (tmp_path / "deep" / "copy").read_bytes() == content
    assert path is not None
    assert path.read_bytes() == content
    assert await store.get_bytes(blob.key) == content
    assert [len(chunk) async for chunk in store.read(blob.key, 1 << 20)] == [1 << 20, 1 << 20, len(content) - (2 << 20)]


async def test_an_object_may_be_empty(store: LocalBlobStore) -> None:
    blob = await store.put("empty", stream())

    assert blob.size_bytes == 0
    assert blob.digest == digest_of(b"")
    assert await store.get_bytes("empty") == b""
    assert [chunk async for chunk in store.read("empty")] == []


async def test_what_is_missing_is_a_key_error_whoever_asks(store: LocalBlobStore, tmp_path: Path) -> None:
    await store.put_bytes("folder/object", b"")

    for missing in ("nothing", "folder", "folder/object/below"):
        with pytest.raises(KeyError):
            await store.get_bytes(missing)
        with pytest.raises(KeyError):
            await anext(store.read(missing))
        with pytest.raises(KeyError):
            await store.local_path(missing)
        with pytest.raises(KeyError):
            await store.fetch(missing, tmp_path / "copy")
        await store.delete(missing)
    await store.delete_all("nothing/")
    await store.delete_all("folder/object/")
    assert await store.list("") == ["folder/object"]
    assert not (tmp_path / "copy").exists()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from(KEYS), st.binary(max_size=50)),
            st.tuples(st.just("delete"), st.sampled_from(KEYS), st.just(b"")),
            st.tuples(st.just("delete_all"), st.sampled_from(["c/", "c/d/", "x/", "x/y/z/", "q/"]), st.just(b"")),
        ),
        max_size=12,
    )
)
@settings(max_examples=40, deadline=None)
def test_a_store_behaves_like_a_dictionary(acts: list[tuple[str, str, bytes]]) -> None:
    async def run(root: Path) -> None:
        store = LocalBlobStore(root)
        await store.open()
        expected: dict[str, bytes] = {}
        for act, key, content in acts:
            if act == "put":
                await store.put_bytes(key, content)
                expected[key] = content
            elif act == "delete":
                await store.delete(key)
                expected.pop(key, None)
            else:
                await store.delete_all(key)
                expected = {known: value for known, value in expected.items() if not known.startswith(key)}
        for prefix in ("", "c", "c/", "c/d", "c/d/", "x/y/z/0", "nothing"):
            assert await store.list(prefix) == sorted(key for key in expected if key.startswith(prefix))
        assert {key: await store.get_bytes(key) for key in await store.list("")} == expected
        assert files_below(root) == {"layout.json", *(f"objects/{key}" for key in expected)}
        needed = {parent for key in expected for parent in Path("objects", key).parents} - {Path()}
        assert folders_below(root) == {*needed, Path("objects"), Path("drafts"), Path("trash")}

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "a", "b", "\0", "~", "a" * 300, "C:", "é", "a\n"]), st.text(max_size=4)
)


@given(st.one_of(st.text(max_size=20), st.lists(PARTS, max_size=5).map("/".join), st.just("a/" * 600 + "a")))
@settings(max_examples=150, deadline=None)
def test_no_key_leads_out_of_the_store(key: str) -> None:
    async def run(outside: Path) -> None:
        store = LocalBlobStore(outside / "store")
        await store.open()
        before = files_below(outside)
        try:
            await store.put_bytes(key, b"x")
        except ValueError:
            assert files_below(outside) == before
            for refused in (store.get_bytes, store.local_path, store.delete):
                with pytest.raises(ValueError, match="key"):
                    await refused(key)
        else:
            assert files_below(outside) == before | {f"store/objects/{key}"}
            assert await store.list("") == [key]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_a_prefix_cannot_climb_out_either(store: LocalBlobStore) -> None:
    for prefix in ("../", "a/../../", "/", "/etc/"):
        with pytest.raises(ValueError, match="not a key"):
            await store.list(prefix)
        with pytest.raises(ValueError, match="not a key"):
            await store.delete_all(prefix)


async def test_no_key_may_be_the_folder_of_another(store: LocalBlobStore) -> None:
    await store.put_bytes("a/b", b"1")
    await store.put_bytes("c", b"2")

    for clashing in ("a", "c/d", "c/d/e"):
        with pytest.raises(ValueError, match="cannot be a file"):
            await store.put_bytes(clashing, b"3")

    assert await store.list("") == ["a/b", "c"]
    assert await store.get_bytes("c") == b"2"


async def test_a_reader_keeps_what_it_began_to_read(store: LocalBlobStore) -> None:
    await store.put_bytes("replaced", b"old" * 10)
    await store.put_bytes("folder/deleted", b"old" * 10)
    readers = [store.read("replaced", 3), store.read("folder/deleted", 3)]
    firsts = [await anext(reader) for reader in readers]

    await store.put_bytes("replaced", b"new")
    await store.delete_all("folder/")

    for first, reader in zip(firsts, readers, strict=True):
        assert first + b"".join([chunk async for chunk in reader]) == b"old" * 10
    assert await store.get_bytes("replaced") == b"new"
    assert await store.list("") == ["replaced"]


async def test_of_writers_of_one_key_one_wins_and_nothing_is_mixed(store: LocalBlobStore) -> None:
    contents = [bytes([number]) * (1 << 20) for number in range(8)]

    async def slices(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1 << 17):
            yield content[start : start + (1 << 17)]
            await asyncio.sleep(0)

    blobs = await asyncio.gather(*(store.put("k/one", slices(content)) for content in contents))

    assert [blob.digest for blob in blobs] == [digest_of(content) for content in contents]
    assert await store.get_bytes("k/one") in contents


async def test_writers_and_deleters_of_one_folder_do_not_trip_over_each_other(store: LocalBlobStore) -> None:
    async def write_and_delete(number: int) -> None:
        for _ in range(15):
            await store.put_bytes(f"a/b/c/{number}", b"x")
            await store.delete(f"a/b/c/{number}")

    async def delete_all() -> None:
        for _ in range(15):
            await store.delete_all("a/")

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(write_and_delete(number))
        group.create_task(delete_all())

    assert await store.list("") == []


async def test_an_iterator_that_raises_leaves_nothing_behind(store: LocalBlobStore, tmp_path: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * (3 << 20)
        raise ConnectionResetError("the caller has gone")

    await store.put_bytes("k", b"old")

    with pytest.raises(ConnectionResetError):
        await store.put("k", breaking())

    assert files_below(tmp_path / "store") == {"layout.json", "objects/k"}
    assert await store.get_bytes("k") == b"old"


async def test_a_put_cancelled_at_any_point_is_whole_or_nothing(store: LocalBlobStore, tmp_path: Path) -> None:
    content = b"x" * (2 << 20)
    num_cancelled = 0
    for num_turns in range(60):
        task = asyncio.ensure_future(store.put("k", stream(content[: 1 << 20], content[1 << 20 :])))
        for _ in range(num_turns):
            await asyncio.sleep(0.0003 if num_turns % 2 else 0)

        task.cancel()

        num_cancelled += isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        found = files_below(tmp_path / "store") - {"layout.json"}
        assert found in (set(), {"objects/k"})
        if found:
            assert await store.get_bytes("k") == content
        await store.delete("k")
    assert num_cancelled > 10


async def test_a_fetch_cancelled_at_any_point_is_whole_or_nothing(store: LocalBlobStore, tmp_path: Path) -> None:
    content = b"x" * (2 << 20)
    await store.put_bytes("k", content)
    target = tmp_path / "target"
    for num_turns in range(40):
        task = asyncio.ensure_future(store.fetch("k", target / "copy"))
        for _ in range(num_turns):
            await asyncio.sleep(0.0003 if num_turns % 2 else 0)

        task.cancel()

        await asyncio.gather(task, return_exceptions=True)
        found = files_below(target)
        assert found in (set(), {"copy"})
        if found:
            assert (target / "copy").read_bytes() == content
            (target / "copy").unlink()


async def test_objects_are_read_only_and_copies_are_not(store: LocalBlobStore, tmp_path: Path) -> None:
    await store.put_bytes("k", b"x")
    path = await store.local_path("k")
    await store.fetch("k", tmp_path / "copy")

    assert path is not None
    assert path.stat().st_mode & 0o222 == 0
    assert (tmp_path / "copy").stat().st_mode & 0o200
    assert (tmp_path / "store").stat().st_mode & 0o077 == 0


async def test_a_file_that_shrinks_while_it_is_copied_is_noticed(store: LocalBlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * (4 << 20))

    async def shrinking() -> AsyncIterator[bytes]:
        async for block in read_file(source):
            yield block
            source.write_bytes(b"")

    with pytest.raises(OSError, match="too early"):
        await store.put("k", shrinking())

    assert await store.list("") == []


@pytest.mark.parametrize("leaves", ["nothing", "an empty folder", "a file"])
async def test_a_store_that_is_away_is_not_one_that_has_nothing(
    store: LocalBlobStore, tmp_path: Path, leaves: str
) -> None:
    root = store._root
    await store.put_bytes("a/b", b"kept")
    root.rename(tmp_path / "elsewhere")
    if leaves == "an empty folder":  # where a disk was mounted
        root.mkdir()
    elif leaves == "a file":
        root.write_bytes(b"")

    for act in (
        lambda: store.get_bytes("a/b"),
        lambda: anext(store.read("a/b")),
        lambda: store.fetch("a/b", tmp_path / "copy"),
        lambda: store.local_path("a/b"),
        lambda: store.list("a/"),
        lambda: store.delete("a/b"),
        lambda: store.delete_all("a/"),
    ):
        with pytest.raises(StoreAway, match="is away"):
            await act()
    with pytest.raises(OSError, match=r"No such file|Not a directory"):
        await store.put_bytes("a/c", b"lost")

    if leaves != "nothing":
        root.unlink() if leaves == "a file" else root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    assert await store.get_bytes("a/b") == b"kept"
    assert await store.list("") == ["a/b"]


@pytest.mark.parametrize("leaves", ["nothing", "an empty folder"])
async def test_a_store_that_goes_away_during_a_write_is_not_made_anew(
    store: LocalBlobStore, tmp_path: Path, leaves: str
) -> None:
    root = store._root

    async def chunks() -> AsyncIterator[bytes]:
        yield b"written while it is there"
        root.rename(tmp_path / "elsewhere")
        if leaves == "an empty folder":
            root.mkdir()

    with pytest.raises(FileNotFoundError):
        await store.put("a/b/c", chunks())

    assert list(root.rglob("*")) == []
    assert root.exists() == (leaves == "an empty folder")


async def test_opening_twice_changes_nothing(store: LocalBlobStore, tmp_path: Path) -> None:
    await store.put_bytes("k", b"x")

    again = LocalBlobStore(tmp_path / "store")
    await again.open()

    assert await again.get_bytes("k") == b"x"


async def test_a_newer_layout_is_refused(store: LocalBlobStore, tmp_path: Path) -> None:
    marker = tmp_path / "store" / "layout.json"
    marker.chmod(0o644)
    marker.write_text('{"layout": 2}')

    with pytest.raises(CannotStart, match="newer release"):
        await LocalBlobStore(tmp_path / "store").open()


@pytest.mark.parametrize("damage", ["", "[]", "{}", "null", "\0\0\0"])
async def test_a_damaged_marker_is_refused(store: LocalBlobStore, tmp_path: Path, damage: str) -> None:
    marker = tmp_path / "store" / "layout.json"
    marker.chmod(0o644)
    marker.write_text(damage)

    with pytest.raises(CannotStart, match="damaged"):
        await LocalBlobStore(tmp_path / "store").open()


async def test_a_store_that_cannot_be_made_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(CannotStart, match=r"file.* cannot be used"):
        await LocalBlobStore(tmp_path / "file" / "store").open()


async def test_folders_that_were_being_deleted_are_removed_at_the_start(store: LocalBlobStore, tmp_path: Path) -> None:
    half_deleted = tmp_path / "store" / "trash" / "0123" / "inner"
    half_deleted.mkdir(parents=True)
    (half_deleted / "object").write_bytes(b"x")

    await LocalBlobStore(tmp_path / "store").open()

    assert list((tmp_path / "store" / "trash").iterdir()) == []
