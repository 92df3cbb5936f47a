"""A job answers predictions while it trains, from its checkpoints, whatever happens to its trainer."""

import asyncio
import signal
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.tensors import from_tensor, to_tensor
from headrace.training.v1 import (
    training_event_pb2 as event_pb,
    training_job_pb2 as job_pb,
    training_service_pb2 as training_pb,
    training_spec_pb2 as spec_pb,
)
from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.trainers.tabular.parameters import TabularParameters
from headrace_server.trainers.tabular.task import build
from headrace_server.trainers.task import Material
from tests.doubles.flowers import flowers, learn_flowers, upload_flowers
from tests.doubles.refusal import info_of
from tests.doubles.server_process import Callers, ServerProcess, end_processes_of, running
from tests.doubles.until import until
from tests.doubles.watcher import Watcher, is_checkpoint

NUM_ROWS = 4000
ROWS = {
    "length": np.linspace(-2, 2, 16, dtype=np.float32),
    "width": np.linspace(2, -1, 16, dtype=np.float32),
}


def trainer_of(agent: psutil.Process) -> psutil.Process:
    return next(child for child in agent.children() if "headrace_server.trainers" in " ".join(child.cmdline()))


async def ask(callers: Callers, name: str) -> pb.PredictResponse:
    request = pb.PredictRequest(model=name, inputs={key: to_tensor(array) for key, array in ROWS.items()})
    return await callers.inference.Predict(request, timeout=240)


def scores_of(answer: pb.PredictResponse) -> NDArray[np.float32]:
    return from_tensor(answer.outputs["scores"]).astype(np.float32)


def kept_steps(data: Path) -> list[int]:
    """The steps of the checkpoints that are complete in the store."""
    manifests = (data / "store" / "objects" / "checkpoints" / "j").glob("*/manifest.json")
    return sorted(int(path.parent.name[:12]) for path in manifests)


def scores_of_the_network(data: Path, scratch: Path, step: int) -> NDArray[np.float32]:
    """What the network of a checkpoint makes of ROWS, computed by torch from the file of its weights."""
    (folder,) = (data / "store" / "objects" / "checkpoints" / "j").glob(f"{step:012}-*")
    scratch.write_bytes(flowers(NUM_ROWS))
    parameters = TabularParameters(target="kind", hidden_widths=(8,))
    task = build(parameters, Material(scratch, DatasetFormat.CSV, 0.2, 1, lambda code, message: None))
    network = task.make_network()
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    program = task.program(network.eval())
    inputs = [torch.from_numpy(ROWS[spec.name]) for spec in program.signature.inputs]
    with torch.no_grad():
        scores: NDArray[np.float32] = program.module(*inputs)[0].numpy()
    return scores


async def measured(server: ServerProcess) -> list[float]:
    """How many answers were counted with the steps and with the age of their checkpoint, and the sum of each."""
    port = (await server.logged("house.open"))["metrics_port"]
    page = await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode())
    found = {family.name: family for family in text_string_to_metric_families(page)}
    return [
        sum(sample.value for sample in found[name].samples if sample.name == f"{name}_{figure}")
        for name in ("headrace_snapshot_lag_steps", "headrace_snapshot_age_seconds")
        for figure in ("count", "sum")
    ]


async def answer_of_step(callers: Callers, name: str, step: int) -> pb.PredictResponse:
    """Ask until the checkpoint of a step answers."""
    async with asyncio.timeout(240):
        while (answer := await ask(callers, name)).provenance.training_step < step:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # it is loaded behind the one that answers
    return answer


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_job_answers_from_its_checkpoints_while_it_trains(tmp_path: Path) -> None:
    data, scratch = tmp_path / "data", tmp_path / "flowers.csv"
    watcher = Watcher("j")
    try:
        async with running(data) as (server, callers):
            await upload_flowers(callers, num_rows=NUM_ROWS)
            await callers.training.StartTraining(
                learn_flowers("j", epochs=250, batch_size=16, checkpoints=spec_pb.CheckpointPolicy(keep_last=8))
            )
            watching = asyncio.ensure_future(watcher.watch(callers))

            # Before the first checkpoint there is nothing to answer from, and it says so.
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(callers, "trainingJobs/j@latest")
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert info_of(refused.value).reason == "NO_CHECKPOINT_YET"

            # With the trainer held still, its last checkpoints stay, and the answer is the network's own.  Its agent
            # may still have two or three to store; so few retire none of those that are there.
            # (The first answer takes seconds, in which a training as small as this one may end.)
            await watcher.saw(is_checkpoint)
            trainer = trainer_of(server.agents()[0])
            trainer.send_signal(signal.SIGSTOP)
            first = await ask(callers, "trainingJobs/j@latest")
            await until(lambda: kept_steps(data) != [])
            held = await answer_of_step(callers, "trainingJobs/j@latest", kept_steps(data)[-1])
            step = held.provenance.training_step
            assert (held.model_version, held.provenance.training_job) == ("", "trainingJobs/j")
            np.testing.assert_allclose(
                scores_of(held), scores_of_the_network(data, scratch, step), rtol=1e-5, atol=1e-6
            )
            saved = await watcher.saw(lambda event: is_checkpoint_of(event, step))
            assert held.provenance.checkpoint_digest == saved.checkpoint_saved.digest
            by_step = await ask(callers, f"trainingJobs/j@step:{step}")
            np.testing.assert_array_equal(scores_of(by_step), scores_of(held))
            assert held.staleness.steps >= 0
            assert held.staleness.age.ToTimedelta().total_seconds() > 0

            # How far behind answers are is a metric, too, of exactly what they say.
            before = await measured(server)
            behind = (await ask(callers, "trainingJobs/j@latest")).staleness
            after = await measured(server)
            assert [later - earlier for earlier, later in zip(before, after, strict=True)] == pytest.approx(
                [1, behind.steps, 1, behind.age.ToTimedelta().total_seconds()], abs=1e-3
            )

            # It trains on, is killed in the middle, and is replaced: callers notice newer steps and nothing else.
            trainer.send_signal(signal.SIGCONT)
            await watcher.saw(is_checkpoint, watcher.events[-1].sequence)
            trainer.send_signal(signal.SIGSTOP)
            moved = await answer_of_step(callers, "trainingJobs/j@latest", step + 1)
            assert not np.array_equal(scores_of(moved), scores_of(held))
            trainer.kill()
            answers = [await ask(callers, "trainingJobs/j@latest") for _ in range(50)]
            steps = [first.provenance.training_step, step, moved.provenance.training_step]
            steps += [answer.provenance.training_step for answer in answers]
            assert steps == sorted(steps)
            later = await answer_of_step(callers, "trainingJobs/j@latest", steps[-1] + 1)
            assert later.provenance.artifact_digest != held.provenance.artifact_digest

            # Once it is over, its best checkpoint answers as the version does that was made of it.
            assert await watching == grpc.StatusCode.OK
            job = (await callers.training.GetTrainingJob(training_pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.state == job_pb.TrainingJob.STATE_SUCCEEDED
            version = await ask(callers, job.model_version)
            best = await answer_of_step(callers, "trainingJobs/j@best", version.provenance.training_step)
            assert best.provenance.checkpoint_digest == version.provenance.checkpoint_digest
            np.testing.assert_allclose(scores_of(best), scores_of(version), rtol=1e-5, atol=1e-6)

            # What is not kept, or does not exist, is refused with what there is.
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(callers, "trainingJobs/j@step:1")
            assert refused.value.code() == grpc.StatusCode.NOT_FOUND
            assert info_of(refused.value).reason == "CHECKPOINT_NOT_FOUND"
            listed = info_of(refused.value).metadata["kept_steps"].split(", ")
            assert sorted(map(int, listed)) == kept_steps(data)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(callers, "trainingJobs/nobody@latest")
            assert info_of(refused.value).reason == "TRAINING_JOB_NOT_FOUND"
    finally:
        end_processes_of(data)


def is_checkpoint_of(event: event_pb.TrainingEvent, step: int) -> bool:
    return is_checkpoint(event) and event.checkpoint_saved.step == step
