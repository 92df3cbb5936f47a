from pathlib import Path

import pytest

from headrace_server.names import DatasetName, ModelName
from headrace_server.rpc.wire.models import version_to_proto
from headrace_server.training.checkpoints import CheckpointFile, CheckpointManifest, StoredCheckpoint
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker
from tests.doubles.training_house import training_house, transitions

HAPPY = ["QUEUED", "PREPARING", "RUNNING", "FINALIZING", "SUCCEEDED"]


async def test_a_job_goes_from_its_request_to_a_registered_model(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        job = await house.start(labels={"team": "green"}, request_id="r1")

        events = await house.history(job)
        over = await house.desk.get(job.name)

        assert job.state is JobState.QUEUED
        assert job.spec.dataset == str((await house.catalog.version(DatasetName("flowers"))).name)
        assert job.spec.parameters == {"target": "kind", "widths": [8, 8], "dropout": 0.1}
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert transitions(events) == HAPPY
        assert [event.happening.kind for event in events[-4:]] == [
            "phase_changed", "state_changed", "model_registered", "state_changed",
        ]  # fmt: skip
        assert over.state is JobState.SUCCEEDED
        assert over.model_version == "models/flowers/versions/1"
        assert over.latest_step is not None
        assert over.latest_step.step == 3
        assert over.started_at is not None
        assert over.ended_at is not None
        assert over.restarts == 0
        assert over.latest_sequence == len(events)
        version = await house.registry.resolve(ModelName("flowers"))
        assert version.lineage.training_job == str(job.name)
        assert version.lineage.dataset_digest == job.spec.dataset_digest
        assert over.best_checkpoint is not None
        assert version.lineage.checkpoint_digest == over.best_checkpoint.digest
        assert version.lineage.spec["trainer"] == "sketch"


async def test_a_version_says_what_it_would_take_to_make_it_again(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        first = await house.over(await house.start())
        plain = (await house.registry.resolve(ModelName("flowers"))).lineage
        manifest = CheckpointManifest(
            step=3, is_best=True, files=(CheckpointFile(path="weights.safetensors", digest="sha256:w", size_bytes=1),)
        )
        stored = StoredCheckpoint.of(f"checkpoints/{first.id}/", manifest)
        await house.store.put_bytes(stored.manifest_key, manifest.content())
        assert first.best_checkpoint is not None
        announced = first.best_checkpoint.model_copy(update={"uri": stored.manifest_key})
        await house.desk._jobs.amend(first.id, lambda it: it.note_checkpoint(announced))

        recipe = {"seed": 11, "deterministic": True}
        await house.over(await house.start(start_from=f"{first.name}@best", recipe=recipe))
        second = (await house.registry.resolve(ModelName("flowers"))).lineage

        assert (plain.seed, plain.deterministic, plain.start_from) == (first.spec.recipe.seed, False, "")
        assert (second.seed, second.deterministic) == (11, True)
        assert (second.start_from, second.start_from_digest) == (f"{first.name}@best", "sha256:w")
        message = version_to_proto(await house.registry.resolve(ModelName("flowers"))).lineage
        assert (message.seed, message.deterministic) == (11, True)
        assert (message.start_from, message.start_from_digest) == (f"{first.name}@best", "sha256:w")


async def test_the_log_is_followed_to_its_end(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        job = await house.start()

        lines = [entry async for entry in house.desk.follow_logs(job.name, 0) if entry is not None]

        assert [entry.line.text for entry in lines] == ["step 1", "step 2", "step 3"]
        assert [entry.sequence for entry in lines] == [1, 2, 3]
        assert await house.desk.latest(job.name, "logs") == 3


async def test_a_trainer_that_fails_ends_the_job_with_its_evidence(tmp_path: Path) -> None:
    async def fail(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        lines = tuple(f"line {number}" for number in range(100))
        ended = TrainerEnded(Outcome.FAILED, exit_code=3, error="ValueError", message="bad row", last_lines=lines)
        await worker.end(ended)

    async with training_house(tmp_path, fail) as house:
        job = await house.over(await house.start())

        assert job.state is JobState.FAILED
        assert job.failure is not None
        assert job.failure.reason == "TRAINER_FAILED"
        assert job.failure.message == "ValueError: bad row"
        assert job.failure.metadata["exit_code"] == "3"
        assert job.failure.metadata["error"] == "ValueError"
        assert job.failure.metadata["last_lines"].splitlines() == [f"line {number}" for number in range(50, 100)]


@pytest.mark.parametrize(
    ("error", "reason"), [("InvalidDataset", "INVALID_DATASET"), ("ZeroDivisionError", "TRAINER_FAILED")]
)
async def test_errors_that_the_contract_knows_keep_their_reason(tmp_path: Path, error: str, reason: str) -> None:
    async def fail(worker: ScriptedWorker) -> None:
        await worker.end(TrainerEnded(Outcome.FAILED, exit_code=3, error=error, message="no"))

    async with training_house(tmp_path, fail) as house:
        job = await house.over(await house.start())

        assert job.failure is not None
        assert job.failure.reason == reason


async def test_what_is_over_leaves_no_folder_and_no_stale_checkpoint(tmp_path: Path) -> None:
    async def save_often(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 5))
        await worker.save(1)
        await worker.save(2)
        await worker.save(3, is_best=False)
        await worker.save(4, is_best=False)
        await worker.export(4)
        await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))

    async with training_house(tmp_path, save_often) as house:
        job = await house.over(await house.start())
        await house.cleaned_up(job)

        assert job.best_checkpoint is not None
        assert job.latest_checkpoint is not None
        kept = await house.store.list(f"checkpoints/{job.id}/")
        assert kept == [job.best_checkpoint.uri, job.latest_checkpoint.uri]
        assert len(await house.store.list(f"exports/{job.id}/1/")) == 2
