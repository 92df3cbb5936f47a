"""Agents that die are missed at once, at whatever moment it happens."""

import asyncio
from pathlib import Path

import grpc
import psutil
import pytest

from headrace.training.v1 import training_job_pb2 as job_pb, training_service_pb2 as pb
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import ServerProcess, end_processes_of, running
from tests.doubles.until import until
from tests.doubles.watcher import Watcher, is_now, is_step

PATIENT = ("--set", "training.lease_seconds=600", "--set", "training.attach_seconds=600")
"""Whoever waited for these would wait until the test has failed."""
is_lost = is_now(job_pb.TrainingJob.STATE_RECOVERING)


HOLD = """
import os, sys, time
while "headrace_server.worker" in sys.orig_argv and not os.path.exists(GO_ON):
    time.sleep(0.01)
"""


def holding(tmp_path: Path, go_on: Path) -> dict[str, str]:
    """The environment of a server whose agents do nothing before this file is there."""
    folder = tmp_path / "hold"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"GO_ON = {str(go_on)!r}\n{HOLD}")
    return {"PYTHONPATH": str(folder)}


async def first_agent(server: ServerProcess) -> psutil.Process:
    await until(lambda: bool(server.agents()))
    return server.agents()[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_agent_that_is_killed_before_and_after_it_attached_is_replaced_at_once(tmp_path: Path) -> None:
    data, go_on = tmp_path / "data", tmp_path / "go_on"
    watcher = Watcher("j")
    try:
        async with running(data, *PATIENT, environment=holding(tmp_path, go_on)) as (server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=60))
            watching = asyncio.ensure_future(watcher.watch(callers))

            (await first_agent(server)).kill()
            lost = await watcher.saw(is_lost)
            assert "was ended by SIGKILL before it attached" in lost.state_changed.message
            go_on.touch()

            step = await watcher.saw(is_step)
            (await first_agent(server)).kill()
            lost = await watcher.saw(is_lost, step.sequence)
            assert "was ended by SIGKILL;" in lost.state_changed.message

            assert await asyncio.wait_for(watching, 250) is grpc.StatusCode.OK
            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.state == job_pb.TrainingJob.STATE_SUCCEEDED, job
            assert job.restarts == 2
    finally:
        end_processes_of(data)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_job_that_succeeds_leaves_no_warning(tmp_path: Path) -> None:
    data = tmp_path / "data"
    try:
        async with running(data) as (server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=1))
            watcher = Watcher("j")
            assert await asyncio.wait_for(watcher.watch(callers), 250) is grpc.StatusCode.OK
            await until(lambda: not (data / "work" / "j").exists())

            loud = [line for line in server.lines if line["level"] not in ("info", "debug")]
            assert loud == []
            assert server.text == []
            about = [line for line in server.lines if "request_id" in line]
            assert [line["event"] for line in about if line["event"].startswith("launcher.")] == []
    finally:
        end_processes_of(data)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_agent_that_has_told_of_its_trainers_death_ends_by_itself(tmp_path: Path) -> None:
    data = tmp_path / "data"
    watcher = Watcher("j")
    try:
        async with running(data) as (server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=60))
            watching = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_step)
            (await first_agent(server)).children()[0].kill()

            assert await asyncio.wait_for(watching, 250) is grpc.StatusCode.OK
            assert any(is_lost(event) for event in watcher.events)
            assert [line for line in server.lines if "killed" in line["event"]] == []
    finally:
        end_processes_of(data)
