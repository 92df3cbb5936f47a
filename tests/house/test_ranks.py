"""Two real ranks through the real server: they train, one dies, the job goes on, and nothing is left behind."""

import asyncio
import os
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

from headrace.training.v1 import (
    training_job_pb2 as job_pb,
    training_service_pb2 as pb,
    training_spec_pb2 as spec_pb,
)
from headrace_server.launchers.processes import is_alive
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import ServerProcess, end_processes_of, running
from tests.doubles.until import until
from tests.doubles.watcher import Watcher, is_checkpoint, is_now, is_step

NUM_CORES = len(os.sched_getaffinity(0))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
needs_two_cores = pytest.mark.skipif(NUM_CORES < 2, reason="each rank needs a processor core")

State = job_pb.TrainingJob.State
TWO = spec_pb.Resources(ranks=2, device=spec_pb.Resources.DEVICE_CPU, cpu_threads=1)
OFTEN = spec_pb.CheckpointPolicy(period=Duration(seconds=1))


def ranks_of(server: ServerProcess) -> dict[int, psutil.Process]:
    """The trainers of the one job there is, by rank."""
    found = {}
    for process in server.processes_of_jobs():
        try:
            rank, command = process.environ().get("RANK"), process.cmdline()
        except psutil.Error:  # it has ended meanwhile
            continue
        if rank is not None and "headrace_server" in " ".join(command):
            found[int(rank)] = process
    return found


@needs_two_cores
async def test_a_rank_that_is_killed_takes_its_world_down_and_the_job_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    watcher = Watcher("j")
    try:
        async with running(data, "--set", "training.warm_workers=0") as (server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(
                learn_flowers("j", epochs=150, resources=TWO, checkpoints=OFTEN, deterministic=True)
            )
            watching = asyncio.ensure_future(watcher.watch(callers))
            saved = await watcher.saw(is_checkpoint)
            ranks = ranks_of(server)
            assert sorted(ranks) == [0, 1]
            first = server.processes_of_jobs()

            ranks[1].kill()

            lost = await watcher.saw(is_now(State.STATE_RECOVERING), saved.sequence)
            assert "SIGKILL" in lost.state_changed.message
            assert "continues from the checkpoint" in lost.state_changed.message
            await until(lambda: not any(is_alive(process) for process in first), seconds=60)
            step = await watcher.saw(is_step, lost.sequence)
            # Both ranks are back, or all is over already.
            await until(lambda: sorted(ranks_of(server)) == [0, 1] or watcher.is_over, seconds=60)
            assert step.step_completed.step > 1

            assert await asyncio.wait_for(watching, 250) is grpc.StatusCode.OK
            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.state == State.STATE_SUCCEEDED, job
            assert job.restarts == 1
            steps = [event.step_completed.step for event in watcher.events if is_step(event)]
            assert steps == sorted(set(steps))
            await until(lambda: server.agents() == [], seconds=60)
    finally:
        end_processes_of(data)


@needs_two_cores
@pytest.mark.parametrize("mode", ["MODE_GRACEFUL", "MODE_KILL"])
async def test_a_stop_leaves_no_process_of_any_rank_behind(tmp_path: Path, mode: str) -> None:
    data = tmp_path / "data"
    watcher = Watcher("j")
    try:
        async with running(data, "--set", "training.warm_workers=0") as (server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=100_000, resources=TWO))
            watching = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_step)
            processes = server.processes_of_jobs()
            assert sorted(ranks_of(server)) == [0, 1]

            value = pb.CancelTrainingJobRequest.Mode.Value(mode)
            await callers.training.CancelTrainingJob(pb.CancelTrainingJobRequest(name="trainingJobs/j", mode=value))

            assert await asyncio.wait_for(watching, 250) is grpc.StatusCode.OK
            # When the job says that it is cancelled, its trainers are gone; its agent has only to say good-bye.
            agents = {agent.pid for agent in server.agents()}
            assert not [process for process in processes if is_alive(process) and process.pid not in agents]
            await until(lambda: not any(is_alive(process) for process in processes), seconds=60)
            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.state == State.STATE_CANCELLED
            marked = [process for process in psutil.process_iter() if _mentions(process, str(data / "work"))]
            assert marked == []
    finally:
        end_processes_of(data)


def _mentions(process: psutil.Process, folder: str) -> bool:
    """Whether a process was started for a job below a folder: agents mark all that they start in its environment."""
    try:
        return any(folder in value for value in process.environ().values())
    except psutil.Error:
        return False


@pytest.mark.skipif(NUM_CORES >= 64, reason="there is a core for as many ranks as may be asked for")
async def test_more_ranks_than_there_are_devices_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    many = spec_pb.Resources(ranks=NUM_CORES + 1, device=spec_pb.Resources.DEVICE_CPU)
    async with running(data) as (_server, callers):
        await upload_flowers(callers)

        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await callers.training.StartTraining(learn_flowers("j", resources=many))

    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ranks" in str(refusal.value.details())
