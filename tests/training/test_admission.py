"""What is wrong with a request is said at once, field by field; what is right becomes a complete specification."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.errors import DatasetNotFound, InvalidSpec, NameTaken
from headrace_server.trainers.recipe import Epochs, Steps
from headrace_server.training.checkpoints import CheckpointFile, CheckpointManifest, StoredCheckpoint
from headrace_server.training.draft import SpecDraft, StartRequest
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.spec import StartPoint
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker
from tests.doubles.training_house import TrainingHouse, training_house


async def obey(worker: ScriptedWorker) -> None:
    """Do nothing until told to stop."""
    await worker.stopped.wait()
    await worker.end(TrainerEnded(Outcome.STOPPED, exit_code=0))


async def violations(house: TrainingHouse, request: StartRequest) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as refusal:
        await house.desk.start(request)
    return {violation.field: violation.description for violation in refusal.value.violations}


async def test_every_default_is_filled_in_and_the_seed_is_chosen(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        first = await house.start(validate_only=True)
        second = await house.start(validate_only=True)
        given = await house.start(validate_only=True, recipe={"seed": 7, "length": {"kind": "steps", "count": 9}})

        assert first.spec.recipe.length == Epochs()
        assert first.spec.recipe.seed != second.spec.recipe.seed
        assert given.spec.recipe.seed == 7
        assert given.spec.recipe.length == Steps(count=9)
        assert first.spec.max_restarts == 3
        assert first.spec.dataset.startswith("datasets/flowers/versions/")


async def test_validation_alone_keeps_nothing(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        rehearsed = await house.start(validate_only=True, job_id="mine", request_id="r")

        assert rehearsed.state is JobState.QUEUED
        assert rehearsed.id == "mine"
        assert house.launcher.workers == {}
        job = await house.start(job_id="mine", request_id="r", body_digest="other")
        assert job.id == "mine"
        with pytest.raises(NameTaken):
            await house.start(validate_only=True, job_id="mine")


async def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        request = house.request(
            request_id="r" * 129,
            job_id="Not An Id",
            labels={"": "empty key", "long": "v" * 256},
            dataset="datasets/nowhere",
            model="models/m/versions/3",
            parameters={"widths": [8, "wide"], "dropout": 1.5, "colour": "red"},
            recipe={
                "batch_size": 0,
                "length": {"kind": "epochs", "count": 0},
                "optimizer": {"kind": "adamw", "learning_rate": -1.0},
                "surprise": 1,
            },
            priority=101,
            max_restarts=-1,
            field_paths={
                "parameters": "spec.sketch",
                "recipe": "spec",
                "recipe.length.count": "spec.epochs",
                "recipe.optimizer": "spec.optimizer.adamw",
                "priority": "spec.resources.priority",
            },
        )

        found = await violations(house, request)

        assert set(found) == {
            "request_id", "job_id", "labels", "labels['long']", "spec.dataset", "spec.model",
            "spec.sketch.target", "spec.sketch.widths[1]", "spec.sketch.dropout", "spec.sketch.colour",
            "spec.batch_size", "spec.epochs", "spec.optimizer.adamw.learning_rate", "spec.surprise",
            "spec.resources.priority", "spec.max_restarts",
        }  # fmt: skip
        assert found["spec.sketch.target"] == "is required"
        assert "does not exist" in found["spec.dataset"]


async def test_required_fields_are_named(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        found = await violations(house, StartRequest(SpecDraft()))

        assert found == {
            "spec.trainer": "is required: one of sketch",
            "spec.model": "is required: models/{model}",
            "spec.dataset": "is required: datasets/{dataset}",
        }


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"trainer": "nonsense"}, "spec.trainer", "not one of sketch"),
        ({"dataset": "flowers"}, "spec.dataset", "not of the form"),
        ({"model": "models/UPPER"}, "spec.model", "not of the form"),
        ({"model": "models/m@best"}, "spec.model", "must be models/m"),
        ({"parameters": {"target": "colour"}}, "spec.parameters.target", "not one of length, width, kind"),
        ({"recipe": {"evaluation": {"metric": "f1"}}}, "spec.recipe.evaluation.metric", "loss, accuracy"),
        ({"recipe": {"device": "gpu"}}, "spec.recipe.device", "no GPU"),
        ({"recipe": {"seed": 2**63}}, "spec.recipe.seed", "less than"),
        ({"recipe": {"batch_size": 8, "micro_batches": 9}}, "spec.recipe.micro_batches", "at most the batch size of 8"),
        ({"recipe": {"max_gradient_norm": 0.0}}, "spec.recipe.max_gradient_norm", "greater than 0"),
        ({"recipe": {"moving_average": {"decay": 1.0}}}, "spec.recipe.moving_average.decay", "less than 1"),
        ({"recipe": {"numerics": {"on_non_finite": "4"}}}, "spec.recipe.numerics.on_non_finite", "'lower_rate'"),
        ({"recipe": {"compilation": "9"}}, "spec.recipe.compilation", "'never'"),
        ({"recipe": {"length": {"kind": "hours", "count": 1}}}, "spec.recipe.length", "does not match"),
        ({"labels": {str(number): "" for number in range(65)}}, "labels", "at most 64"),
    ],
)
async def test_one_fault_is_blamed_on_its_field(
    tmp_path: Path, changes: dict[str, Any], field: str, words: str
) -> None:
    async with training_house(tmp_path) as house:
        found = await violations(house, house.request(**changes))

        assert list(found) == [field]
        assert words in found[field]


async def test_a_missing_data_set_is_not_found_when_all_else_is_right(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        with pytest.raises(DatasetNotFound):
            await house.start(dataset="datasets/nowhere")


async def test_a_data_set_in_a_format_that_the_trainer_cannot_read_is_refused(tmp_path: Path) -> None:
    async def chunks() -> Any:
        import io

        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, kind=np.zeros((4, 2)))
        yield buffer.getvalue()

    async with training_house(tmp_path) as house:
        await house.catalog.store("arrays", chunks(), format=DatasetFormat.NPZ, file_name="", digest="")

        found = await violations(house, house.request(dataset="datasets/arrays"))

        assert "reads CSV" in found["spec.dataset"]


async def test_a_gpu_is_accepted_where_there_is_one(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        house.devices = replace(house.devices, num_gpus=2)

        job = await house.start(recipe={"device": "gpu"}, num_ranks=2, validate_only=True)

        assert job.spec.recipe.device == "gpu"
        assert job.spec.num_ranks == 2


@pytest.mark.parametrize(
    ("num_gpus", "device", "num_ranks", "problem"),
    [
        (0, "auto", 3, "3 ranks need as many processor cores, and this server has 2"),
        (1, "auto", 2, "2 ranks need as many GPUs, and this server has 1"),
        (1, "cpu", 3, "3 ranks need as many processor cores, and this server has 2"),
        (0, "auto", 0, "must be 1 to 64"),
        (0, "auto", 65, "must be 1 to 64"),
        (8, "auto", 8, "8 ranks cannot share the 4 rows of a step"),
    ],
)
async def test_more_ranks_than_there_is_room_for_are_refused(
    tmp_path: Path, num_gpus: int, device: str, num_ranks: int, problem: str
) -> None:
    async with training_house(tmp_path) as house:
        house.devices = replace(house.devices, num_gpus=num_gpus)

        request = house.request(num_ranks=num_ranks, recipe={"device": device, "batch_size": 4})

        assert (await violations(house, request))["spec.num_ranks"] == problem


async def test_a_start_is_frozen_to_what_it_names_now(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        first = await house.over(await house.start())
        await house.cleaned_up(first)
        assert first.latest_checkpoint is not None
        manifest = CheckpointManifest(
            step=3, is_best=True, files=(CheckpointFile(path="weights.safetensors", digest="sha256:w", size_bytes=1),)
        )
        stored = StoredCheckpoint.of(f"checkpoints/{first.id}/", manifest)
        await house.store.put_bytes(stored.manifest_key, manifest.content())
        announced = first.latest_checkpoint.model_copy(update={"uri": stored.manifest_key})
        await house.desk._jobs.amend(first.id, lambda it: it.note_checkpoint(announced))

        job = await house.start(start_from=f"{first.name}@best", validate_only=True)

        assert job.spec.start_from == StartPoint(
            name=f"{first.name}@best", key=f"{stored.folder}weights.safetensors", digest="sha256:w"
        )
        await stored.remove(house.store)
        found = await violations(house, house.request(start_from=str(first.name)))
        assert "is no longer in the store" in found["spec.start_from"]


@pytest.mark.parametrize(
    ("start_from", "problem"),
    [
        ("models/nobody", "does not exist"),
        ("models/flowers", "holds no weights: it was not trained here"),
        ("models/Nobody", "models/{model}"),
        ("trainingJobs/nobody", "does not exist"),
        ("trainingJobs/nobody@worst", "is neither models/… nor trainingJobs/…"),
        ("trainingJobs/waiting", "has no checkpoint yet"),
    ],
)
async def test_a_start_that_is_not_there_is_a_violation(tmp_path: Path, start_from: str, problem: str) -> None:
    async with training_house(tmp_path) as house:
        await house.over(await house.start())
        house.launcher.script = obey  # a checkpoint would be a start
        waiting = await house.start(job_id="waiting")
        await house.desk.pause(waiting.name, reason="")

        found = await violations(house, house.request(start_from=start_from))

        assert problem in found["spec.start_from"]


def test_field_paths_follow_the_longest_prefix_that_is_known() -> None:
    draft = replace(SpecDraft(), field_paths={"a": "x", "a.b": "y.z", "a.b.c": "w"})

    assert draft.field_path("a.b.c") == "w"
    assert draft.field_path("a.b.d[0].e") == "y.z.d[0].e"
    assert draft.field_path("a[3]") == "x[3]"
    assert draft.field_path("ab") == "spec.ab"


async def test_a_request_id_makes_one_job_however_often_it_is_sent(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        jobs = await asyncio.gather(*(house.start(request_id="once") for _ in range(20)))

        assert len({job.id for job in jobs}) == 1
        assert len([key for key in house.launcher.workers if key[1] == 1]) <= 1
