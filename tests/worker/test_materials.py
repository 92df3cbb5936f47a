"""A trainer gets verified data, and continues from the newest checkpoint that is whole."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from headrace_server.errors import InvalidDataset
from headrace_server.rpc.wire.worker import report_from_proto
from headrace_server.storage.blob_store import Blob
from headrace_server.trainers.recipe import CheckpointPolicy
from headrace_server.trainers.reports import CheckpointWritten, WarningRaised
from headrace_server.training.checkpoints import StoredCheckpoint, list_checkpoints
from headrace_server.worker.materials import Materials
from headrace_server.worker.outbox import Outbox
from headrace_server.worker.persistence import Persistence
from headrace_server.worker.publisher import Publisher, Shelf
from headrace_server.worker.spool import Spool
from tests.doubles.given_clock import GivenClock
from tests.doubles.moody_store import MoodyStore

PREFIX = "checkpoints/j/"
DATA = b"a,b\n1,2\n"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture
async def store(tmp_path: Path) -> MoodyStore:
    store = MoodyStore(tmp_path / "store")
    await store.open()
    await store.put_bytes("datasets/d", DATA)
    return store


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(Spool(tmp_path / "spool"))
    await outbox.open()
    yield outbox
    await outbox.close()


@pytest.fixture
def materials(store: MoodyStore, outbox: Outbox, tmp_path: Path) -> Materials:
    clock = GivenClock()
    persistence = Persistence(60, clock=clock.monotonic, sleep=clock.sleep)
    return Materials(store, tmp_path / "workspace", outbox, persistence)


Save = Callable[[int, bool], Coroutine[Any, Any, str]]


@pytest.fixture
def save(store: MoodyStore, outbox: Outbox, tmp_path: Path) -> Save:
    async def act(step: int, is_best: bool) -> str:
        """Publish a checkpoint; returns the key of its manifest."""
        folder = tmp_path / "trainer" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"w" * step)
        (folder / "state.json").write_text("{}")
        publisher = Publisher(store, Shelf(tmp_path / "trainer", PREFIX, "exports/j/1/"), CheckpointPolicy(), outbox)
        task = asyncio.create_task(publisher.run())
        publisher.publish(CheckpointWritten(folder=str(folder), step=step, is_best=is_best))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)
        task.cancel()
        await asyncio.wait([task])
        return (await list_checkpoints(store, PREFIX))[0].manifest_key

    return act


async def warnings(outbox: Outbox) -> list[str]:
    contents = [report_from_proto(report).content for report in await outbox.read(0)]
    return [content.code for content in contents if isinstance(content, WarningRaised)]


def damage(tmp_path: Path, key: str, content: bytes = b"damaged") -> None:
    file = tmp_path / "store" / "objects" / key
    file.chmod(0o600)
    file.write_bytes(content)


async def test_the_data_set_is_verified_and_outlives_the_stores_own_copy(
    materials: Materials, store: MoodyStore
) -> None:
    path = await materials.dataset("datasets/d", DIGEST)
    await store.delete("datasets/d")

    assert path.read_bytes() == DATA


async def test_a_store_without_paths_is_fetched_from(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nowhere(self: MoodyStore, key: str) -> None:
        return None

    monkeypatch.setattr(MoodyStore, "local_path", nowhere)

    assert (await materials.dataset("datasets/d", DIGEST)).read_bytes() == DATA


async def test_data_that_cannot_be_linked_is_copied(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, path: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("headrace_server.worker.materials.os.link", refuse)

    assert (await materials.dataset("datasets/d", DIGEST)).read_bytes() == DATA


async def test_damaged_data_is_refused(materials: Materials, tmp_path: Path) -> None:
    damage(tmp_path, "datasets/d")

    with pytest.raises(InvalidDataset, match="damaged"):
        await materials.dataset("datasets/d", DIGEST)


async def test_missing_data_is_refused(materials: Materials) -> None:
    with pytest.raises(InvalidDataset, match="no longer"):
        await materials.dataset("datasets/gone", DIGEST)


async def test_a_store_that_stays_away_is_an_error_of_the_world(
    materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: MoodyStore, key: str) -> None:
        raise OSError("away")

    monkeypatch.setattr(MoodyStore, "local_path", away)

    with pytest.raises(OSError, match="away"):
        await materials.dataset("datasets/d", DIGEST)


async def test_a_store_that_comes_back_is_waited_for(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    async def away(self: MoodyStore, key: str) -> None:
        calls.append(key)
        if len(calls) < 4:
            raise OSError("away")

    monkeypatch.setattr(MoodyStore, "local_path", away)

    assert (await materials.dataset("datasets/d", DIGEST)).read_bytes() == DATA


async def test_a_checkpoint_comes_back_as_it_was_written(materials: Materials, outbox: Outbox, save: Save) -> None:
    key = await save(5, True)

    folder = await materials.checkpoint(PREFIX, key)

    assert folder is not None
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "weights.safetensors": b"wwwww",
        "state.json": b"{}",
    }
    assert await warnings(outbox) == []


@pytest.mark.parametrize("what", ["file", "manifest", "missing file", "missing manifest", "manifest of another"])
async def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    materials: Materials, store: MoodyStore, outbox: Outbox, save: Save, tmp_path: Path, what: str
) -> None:
    first, newest = await save(3, True), await save(5, False)
    folder = newest.removesuffix("manifest.json")
    match what:
        case "file":
            damage(tmp_path, f"{folder}weights.safetensors", b"WWWWW")
        case "manifest":
            damage(tmp_path, newest)
        case "missing file":
            await store.delete(f"{folder}state.json")
        case "missing manifest":
            await store.delete(newest)
        case _:
            damage(tmp_path, newest, await store.get_bytes(first))

    resumed = await materials.checkpoint(PREFIX, newest)

    assert resumed is not None
    assert (resumed / "weights.safetensors").read_bytes() == b"www"
    assert await warnings(outbox) == ["CHECKPOINT_DAMAGED"]


async def test_with_no_checkpoint_left_the_training_starts_over(
    materials: Materials, outbox: Outbox, save: Save, tmp_path: Path
) -> None:
    key = await save(3, True)
    damage(tmp_path, key)

    assert await materials.checkpoint(PREFIX, key) is None
    assert await warnings(outbox) == ["CHECKPOINT_DAMAGED", "CHECKPOINTS_LOST"]


async def test_a_store_that_fails_does_not_pass_for_a_damaged_checkpoint(
    materials: Materials, outbox: Outbox, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await save(3, True)

    async def away(self: MoodyStore, key: str, path: Path) -> Blob:
        raise OSError("away")

    monkeypatch.setattr(MoodyStore, "fetch", away)

    with pytest.raises(OSError, match="away"):
        await materials.checkpoint(PREFIX, key)
    assert await warnings(outbox) == []


@pytest.mark.parametrize("key", ["", "x", "checkpoints/j/manifest.json", "checkpoints/j/12-ab/manifest.json"])
def test_a_key_of_something_else_is_no_checkpoint(key: str) -> None:
    assert StoredCheckpoint.parse(key) is None
