"""Writers that die in the middle, and writers that live in another process."""

import asyncio
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from headrace_server.storage.local import LocalBlobStore

DEADLINE_SECONDS = 20

WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from headrace_server.storage.local import LocalBlobStore

    async def forever():
        yield b"x" * (1 << 20)
        print("writing", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        yield b"y"

    async def main():
        store = LocalBlobStore(Path(sys.argv[1]))
        await store.open()
        blob = await store.put("k/object", forever())
        print(blob.size_bytes, flush=True)

    asyncio.run(main())
    """
)


@pytest.fixture
def writer(tmp_path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def drafts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "store" / "drafts").iterdir())


async def test_what_a_killed_writer_leaves_is_removed_and_was_never_visible(
    writer: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with writer:
        writer.kill()
        assert await asyncio.to_thread(writer.wait, DEADLINE_SECONDS) == -9
    assert len(drafts(tmp_path)) == 1

    store = LocalBlobStore(tmp_path / "store")
    await store.open()

    assert drafts(tmp_path) == []
    assert await store.list("") == []


async def test_a_store_that_opens_leaves_the_drafts_of_living_writers_alone(
    writer: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    store = LocalBlobStore(tmp_path / "store")
    await store.open()
    still_there = drafts(tmp_path)

    said, _ = await asyncio.to_thread(writer.communicate, "go on\n", DEADLINE_SECONDS)

    assert len(still_there) == 1
    assert said.strip() == str((1 << 20) + 1)
    assert await store.get_bytes("k/object") == b"x" * (1 << 20) + b"y"
    assert drafts(tmp_path) == []


BUSY_WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from headrace_server.storage.local import LocalBlobStore

    async def main():
        store = LocalBlobStore(Path(sys.argv[1]))
        await store.open()
        print("ready", flush=True)
        for number in range(100_000):
            await store.put_bytes(f"{number % 3}/object", bytes([number % 256]) * 300_000)

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 20, 50])
def test_killed_at_any_moment_an_object_is_whole_or_not_there(tmp_path: Path, delay_ms: int) -> None:
    command = [sys.executable, "-c", BUSY_WRITER, str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(delay_ms / 1000)  # not for anything to happen: any moment is as good
        writer.kill()

    contents = asyncio.run(contents_of(LocalBlobStore(tmp_path / "store")))

    assert drafts(tmp_path) == []
    assert all(len(content) == 300_000 and len(set(content)) == 1 for content in contents)


async def contents_of(store: LocalBlobStore) -> list[bytes]:
    await store.open()
    return [await store.get_bytes(key) for key in await store.list("")]
