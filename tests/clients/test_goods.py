"""Data sets, models and health."""

import asyncio
import os
from io import BytesIO
from pathlib import Path

import grpc
import numpy as np
import pytest

import headrace
from headrace import Client, Health
from headrace.datasets.v1.dataset_pb2 import DatasetFormat
from tests.doubles.given_clock import GivenClock
from tests.doubles.refusal import Refusal
from tests.doubles.scripted_server import ScriptedServer


async def test_arrays_are_packed_without_pickle_and_the_same_each_time(client: Client, server: ScriptedServer) -> None:
    arrays = {"images": np.arange(32.0).reshape(2, 4, 4), "labels": np.array(["a", "bb"]), "file": np.ones(2)}

    first = await client.upload_dataset("digits", arrays)
    second = await client.upload_dataset("digits", dict(reversed(arrays.items())))

    assert first.name == second.name
    content = server.datasets.contents["datasets/digits"]
    path = Path(server.datasets.headers[0].file_name)
    assert path.suffix == ".npz"
    with np.load(BytesIO(content), allow_pickle=False) as loaded:
        assert {name: loaded[name].tolist() for name in loaded.files} == {
            name: array.tolist() for name, array in arrays.items()
        }


async def test_objects_are_not_uploaded(client: Client, server: ScriptedServer) -> None:
    with pytest.raises(ValueError, match="'labels' holds Python objects"):
        await client.upload_dataset("digits", {"labels": np.array([object()])})
    with pytest.raises(ValueError, match="no array"):
        await client.upload_dataset("digits", {})

    assert server.datasets.headers == []


async def test_a_file_is_sent_in_pieces_with_its_digest(client: Client, server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "penguins.csv"
    path.write_bytes(b"species,mass\n" + b"adelie,3700\n" * 300_000)

    await client.upload_dataset("penguins", path)

    assert server.datasets.contents["datasets/penguins"] == path.read_bytes()
    assert server.datasets.largest_chunk == 1 << 20
    assert server.datasets.headers[0].file_name == "penguins.csv"


async def test_bytes_are_sent_with_their_format(client: Client, server: ScriptedServer) -> None:
    await client.upload_dataset("datasets/letters", b"a,b\n1,2\n", format="csv")

    assert server.datasets.headers[0].format == DatasetFormat.DATASET_FORMAT_CSV
    assert server.datasets.contents["datasets/letters"] == b"a,b\n1,2\n"


async def test_an_upload_that_broke_is_sent_again_from_the_beginning(
    client: Client, server: ScriptedServer, clock: GivenClock
) -> None:
    server.datasets.num_broken = 2

    await client.upload_dataset("letters", b"a,b\n1,2\n", format="csv")

    assert server.datasets.contents["datasets/letters"] == b"a,b\n1,2\n"
    assert len(clock.slept) == 2


async def test_a_refusal_in_the_middle_of_an_upload_says_why(client: Client, server: ScriptedServer) -> None:
    server.datasets.refuse_after_header = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "too large", "TOO_LARGE")

    for _ in range(10):
        with pytest.raises(headrace.TooLarge):
            await client.upload_dataset("big", bytes(30 << 20), format="csv")


async def test_a_file_that_is_not_there_is_an_os_error(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await client.upload_dataset("none", tmp_path / "none.csv")


async def test_data_sets_are_registered_listed_and_deleted(client: Client) -> None:
    version = await client.register_dataset("flowers", "file:///data/flowers")
    assert version.name.startswith("datasets/flowers/versions/")
    assert [one.name for one in await client.list_datasets()] == ["datasets/flowers"]
    assert (await client.get_dataset("flowers")).latest_version == version
    assert await client.list_dataset_versions("flowers") == [version]

    await client.delete_dataset("flowers")

    with pytest.raises(headrace.DatasetNotFound):
        await client.get_dataset("flowers")


@pytest.mark.parametrize(("limit", "names"), [(None, 6), (3, 3), (0, 0), (99, 6)])
async def test_pages_are_turned_until_there_is_enough(client: Client, limit: int | None, names: int) -> None:
    assert len(await client.list_training_jobs(limit=limit)) == names


async def test_a_model_goes_up_gets_an_alias_and_comes_down(client: Client, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(bytes(range(256)) * 20)

    version = await client.upload_model("digits", source)
    model = await client.assign_alias("digits", "champion", 1)
    loaded = await client.load_model("digits", backend="torch")
    where = await client.download_artifact("digits", tmp_path)

    assert version.name == model.aliases["champion"] == loaded.model_version == "models/digits/versions/1"
    assert loaded.backend == "torch"
    assert where == tmp_path / "model.onnx"
    assert where.read_bytes() == source.read_bytes()
    assert await client.unload_model("digits") == version.name
    assert (await client.delete_alias("digits", "champion")).aliases == {}
    assert [one.name for one in await client.list_model_versions("digits")] == [version.name]
    assert [one.name for one in await client.list_models()] == ["models/digits"]


async def test_an_upload_whose_answer_got_lost_is_one_version(client: Client, server: ScriptedServer) -> None:
    server.models.num_lost = 1

    version = await client.upload_model("digits", b"onnx", format="onnx")

    assert version.name == "models/digits/versions/1"
    assert len(server.models.headers) == 2


async def test_a_damaged_download_leaves_nothing(client: Client, server: ScriptedServer, tmp_path: Path) -> None:
    await client.upload_model("digits", b"x" * 5000, format="onnx")
    server.models.damage = b"y"
    (tmp_path / "kept.onnx").write_bytes(b"before")

    with pytest.raises(headrace.DigestMismatch):
        await client.download_artifact("digits", tmp_path / "kept.onnx")

    assert await asyncio.to_thread(os.listdir, tmp_path) == ["kept.onnx"]
    assert (tmp_path / "kept.onnx").read_bytes() == b"before"


async def test_health_is_that_of_the_server_or_of_one_model(client: Client) -> None:
    assert await client.health() is Health.SERVING
    assert await client.health("models/digits") is Health.NOT_SERVING
    with pytest.raises(headrace.NotFound):
        await client.health("models/none")
