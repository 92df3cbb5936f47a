"""Jobs that rest and give way, with real workers: nothing of them stays, and they end as if uninterrupted."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from headrace.training.v1 import (
    training_event_pb2 as event_pb,
    training_job_pb2 as job_pb,
    training_service_pb2 as pb,
    training_spec_pb2 as spec_pb,
)
from headrace_server.launchers.processes import is_alive
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import Callers, end_processes_of, running
from tests.doubles.until import until
from tests.doubles.watcher import Watcher, is_now, is_step
from tests.house.test_kill import trainer_of

State = job_pb.TrainingJob.State
EPOCHS = 120


@contextmanager
def held(trainer: psutil.Process) -> Iterator[None]:
    """Hold a trainer still, so that it does not come to its end before it is asked to rest."""
    trainer.suspend()
    try:
        yield
    finally:
        trainer.resume()


async def result_of(callers: Callers, job: str) -> tuple[job_pb.TrainingJob, event_pb.EvaluationCompleted]:
    """A job that has ended, and its last evaluation."""
    name = f"trainingJobs/{job}"
    stream = callers.training.StreamProgress(pb.StreamProgressRequest(name=name))
    events = [frame.event async for frame in stream if frame.HasField("event")]
    evaluations = [event.evaluation_completed for event in events if event.HasField("evaluation_completed")]
    return (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name=name))).job, evaluations[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_paused_training_leaves_no_process_survives_a_kill_and_ends_as_if_it_had_not_rested(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    watcher = Watcher("rested")
    name = "trainingJobs/rested"
    try:
        async with running(data) as (server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("rested", epochs=EPOCHS))
            watching = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_step)

            with held(trainer_of(server.agents()[0])):
                answer = await callers.training.PauseTrainingJob(pb.PauseTrainingJobRequest(name=name))
            await watcher.saw(is_now(State.STATE_PAUSED))

            assert answer.job.state == State.STATE_PAUSING
            await until(lambda: server.agents() == [])
            await until(lambda: len(server.waiting_agents()) == 1)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await callers.training.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name=name))
            assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            waiting = server.waiting_agents()
            await server.kill()
            await watching
            await until(lambda: not any(is_alive(agent) for agent in waiting))

        async with running(data) as (server, callers):
            assert server.agents() == []
            await callers.training.ResumeTrainingJob(pb.ResumeTrainingJobRequest(name=name))
            assert await asyncio.wait_for(watcher.watch(callers), 250) is grpc.StatusCode.OK
            await callers.training.StartTraining(learn_flowers("straight", epochs=EPOCHS))
            straight, of_straight = await result_of(callers, "straight")
            rested, of_rested = await result_of(callers, "rested")

            assert rested.state == straight.state == State.STATE_SUCCEEDED
            assert rested.restarts == 0
            assert of_rested == of_straight
            steps = [event.step_completed.step for event in watcher.events if is_step(event)]
            assert steps == sorted(set(steps))
            await callers.training.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name=name))
            assert not list((data / "store").glob("**/checkpoints/rested/**/*.safetensors"))
    finally:
        end_processes_of(data)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_training_gives_way_to_one_of_higher_priority_and_both_end_well(tmp_path: Path) -> None:
    data = tmp_path / "data"
    watcher = Watcher("meek")
    try:
        async with running(data) as (server, callers):
            await upload_flowers(callers)
            meek = spec_pb.Resources(priority=-1, preemptible=True)
            await callers.training.StartTraining(learn_flowers("meek", epochs=EPOCHS, resources=meek))
            watching = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_step)

            urgent = spec_pb.Resources(priority=1)
            with held(trainer_of(server.agents()[0])):
                await callers.training.StartTraining(learn_flowers("urgent", epochs=1, resources=urgent))
                await watcher.saw(is_now(State.STATE_PAUSING))
            urgent_job, _ = await result_of(callers, "urgent")
            assert await asyncio.wait_for(watching, 250) is grpc.StatusCode.OK
            meek_job, _ = await result_of(callers, "meek")

            assert urgent_job.state == meek_job.state == State.STATE_SUCCEEDED
            assert urgent_job.end_time.ToDatetime() < meek_job.end_time.ToDatetime()
            assert any(event.state_changed.reason == "PREEMPTED" for event in watcher.events)
    finally:
        end_processes_of(data)
