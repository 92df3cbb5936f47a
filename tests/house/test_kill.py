"""Whatever is killed, and in whatever order, a job goes on and its history is whole."""

import asyncio
from pathlib import Path

import grpc
import psutil
import pytest

from headrace.inference.v1 import inference_service_pb2 as inference_pb
from headrace.training.v1 import training_event_pb2 as event_pb, training_job_pb2 as job_pb, training_service_pb2 as pb
from headrace.type.v1 import tensor_pb2
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import Callers, end_processes_of, running
from tests.doubles.until import until
from tests.doubles.watcher import Watcher, is_checkpoint, is_now, is_step

RUNNING = job_pb.TrainingJob.STATE_RUNNING


def trainer_of(agent: psutil.Process) -> psutil.Process:
    return next(child for child in agent.children() if "headrace_server.trainers" in " ".join(child.cmdline()))


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; nobody may be there to collect it."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def past_a_checkpoint(watcher: Watcher, after: int = 0) -> int:
    """Wait until training goes on after a checkpoint; the sequence where it does."""
    checkpoint = await watcher.saw(is_checkpoint, after)
    return (await watcher.saw(is_step, checkpoint.sequence)).sequence


async def history_of(callers: Callers, job: str) -> list[event_pb.TrainingEvent]:
    """All that is kept of an ended job."""
    stream = callers.training.StreamProgress(pb.StreamProgressRequest(name=f"trainingJobs/{job}"))
    return [frame.event async for frame in stream if frame.HasField("event")]


def assert_whole(history: list[event_pb.TrainingEvent], watcher: Watcher) -> None:
    """Every sequence once, in order, for who was there all the time and for who comes later; no step twice."""
    assert [event.sequence for event in history] == list(range(1, len(history) + 1))
    assert watcher.sequences == [event.sequence for event in history]
    steps = [event.step_completed.step for event in history if is_step(event)]
    assert steps == sorted(set(steps))
    assert history[-1].state_changed.to == job_pb.TrainingJob.STATE_SUCCEEDED


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_job_survives_the_death_of_its_trainer_its_agent_and_the_server(tmp_path: Path) -> None:
    data = tmp_path / "data"
    watcher = Watcher("j")
    try:
        async with running(data) as (server, callers):
            await upload_flowers(callers, num_rows=4000)
            await callers.training.StartTraining(learn_flowers("j", epochs=100, batch_size=16))
            watching = asyncio.ensure_future(watcher.watch(callers))

            at = await past_a_checkpoint(watcher)
            trainer_of(server.agents()[0]).kill()

            at = (await watcher.saw(is_now(RUNNING), at)).sequence
            at = await past_a_checkpoint(watcher, at)
            server.agents()[0].kill()

            at = (await watcher.saw(is_now(RUNNING), at)).sequence
            at = await past_a_checkpoint(watcher, at)
            agent = server.agents()[0]
            await server.kill()
            assert await watching is grpc.StatusCode.UNAVAILABLE
            assert agent.is_running()

        async with running(data) as (server, callers):
            again = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_step, at)
            attached = await server.logged("training.worker_attached")
            assert attached["attempt"] == 3  # the agent that was there: nothing had to be begun anew
            assert await asyncio.wait_for(again, 400) is grpc.StatusCode.OK

            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.state == job_pb.TrainingJob.STATE_SUCCEEDED, job
            assert job.restarts == 2
            assert_whole(await history_of(callers, "j"), watcher)
            assert watcher.events[-1].state_changed.job.model_version == "models/flowers/versions/1"
            await predicts(callers)
            await until(lambda: is_gone(agent))
    finally:
        end_processes_of(data)


async def predicts(callers: Callers) -> None:
    column = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_FP32, shape=[2], floats=tensor_pb2.FloatValues(values=[2.0, 0.0])
    )
    width = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_FP32, shape=[2], floats=tensor_pb2.FloatValues(values=[-1.0, 0.0])
    )
    answer = await callers.inference.Predict(
        inference_pb.PredictRequest(model="models/flowers", inputs={"length": column, "width": width})
    )
    assert list(answer.outputs["label"].ints.values) == [0, 1]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_job_leaves_with_the_server_and_continues_with_the_next(tmp_path: Path) -> None:
    data = tmp_path / "data"
    watcher = Watcher("j")
    try:
        async with running(data) as (server, callers):
            await upload_flowers(callers, num_rows=4000)
            await callers.training.StartTraining(learn_flowers("j", epochs=40, batch_size=16))
            watching = asyncio.ensure_future(watcher.watch(callers))
            at = await past_a_checkpoint(watcher)
            agent = server.agents()[0]

            server.process.terminate()
            assert await server.ended() == 0
            assert await watching is grpc.StatusCode.UNAVAILABLE
            assert is_gone(agent)

        async with running(data) as (_, callers):
            again = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_step, at)
            assert await asyncio.wait_for(again, 300) is grpc.StatusCode.OK
            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.restarts == 0
            assert_whole(await history_of(callers, "j"), watcher)
    finally:
        end_processes_of(data)
