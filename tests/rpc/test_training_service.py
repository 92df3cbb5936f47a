from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.training.v1 import training_job_pb2 as job_pb, training_service_pb2 as pb, training_spec_pb2 as spec_pb
from tests.doubles.door import open_door
from tests.doubles.job_desk import JobDesk, a_job


async def test_a_request_reaches_the_desk_as_it_was_sent() -> None:
    async with open_door(JobDesk(a_job())) as door:
        answer = await door.training.StartTraining(
            pb.StartTrainingRequest(
                request_id="r1",
                job_id="nightly",
                labels={"team": "a"},
                validate_only=True,
                spec=spec_pb.TrainingSpec(dataset="datasets/d", tabular=spec_pb.TabularTrainer(target="y"), epochs=3),
            )
        )

        request = door.desk.started[0]
        assert (request.request_id, request.job_id, request.labels, request.validate_only) == (
            "r1", "nightly", {"team": "a"}, True,
        )  # fmt: skip
        assert request.draft.recipe == {"length": {"kind": "epochs", "count": 3}}
        assert answer.job.state == job_pb.TrainingJob.STATE_QUEUED


async def test_jobs_are_listed_in_pages() -> None:
    async with open_door(JobDesk(*(a_job(f"j{n}") for n in range(5)))) as door:
        names: list[str] = []
        token = ""
        while True:
            page = await door.training.ListTrainingJobs(pb.ListTrainingJobsRequest(page_size=2, page_token=token))
            names += [job.name for job in page.jobs]
            token = page.next_page_token
            if not token:
                break

        assert names == [f"trainingJobs/j{n}" for n in range(5)]


async def test_a_token_of_another_question_is_refused() -> None:
    async with open_door(JobDesk(*(a_job(f"j{n}") for n in range(5)))) as door:
        page = await door.training.ListTrainingJobs(pb.ListTrainingJobsRequest(page_size=2))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.ListTrainingJobs(
                pb.ListTrainingJobsRequest(page_token=page.next_page_token, filter="state = RUNNING")
            )

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cancellation_carries_its_mode_and_reason() -> None:
    async with open_door(JobDesk(a_job())) as door:
        await door.training.CancelTrainingJob(
            pb.CancelTrainingJobRequest(name="trainingJobs/j1", mode=pb.CancelTrainingJobRequest.MODE_KILL, reason="x")
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.CancelTrainingJob(
                pb.CancelTrainingJobRequest(name="trainingJobs/j1", mode=9, reason="x" * 1001)  # type: ignore[arg-type]
            )

        assert [(kill, reason) for _, kill, reason in door.desk.cancelled] == [(True, "x")]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_pausing_carries_its_reason_and_a_bad_one_is_refused() -> None:
    async with open_door(JobDesk(a_job())) as door:
        await door.training.PauseTrainingJob(pb.PauseTrainingJobRequest(name="trainingJobs/j1", reason="x"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.PauseTrainingJob(pb.PauseTrainingJobRequest(name="trainingJobs/j1", reason="x" * 1001))

        assert [reason for _, reason in door.desk.paused] == ["x"]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_verb_that_is_illegal_in_the_state_is_a_failed_precondition_with_its_details() -> None:
    async with open_door(JobDesk(a_job())) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.ResumeTrainingJob(pb.ResumeTrainingJobRequest(name="trainingJobs/j1"))

        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        status = rpc_status.from_call(caught.value)
        failure = error_details_pb2.PreconditionFailure()
        assert any(detail.Unpack(failure) for detail in status.details)
        assert failure.violations[0].subject == "trainingJobs/j1"


async def test_a_profile_is_asked_for_and_downloaded_in_pieces() -> None:
    async with open_door(JobDesk(a_job())) as door:
        await door.training.ProfileTraining(pb.ProfileTrainingRequest(name="trainingJobs/j1"))
        await door.training.ProfileTraining(pb.ProfileTrainingRequest(name="trainingJobs/j1", num_steps=3))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.ProfileTraining(pb.ProfileTrainingRequest(name="trainingJobs/j1", num_steps=1001))
        stream = door.training.DownloadProfile(pb.DownloadProfileRequest(name="trainingJobs/j1", uri="profiles/j1/x"))
        pieces = [answer.chunk async for answer in stream]

        assert [steps for _, steps in door.desk.profiled] == [10, 3]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert pieces == [b"tra", b"ce"]


async def test_a_deleted_job_is_gone() -> None:
    async with open_door(JobDesk(a_job())) as door:
        await door.training.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name="trainingJobs/j1"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name="trainingJobs/j1"))

        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_trainers_are_listed_in_pages_with_their_schemas() -> None:
    async with open_door() as door:
        first = await door.training.ListTrainers(pb.ListTrainersRequest(page_size=1))
        rest = await door.training.ListTrainers(pb.ListTrainersRequest(page_token=first.next_page_token))

        assert [trainer.name for trainer in (*first.trainers, *rest.trainers)] == ["image_classification", "tabular"]
        properties: Any = rest.trainers[0].parameters_schema["properties"]
        assert "target" in properties
        assert not rest.next_page_token


async def test_one_job_is_shown() -> None:
    async with open_door(JobDesk(a_job())) as door:
        shown = await door.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j1"))

        assert shown.job.spec.tabular.target == "y"


async def test_jobs_are_put_side_by_side() -> None:
    async with open_door(JobDesk(a_job("j1"), a_job("j2"))) as door:
        found = await door.training.CompareTrainingJobs(
            pb.CompareTrainingJobsRequest(names=["trainingJobs/j2", "trainingJobs/j1"])
        )

        assert [job.name for job in found.jobs] == ["trainingJobs/j2", "trainingJobs/j1"]
        assert found.jobs[0].queued.ToTimedelta().total_seconds() == 2.0
        assert not found.jobs[0].HasField("latest_evaluation")
        assert [(one.path, [*one.values]) for one in found.spec_differences] == [("recipe.seed", ["0", "1"])]


async def test_a_job_that_is_not_there_cannot_be_compared() -> None:
    async with open_door(JobDesk(a_job("j1"))) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.CompareTrainingJobs(
                pb.CompareTrainingJobsRequest(names=["trainingJobs/j1", "trainingJobs/nobody"])
            )

        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
