import asyncio
import sqlite3
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.datasets.v1 import dataset_service_pb2 as datasets_pb
from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.models.v1 import model_service_pb2 as models_pb
from headrace.training.v1 import training_service_pb2 as training_pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import CannotStart
from headrace_server.house import House
from headrace_server.settings import Settings
from tests.doubles import onnx_models
from tests.doubles.server_process import Callers
from tests.doubles.until import until


def settings(data: Path, **sections: dict[str, Any]) -> Settings:
    sections.setdefault("server", {})
    sections.setdefault("telemetry", {})
    sections["server"] = {"port": 0, **sections["server"]}
    sections["telemetry"] = {"metrics_port": -1, **sections["telemetry"]}
    return Settings.model_validate({"data": data, **sections})


def callers_of(house: House) -> Callers:
    return Callers(f"127.0.0.1:{house.port}")


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def rows(values: list[float]) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_FP32,
        shape=[len(values) // 2, 2],
        floats=tensor_pb2.FloatValues(values=values),
    )


async def test_a_model_is_served_from_a_file_without_any_training(tmp_path: Path) -> None:
    file = save(onnx_models.scale(2.0), tmp_path / "double.onnx")
    async with House(settings(tmp_path / "data", models={"serve": {"double": file}})) as house:
        async with callers_of(house) as callers:
            answer = await callers.inference.Predict(
                pb.PredictRequest(model="models/double", inputs={"x": rows([1, 2])})
            )
            status = await callers.inference.GetModelStatus(pb.GetModelStatusRequest(model="models/double"))
            health = await health_pb2_grpc.HealthStub(callers.channel).Check(
                health_pb2.HealthCheckRequest(service="models/double")
            )

        assert list(answer.outputs["y"].floats.values) == [2, 4]
        assert answer.model_version == "models/double/versions/1"
        assert status.readiness == pb.GetModelStatusResponse.READINESS_READY
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        await house.drain()


async def test_the_same_file_is_the_same_version_at_the_next_start(tmp_path: Path) -> None:
    file = save(onnx_models.scale(2.0), tmp_path / "double.onnx")
    chosen = settings(tmp_path / "data", models={"serve": {"double": file}})
    for _ in range(2):
        async with House(chosen) as house, callers_of(house) as callers:
            model = (await callers.models.GetModel(models_pb.GetModelRequest(name="models/double"))).model
            assert model.latest_version == "models/double/versions/1"


async def test_a_house_that_was_never_drained_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(3):
        async with House(settings(tmp_path)) as house, callers_of(house) as callers:
            listed = await callers.training.ListTrainingJobs(training_pb.ListTrainingJobsRequest())
            assert len(listed.jobs) == 0


async def test_a_port_that_is_taken_is_named_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with House(settings(tmp_path / "one")) as first:
        second = settings(tmp_path / "two", server={"port": first.port})
        with pytest.raises(CannotStart, match=f"port {first.port}"):
            await House(second).open()

    async with House(second):
        pass


async def test_a_metrics_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async with House(settings(tmp_path / "one", telemetry={"metrics_port": 0})) as first:
        with pytest.raises(CannotStart, match=f"port {first.metrics_port}"):
            await House(settings(tmp_path / "two", telemetry={"metrics_port": first.metrics_port})).open()


async def test_a_data_folder_belongs_to_one_server_at_a_time(tmp_path: Path) -> None:
    async with House(settings(tmp_path)):
        with pytest.raises(CannotStart, match="in use by another server"):
            await House(settings(tmp_path)).open()


async def test_a_database_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with House(settings(tmp_path)):
        pass
    with sqlite3.connect(tmp_path / "headrace.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()

    with pytest.raises(CannotStart, match="newer release"):
        await House(settings(tmp_path)).open()

    with sqlite3.connect(tmp_path / "headrace.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)
    connection.close()


@pytest.mark.parametrize("name", ["Upper", "no_underscores"])
async def test_a_name_that_no_model_can_have_is_named(tmp_path: Path, name: str) -> None:
    file = save(onnx_models.scale(), tmp_path / "m.onnx")
    with pytest.raises(CannotStart, match=name):
        await House(settings(tmp_path / "data", models={"serve": {name: file}})).open()


async def test_a_file_that_is_no_model_keeps_the_house_closed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(CannotStart, match=r"models\.serve: m = "):
        await House(settings(tmp_path / "data", models={"serve": {"m": tmp_path / "m.onnx"}})).open()


async def test_a_data_folder_with_a_very_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30)
    async with House(settings(data)):
        assert not (data / "run").exists()


async def test_scratch_is_empty_after_a_start(tmp_path: Path) -> None:
    async with House(settings(tmp_path)):
        (tmp_path / "scratch" / "left").mkdir()
        (tmp_path / "scratch" / "left" / "over").write_text("x")
    async with House(settings(tmp_path)):
        assert not (tmp_path / "scratch" / "left").exists()


async def test_metrics_are_served_while_the_house_is_open(tmp_path: Path) -> None:
    async with House(settings(tmp_path, telemetry={"metrics_port": 0})) as house, callers_of(house) as callers:
        await callers.training.ListTrainingJobs(training_pb.ListTrainingJobsRequest())
        page = await asyncio.to_thread(_fetch, house.metrics_port)

    assert 'headrace_calls_total{code="OK",method="headrace.training.v1.TrainingService/ListTrainingJobs"} 1.0' in page
    with pytest.raises(OSError, match="refused"):
        _fetch(house.metrics_port)


def _fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        return str(response.read().decode())


async def test_a_drained_house_says_so_before_it_refuses(tmp_path: Path) -> None:
    chosen = settings(tmp_path, server={"pre_stop_seconds": 600})
    async with House(chosen) as house, callers_of(house) as callers:
        watch: Any = health_pb2_grpc.HealthStub(callers.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        draining = asyncio.ensure_future(house.drain())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING

        await callers.training.ListTrainingJobs(training_pb.ListTrainingJobsRequest())  # still answered
        house.hurry()
        async with asyncio.timeout(60):
            await draining
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await callers.training.ListTrainingJobs(training_pb.ListTrainingJobsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_hurrying_cuts_off_a_caller_who_would_hold_the_house_up(tmp_path: Path) -> None:
    async with House(settings(tmp_path)) as house, callers_of(house) as callers:
        upload: Any = callers.datasets.UploadDataset()
        header = datasets_pb.UploadDatasetHeader(dataset="datasets/d", file_name="d.csv")
        await upload.write(datasets_pb.UploadDatasetRequest(header=header))
        await upload.write(datasets_pb.UploadDatasetRequest(chunk=b"a,b\n"))
        await until(lambda: house.metrics.registry.get_sample_value("headrace_calls_in_flight") == 1)
        draining = asyncio.ensure_future(house.drain())
        await asyncio.wait((draining,), timeout=0.5)
        assert not draining.done()

        house.hurry()
        async with asyncio.timeout(60):
            await draining


async def test_answers_of_a_batch_are_each_callers_own(tmp_path: Path) -> None:
    file = save(onnx_models.scale(3.0), tmp_path / "triple.onnx")
    chosen = settings(tmp_path / "data", models={"serve": {"triple": file}})
    async with House(chosen) as house, callers_of(house) as callers:

        async def ask(seed: int) -> bool:
            content = np.random.default_rng(seed).normal(size=(seed % 5 + 1, 2)).astype("<f4")
            tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=content.shape, data=content.tobytes())
            answer = await callers.inference.Predict(pb.PredictRequest(model="models/triple", inputs={"x": tensor}))
            back = np.frombuffer(answer.outputs["y"].data, "<f4").reshape(content.shape)
            return bool((back == content * np.float32(3)).all())

        assert all(await asyncio.gather(*(ask(seed) for seed in range(300))))
