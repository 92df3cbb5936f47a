from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from headrace.datasets.v1 import dataset_pb2, dataset_service_pb2 as datasets_pb
from headrace.models.v1 import model_pb2, model_service_pb2 as models_pb
from headrace_server.training.states import JobState
from tests.doubles.door import Door, open_door
from tests.doubles.job_desk import JobDesk, a_job

DATASET = datasets_pb.UploadDatasetRequest(
    header=datasets_pb.UploadDatasetHeader(
        dataset="datasets/digits", format=dataset_pb2.DATASET_FORMAT_PARQUET, file_name="x.parquet"
    )
)
MODEL = models_pb.UploadModelVersionRequest(
    header=models_pb.UploadModelVersionHeader(model="models/m", format=model_pb2.Artifact.FORMAT_ONNX)
)


def piece(content: bytes) -> datasets_pb.UploadDatasetRequest:
    return datasets_pb.UploadDatasetRequest(chunk=content)


async def each(*requests: Any) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def upload_model(door: Door, content: bytes) -> model_pb2.ModelVersion:
    chunk = models_pb.UploadModelVersionRequest(chunk=content)
    answer = await door.models.UploadModelVersion(each(MODEL, chunk))
    return answer.model_version


async def test_a_data_set_is_stored_from_its_pieces() -> None:
    async with open_door() as door:
        answer = await door.datasets.UploadDataset(each(DATASET, piece(b"ab"), piece(b""), piece(b"cd")))

        assert door.catalog.contents["digits"] == b"abcd"
        version = answer.dataset_version
        assert version.format == dataset_pb2.DATASET_FORMAT_PARQUET
        assert version.size_bytes == 4
        assert version.columns[0].num_missing == 2
        assert version.name.startswith("datasets/digits/versions/")


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "header"),
        ([piece(b"ab")], "header"),
        ([DATASET, piece(b"ab"), DATASET], "header"),
        ([DATASET, datasets_pb.UploadDatasetRequest()], "chunk"),
    ],
)
async def test_an_upload_is_a_header_then_bytes(requests: list[datasets_pb.UploadDatasetRequest], field: str) -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.datasets.UploadDataset(each(*requests))

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.details() or "").startswith(field)
        assert door.catalog.contents == {}


@pytest.mark.parametrize(
    "header",
    [
        datasets_pb.UploadDatasetHeader(dataset="digits"),
        datasets_pb.UploadDatasetHeader(dataset="datasets/digits/versions/0123456789abcdef"),
        datasets_pb.UploadDatasetHeader(dataset="datasets/digits", format=99),  # type: ignore[arg-type]
    ],
)
async def test_a_header_that_cannot_be_used_is_refused(header: datasets_pb.UploadDatasetHeader) -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.datasets.UploadDataset(each(datasets_pb.UploadDatasetRequest(header=header), piece(b"a")))

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_data_set_is_found_listed_and_deleted() -> None:
    async with open_door() as door:
        await door.datasets.RegisterDataset(datasets_pb.RegisterDatasetRequest(dataset="datasets/b", uri="file:///b"))
        await door.datasets.UploadDataset(each(DATASET, piece(b"ab")))

        found = await door.datasets.GetDataset(datasets_pb.GetDatasetRequest(name="datasets/digits"))
        listed = await door.datasets.ListDatasets(datasets_pb.ListDatasetsRequest(page_size=1))
        versions = await door.datasets.ListDatasetVersions(
            datasets_pb.ListDatasetVersionsRequest(dataset="datasets/digits")
        )
        await door.datasets.DeleteDataset(datasets_pb.DeleteDatasetRequest(name="datasets/digits"))

        assert found.dataset.num_versions == 1
        assert [dataset.name for dataset in listed.datasets] == ["datasets/b"]
        assert listed.next_page_token
        assert len(versions.dataset_versions) == 1
        assert "digits" not in door.catalog.versions


async def test_a_data_set_that_a_live_job_uses_stays() -> None:
    async with open_door(JobDesk(a_job())) as door:
        await door.datasets.UploadDataset(each(DATASET, piece(b"ab")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.datasets.DeleteDataset(datasets_pb.DeleteDatasetRequest(name="datasets/digits"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION

        door.desk.jobs["j1"] = a_job(state=JobState.SUCCEEDED)
        await door.datasets.DeleteDataset(datasets_pb.DeleteDatasetRequest(name="datasets/digits"))
        assert "digits" not in door.catalog.versions


async def test_a_model_is_uploaded_shown_and_downloaded() -> None:
    async with open_door() as door:
        version = await upload_model(door, b"0123456789")
        frames = [
            frame
            async for frame in door.models.DownloadArtifact(
                models_pb.DownloadArtifactRequest(name=version.name, path="model.onnx")
            )
        ]
        shown = await door.models.GetModelVersion(models_pb.GetModelVersionRequest(name="models/m"))

        assert version.name == "models/m/versions/1"
        assert frames[0].artifact.size_bytes == 10
        assert b"".join(frame.chunk for frame in frames[1:]) == b"0123456789"
        lineage = shown.model_version.lineage
        deep: Any = lineage.spec["deep"]
        assert deep["is"] is True
        assert lineage.parity["model.onnx"].num_rows == 8
        assert dict(shown.model_version.metrics) == {"accuracy": 0.5}


async def test_aliases_point_and_are_taken_away() -> None:
    async with open_door() as door:
        await upload_model(door, b"a")
        await upload_model(door, b"b")

        pointed = await door.models.AssignAlias(
            models_pb.AssignAliasRequest(model="models/m", alias="champion", model_version="models/m/versions/1")
        )
        listed = await door.models.ListModels(models_pb.ListModelsRequest())
        versions = await door.models.ListModelVersions(models_pb.ListModelVersionsRequest(model="models/m"))
        gone = await door.models.DeleteAlias(models_pb.DeleteAliasRequest(model="models/m", alias="champion"))

        assert dict(pointed.model.aliases) == {"champion": "models/m/versions/1"}
        assert listed.models[0].latest_version == "models/m/versions/2"
        assert [version.name for version in versions.model_versions] == ["models/m/versions/2", "models/m/versions/1"]
        assert dict(gone.model.aliases) == {}


@pytest.mark.parametrize(
    "request_",
    [
        models_pb.AssignAliasRequest(model="models/m@x", alias="a", model_version="models/m/versions/1"),
        models_pb.AssignAliasRequest(model="models/m", alias="No", model_version="models/m/versions/1"),
        models_pb.AssignAliasRequest(model="models/m", alias="a", model_version="models/m"),
        models_pb.AssignAliasRequest(model="models/m", alias="a", model_version="models/other/versions/1"),
    ],
)
async def test_an_alias_that_makes_no_sense_is_refused(request_: models_pb.AssignAliasRequest) -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.models.AssignAlias(request_)

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_version_is_loaded_and_unloaded() -> None:
    async with open_door() as door:
        loaded = await door.models.LoadModelVersion(models_pb.LoadModelVersionRequest(name="models/echo"))
        unloaded = await door.models.UnloadModelVersion(models_pb.UnloadModelVersionRequest(name="models/echo"))

        assert (loaded.model_version, loaded.backend) == ("models/echo/versions/3", "onnxruntime")
        assert unloaded.model_version == "models/echo/versions/3"
