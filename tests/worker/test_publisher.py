"""What a trainer has written reaches the store whole and in order, and is told only then."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import StorageFull
from headrace_server.rpc.wire.worker import report_from_proto
from headrace_server.trainers.recipe import CheckpointPolicy
from headrace_server.trainers.reports import CheckpointWritten, ExportWritten, ProfileWritten, WarningRaised
from headrace_server.training.checkpoints import (
    CheckpointManifest,
    StoredCheckpoint,
    choose_kept,
    digest_of,
    list_checkpoints,
)
from headrace_server.training.events import CheckpointSaved, ProfileRecorded
from headrace_server.training.session import Exported, ReportContent
from headrace_server.worker.outbox import Outbox
from headrace_server.worker.persistence import Persistence
from headrace_server.worker.publisher import Publisher, Shelf
from headrace_server.worker.spool import Spool
from tests.doubles.moody_store import MoodyStore
from tests.doubles.until import until

PREFIX = "checkpoints/j/"
QUICK = Persistence(first_wait_seconds=0.01, longest_wait_seconds=0.02)


@pytest.fixture
async def store(tmp_path: Path) -> MoodyStore:
    store = MoodyStore(tmp_path / "store")
    await store.open()
    return store


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(Spool(tmp_path / "spool"))
    await outbox.open()
    yield outbox
    await outbox.close()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., CheckpointWritten]:
    def write(step: int, is_best: bool = False, content: bytes = b"weights") -> CheckpointWritten:
        folder = tmp_path / "trainer" / f"step-{step}"
        (folder / "part").mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(content)
        (folder / "part" / "state.json").write_text(str(step))
        return CheckpointWritten(folder=str(folder), step=step, is_best=is_best)

    return write


@asynccontextmanager
async def publishing(
    store: MoodyStore,
    outbox: Outbox,
    tmp_path: Path,
    persistence: Persistence = QUICK,
    policy: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008 - it never changes
) -> AsyncIterator[Publisher]:
    publisher = Publisher(store, Shelf(tmp_path / "trainer", PREFIX, "exports/j/1/"), policy, outbox, persistence)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), task.exception()


async def said(outbox: Outbox) -> list[ReportContent]:
    return [report_from_proto(report).content for report in await outbox.read(0)]


async def saved_steps(outbox: Outbox) -> list[int]:
    return [content.step for content in await said(outbox) if isinstance(content, CheckpointSaved)]


async def warnings(outbox: Outbox) -> list[str]:
    return [content.code for content in await said(outbox) if isinstance(content, WarningRaised)]


async def kept_steps(store: MoodyStore) -> list[int]:
    return [checkpoint.step for checkpoint in await list_checkpoints(store, PREFIX)]


Written = Callable[..., CheckpointWritten]


async def test_a_checkpoint_is_stored_whole_and_its_folder_removed(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    work = written(7, is_best=True)
    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(work)
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    (saved,) = await said(outbox)
    assert isinstance(saved, CheckpointSaved)
    content = await store.get_bytes(saved.uri)
    manifest = CheckpointManifest.model_validate_json(content)
    assert manifest.step == 7
    assert manifest.is_best
    assert [file.path for file in manifest.files] == ["part/state.json", "weights.safetensors"]
    assert saved.size_bytes == manifest.size_bytes == len(b"weights") + 1
    folder = StoredCheckpoint.parse(saved.uri)
    assert folder is not None
    assert saved.digest.removeprefix("sha256:").startswith(folder.folder.rstrip("/")[-16:])
    for file in manifest.files:
        assert (await store.fetch(folder.folder + file.path, tmp_path / "copy")).digest == file.digest
    assert not Path(work.folder).exists()  # noqa: ASYNC240


async def test_the_newest_and_the_newest_best_are_kept(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    kept: list[list[int]] = []
    async with publishing(store, outbox, tmp_path) as publisher:
        for step, is_best in [(1, True), (2, False), (3, False), (4, True), (5, False)]:
            publisher.publish(written(step, is_best))
            await asyncio.wait_for(publisher.wait_until_idle(), 60)
            kept.append(await kept_steps(store))

    assert kept == [[1], [2, 1], [3, 1], [4], [5, 4]]
    assert await saved_steps(outbox) == [1, 2, 3, 4, 5]


async def test_as_many_are_kept_as_the_policy_says(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Callable[..., CheckpointWritten]
) -> None:
    async with publishing(store, outbox, tmp_path, policy=CheckpointPolicy(keep_last=3, keep_best=2)) as publisher:
        for step, is_best in ((1, True), (2, True), (3, True), (4, False), (5, False), (6, False), (7, False)):
            publisher.publish(written(step, is_best))
            await publisher.wait_until_idle()

    assert [checkpoint.step for checkpoint in await list_checkpoints(store, PREFIX)] == [7, 6, 5, 3, 2]


async def test_steps_beyond_the_one_that_was_continued_from_are_not_kept(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Callable[..., CheckpointWritten]
) -> None:
    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(written(9))
        await publisher.wait_until_idle()

    async with publishing(
        store, outbox, tmp_path
    ) as publisher:  # that one was damaged: another worker begins before it
        publisher.publish(written(5))
        await publisher.wait_until_idle()

    assert [checkpoint.step for checkpoint in await list_checkpoints(store, PREFIX)] == [5]


@given(
    steps=st.dictionaries(st.integers(0, 50), st.booleans()), keep_last=st.integers(1, 5), keep_best=st.integers(1, 5)
)
def test_what_is_kept_holds_the_newest_and_the_best_and_no_more(
    steps: dict[int, bool], keep_last: int, keep_best: int
) -> None:
    complete = {StoredCheckpoint(step, f"c/{step}/"): best for step, best in steps.items()}

    kept = choose_kept(complete, keep_last=keep_last, keep_best=keep_best)

    assert len(kept) <= keep_last + keep_best
    newest = sorted(complete, reverse=True)
    assert set(newest[:keep_last]) <= kept
    assert set([it for it in newest if complete[it]][:keep_best]) <= kept


async def test_a_trace_is_stored_and_told(store: MoodyStore, outbox: Outbox, tmp_path: Path) -> None:
    folder = tmp_path / "trainer" / "profiles" / "7"
    folder.mkdir(parents=True)
    (folder / "trace.json.gz").write_bytes(b"trace")
    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(ProfileWritten(folder=str(folder), first_step=7, num_steps=3))
        await publisher.wait_until_idle()

    [recorded] = [content for content in await said(outbox) if isinstance(content, ProfileRecorded)]
    assert (recorded.first_step, recorded.num_steps, recorded.size_bytes) == (7, 3, 5)
    assert await store.get_bytes(recorded.uri) == b"trace"
    assert not folder.exists()


async def test_a_store_that_is_away_for_too_long_is_lost(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Callable[..., CheckpointWritten]
) -> None:
    store.refusal, store.num_refusals = ConnectionRefusedError("nobody is there"), -1
    async with publishing(store, outbox, tmp_path, Persistence(0.1, 0.02)) as publisher:
        publisher.publish(written(1))
        async with asyncio.timeout(60):
            await publisher.lost_store.wait()

    assert "nobody is there" in publisher.problem


async def test_an_earlier_attempts_best_is_kept_too(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    async with publishing(store, outbox, tmp_path) as publisher:
        for step, is_best in [(1, True), (2, False)]:
            publisher.publish(written(step, is_best))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)
    await store.put_bytes(f"{PREFIX}000000000009-{'0' * 16}/weights.safetensors", b"of one that died")

    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(written(3))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await kept_steps(store) == [3, 1]


async def test_a_store_that_refuses_is_tried_again_and_told_once(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    store.refusal, store.num_refusals = OSError("no route to the store"), 5

    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(written(1))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await saved_steps(outbox) == [1]
    assert await warnings(outbox) == ["STORE_REFUSES"]


async def test_a_store_that_stays_full_costs_the_checkpoint_and_not_the_training(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    store.refusal, store.num_refusals = StorageFull(7), -1
    work = written(1)

    async with publishing(store, outbox, tmp_path, Persistence(0.1, 0.02, 0.02)) as publisher:
        publisher.publish(work)
        await asyncio.wait_for(publisher.wait_until_idle(), 60)
        store.refusal = None
        publisher.publish(written(2))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await warnings(outbox) == ["STORE_REFUSES", "NOT_STORED"]
    assert await saved_steps(outbox) == [2]
    assert not Path(work.folder).exists()  # noqa: ASYNC240


async def test_bytes_that_were_damaged_on_the_way_are_sent_again(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    store.num_damaged = 2

    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(written(1, content=b"precious"))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await saved_steps(outbox) == [1]
    (checkpoint,) = await list_checkpoints(store, PREFIX)
    assert await store.get_bytes(f"{checkpoint.folder}weights.safetensors") == b"precious"


async def test_what_is_no_longer_what_the_trainer_had_in_memory_is_never_announced(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    sound, damaged = written(1), written(2)
    digests = {"weights.safetensors": "sha256:" + hashlib.sha256(b"weights").hexdigest()}
    (Path(damaged.folder) / "weights.safetensors").write_bytes(b"weighty")
    async with publishing(store, outbox, tmp_path, Persistence(total_seconds=0.1)) as publisher:
        for work in (sound, damaged):
            publisher.publish(work.model_copy(update={"digests": digests}))
            await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await saved_steps(outbox) == [1]
    assert "NOT_STORED" in await warnings(outbox)


async def test_the_old_checkpoint_stays_until_the_new_one_is_verified(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(written(1, is_best=True))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)
        store.refusal, store.num_refusals = OSError("away"), -1
        publisher.publish(written(2, is_best=True))
        await until(lambda: store.num_refused > 3)
        assert await kept_steps(store) == [1]
        store.refusal = None
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await kept_steps(store) == [2]


async def test_waiting_checkpoints_that_are_superseded_are_given_up(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    store.may_put.clear()
    works = [written(step, is_best=step in (2, 4)) for step in range(1, 8)]
    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(works[0])
        await asyncio.sleep(0.05)  # it is under way now, or else it is superseded as well
        for work in works[1:]:
            publisher.publish(work)
        store.may_put.set()
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await saved_steps(outbox) in ([1, 4, 7], [4, 7])
    assert not any(Path(work.folder).exists() for work in works)  # noqa: ASYNC240


@pytest.mark.parametrize("folder", ["/", "..", ".", "missing", "empty", "trap"])
async def test_a_folder_that_is_no_checkpoint_is_refused_and_left_alone(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, folder: str
) -> None:
    source = tmp_path / "trainer"
    (source / "empty").mkdir(parents=True)
    (source / "trap").mkdir()
    (source / "trap" / "manifest.json").write_text("{}")
    path = source / folder

    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(CheckpointWritten(folder=str(path), step=1, is_best=True))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await warnings(outbox) == ["NOT_STORED"]
    assert publisher.problem
    assert source.is_dir()
    assert (tmp_path / "store").is_dir()


@pytest.mark.parametrize("manifest", [None, "no json", "{}", "../../etc/passwd", "missing.onnx"])
async def test_an_export_that_is_not_what_it_says_is_refused(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, manifest: str | None
) -> None:
    folder = tmp_path / "trainer" / "export"
    folder.mkdir(parents=True)
    if manifest is not None:
        content = manifest
        if "." in manifest:
            content = (
                '{"signature": {"inputs": [], "outputs": []}, "metrics": {}, "lineage": {}, '
                f'"artifacts": [{{"path": "{manifest}", "format": "ONNX"}}]}}'
            )
        (folder / "export.json").write_text(content)

    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(ExportWritten(folder=str(folder)))
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert await warnings(outbox) == ["NOT_STORED"]
    assert not any(isinstance(content, Exported) for content in await said(outbox))
    assert not publisher.has_published_export


async def test_a_link_out_of_the_folder_is_not_followed(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    work = written(1)
    (tmp_path / "secret").write_text("secret")
    (Path(work.folder) / "link").symlink_to(tmp_path / "secret")

    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(work)
        await asyncio.wait_for(publisher.wait_until_idle(), 60)

    assert not [key for key in await store.list(PREFIX) if key.endswith("/link")]


async def test_cancelled_in_the_middle_nothing_is_told(
    store: MoodyStore, outbox: Outbox, tmp_path: Path, written: Written
) -> None:
    store.may_put.clear()
    async with publishing(store, outbox, tmp_path) as publisher:
        publisher.publish(written(1))
        await asyncio.sleep(0)
        assert not publisher.is_idle

    assert await said(outbox) == []


def test_a_digest_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")

    assert digest_of(tmp_path / "f") == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        0,
    )
