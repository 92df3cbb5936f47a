"""Versions, names and uploads."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import onnx
import pytest

from headrace_server.database.database import Database
from headrace_server.errors import (
    InvalidModel,
    InvalidName,
    InvalidPageToken,
    InvalidSpec,
    ModelNotFound,
    RequestIdReused,
    TooLarge,
    Unsupported,
)
from headrace_server.models.registry import Registry
from headrace_server.models.version import Artifact, ArtifactFormat, ModelVersion, NewVersion
from headrace_server.names import ModelName
from headrace_server.pages import PageRequest
from headrace_server.settings import ModelSettings
from headrace_server.storage.local import LocalBlobStore
from headrace_server.tensors import DataType, Signature, TensorSpec
from tests.doubles.onnx_models import scale

SPEC = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2))
SIGNATURE = Signature(inputs=(SPEC,), outputs=(SPEC,))


def a_version(model: str = "digits", key: str = "exports/j/1/model.onnx", accuracy: float = 0.5) -> NewVersion:
    artifact = Artifact(path="model.onnx", format=ArtifactFormat.ONNX, digest="sha256:00", size_bytes=1, key=key)
    return NewVersion(model=model, signature=SIGNATURE, artifacts=(artifact,), metrics={"accuracy": accuracy})


async def register(registry: Registry, model: str = "digits", origin: str = "") -> ModelVersion:
    return await registry.register(a_version(model), origin=origin, origin_digest="sha256:1")


async def chunked(content: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def upload(
    registry: Registry, content: bytes, *, model: str = "digits", digest: str = "", request_id: str = ""
) -> ModelVersion:
    return await registry.register_file(
        model, ArtifactFormat.ONNX, chunked(content), digest=digest, request_id=request_id
    )


def files_below(path: Path) -> list[Path]:
    return [found for found in path.rglob("*") if found.is_file() and found.name != "layout.json"]


# Versions and names.


async def test_versions_are_numbered_for_each_model_from_one(registry: Registry) -> None:
    names = [str((await register(registry, model)).name) for model in ("a", "b", "a", "a")]

    assert names == ["models/a/versions/1", "models/b/versions/1", "models/a/versions/2", "models/a/versions/3"]


async def test_versions_registered_at_once_get_numbers_of_their_own(registry: Registry) -> None:
    versions = await asyncio.gather(*(register(registry) for _ in range(20)))

    assert sorted(version.version for version in versions) == list(range(1, 21))


async def test_the_same_origin_is_the_same_version_however_often_and_at_once(registry: Registry) -> None:
    versions = await asyncio.gather(*(register(registry, origin="job:j1") for _ in range(8)))

    assert {version.version for version in versions} == {1}
    with pytest.raises(RequestIdReused) as caught:
        await registry.register(a_version(), origin="job:j1", origin_digest="sha256:2")
    assert await registry.find_origin("job:j1") == versions[0]
    assert await registry.find_origin("job:j2") is None
    assert caught.value.existing == "models/digits/versions/1"


async def test_a_version_comes_back_as_it_was_registered_also_from_another_process(
    registry: Registry, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    registered = await registry.register(a_version(accuracy=float("nan")), origin="", origin_digest="")

    other = Registry(database, store, ModelSettings(), tmp_path / "other")
    found = await other.resolve(registered.name)

    assert found.metrics["accuracy"] != found.metrics["accuracy"]
    assert found.model_copy(update={"metrics": {}}) == registered.model_copy(update={"metrics": {}})


async def test_a_bare_name_is_the_newest_version_until_there_is_a_default(registry: Registry) -> None:
    bare = ModelName("digits")
    await register(registry)
    assert (await registry.resolve(bare)).version == 1
    await register(registry)
    assert (await registry.resolve(bare)).version == 2

    await registry.assign_alias("digits", "default", 1)
    assert (await registry.resolve(bare)).version == 1
    await register(registry)
    assert (await registry.resolve(bare)).version == 1

    await registry.delete_alias("digits", "default")
    assert (await registry.resolve(bare)).version == 3


async def test_an_alias_moves_at_once(registry: Registry) -> None:
    champion = ModelName("digits", alias="champion")
    for _ in range(3):
        await register(registry)

    for version in (1, 3, 2):
        model = await registry.assign_alias("digits", "champion", version)
        assert model.aliases == {"champion": version}
        assert (await registry.resolve(champion)).version == version


async def test_what_is_resolved_is_never_older_than_the_last_answered_change(registry: Registry) -> None:
    """Readers, changes and changes whose caller leaves in the middle, all at once."""
    rng = random.Random(3)
    champion = ModelName("digits", alias="champion")
    for _ in range(9):
        await register(registry)
    await registry.assign_alias("digits", "champion", 1)
    reading = True

    async def read() -> None:
        while reading:
            await registry.resolve(champion)
            await asyncio.sleep(0.002)  # leaves the loop to the changes

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for _ in range(30):
        change = asyncio.create_task(registry.assign_alias("digits", "champion", rng.randint(1, 9)))
        if rng.random() < 0.5:
            for _ in range(rng.randint(0, 30)):
                await asyncio.sleep(0.0001)
            change.cancel()
        await asyncio.wait([change])
        truth = (await registry.get("digits")).aliases["champion"]
        assert (await registry.resolve(champion)).version == truth
    reading = False
    await asyncio.gather(*readers)


async def test_resolving_again_does_not_ask_the_database(registry: Registry, database: Database) -> None:
    registered = await register(registry)
    assert await registry.resolve(ModelName("digits")) == registered

    await database.close()
    async with asyncio.timeout(60):
        assert await registry.resolve(ModelName("digits")) is await registry.resolve(ModelName("digits", 1))


@pytest.mark.parametrize("name", ["models/digits@nobody", "models/digits/versions/2", "models/other", "models/other@x"])
async def test_names_of_nothing_are_not_found(registry: Registry, name: str) -> None:
    await register(registry)

    with pytest.raises(ModelNotFound, match=name):
        await registry.resolve(ModelName.parse(name))


async def test_an_alias_needs_a_version_of_its_model_and_a_good_name(registry: Registry) -> None:
    await register(registry)
    await register(registry, "other")
    await register(registry, "other")

    with pytest.raises(ModelNotFound, match="models/digits/versions/2"):
        await registry.assign_alias("digits", "champion", 2)
    with pytest.raises(InvalidSpec, match="alias"):
        await registry.assign_alias("digits", "Champion!", 1)
    with pytest.raises(ModelNotFound, match="models/digits@champion"):
        await registry.delete_alias("digits", "champion")
    with pytest.raises(ModelNotFound):
        await registry.get("nothing")
    with pytest.raises(InvalidName):
        await register(registry, "Not An Id")


async def test_pages_list_models_by_name_and_versions_newest_first(registry: Registry) -> None:
    for model in ("c", "a", "b", "a", "a", "a", "a"):
        await register(registry, model)
    await registry.assign_alias("a", "default", 2)

    names, token = [], ""
    while True:
        page = await registry.list(PageRequest.parse(2, token, "models"))
        names += [model.id for model in page.items]
        if not (token := page.next_token):
            break
    numbers, token = [], ""
    while True:
        versions = await registry.list_versions("a", PageRequest.parse(2, token, "a"))
        numbers += [version.version for version in versions.items]
        if not (token := versions.next_token):
            break

    assert names == ["a", "b", "c"]
    assert numbers == [5, 4, 3, 2, 1]
    first = (await registry.list(PageRequest.parse(1, "", ""))).items[0]
    assert (first.latest_version, first.aliases) == (5, {"default": 2})
    with pytest.raises(ModelNotFound):
        await registry.list_versions("nothing", PageRequest.parse(2, "", "nothing"))
    forged = PageRequest.parse(0, "", "a").token_after("one; drop table")
    with pytest.raises(InvalidPageToken):
        await registry.list_versions("a", PageRequest.parse(2, forged, "a"))


# Uploads.


async def test_an_uploaded_onnx_file_tells_its_own_signature_and_can_be_read_back(registry: Registry) -> None:
    content = scale().SerializeToString()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"

    version = await upload(registry, content, digest=digest, request_id="r1")
    artifact, chunks = registry.read_artifact(version, "model.onnx")

    assert version.signature.inputs == (TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2)),)
    assert version.signature.is_batchable
    assert (artifact.digest, artifact.size_bytes) == (digest, len(content))
    assert b"".join([chunk async for chunk in chunks]) == content
    with pytest.raises(ModelNotFound, match=r"its files are model\.onnx"):
        registry.read_artifact(version, "weights")


async def test_the_same_request_id_and_content_return_the_same_version_and_keep_one_copy(
    registry: Registry, store: LocalBlobStore
) -> None:
    content = scale().SerializeToString()

    versions = [await upload(registry, content, request_id="r1") for _ in range(3)]
    other = await upload(registry, content, request_id="r2")

    assert [version.version for version in (*versions, other)] == [1, 1, 1, 2]
    assert len(await store.list("models/")) == 2
    with pytest.raises(RequestIdReused):
        await upload(registry, scale(3).SerializeToString(), request_id="r1")
    with pytest.raises(RequestIdReused):
        await upload(registry, content, request_id="r1", model="other")
    assert len(await store.list("models/")) == 2


async def test_nothing_is_kept_of_a_failed_upload(registry: Registry, tmp_path: Path) -> None:
    content = scale().SerializeToString()

    async def broken() -> AsyncIterator[bytes]:
        yield content[:50]
        raise ConnectionResetError

    with pytest.raises(InvalidModel, match="digest"):
        await upload(registry, content, digest=f"sha256:{'0' * 64}")
    with pytest.raises(InvalidModel, match="empty"):
        await upload(registry, b"")
    with pytest.raises(InvalidModel):
        await upload(registry, content[:-20])
    with pytest.raises(InvalidModel):
        await upload(registry, b"PK\x03\x04 no ONNX at all" * 100)
    with pytest.raises(TooLarge, match=r"models\.max_upload_bytes"):
        await upload(registry, b"x" * ((1 << 20) + 1))
    with pytest.raises(ConnectionResetError):
        await registry.register_file("digits", ArtifactFormat.ONNX, broken(), digest="", request_id="")

    assert files_below(tmp_path / "scratch") == []
    assert files_below(tmp_path / "store") == []
    with pytest.raises(ModelNotFound):
        await registry.get("digits")


async def test_an_upload_whose_caller_leaves_at_any_moment_is_whole_or_nothing(
    registry: Registry, store: LocalBlobStore, tmp_path: Path
) -> None:
    content = scale().SerializeToString()
    await upload(registry, content)  # imports are slow the first time
    rng = random.Random(5)

    for number in range(25):
        task = asyncio.create_task(upload(registry, content, model=f"m{number}"))
        await asyncio.sleep(rng.random() * 0.03)
        task.cancel()
        await asyncio.wait([task])

    await registry.sweep()
    found = (await registry.list(PageRequest.parse(100, "", ""))).items
    keys = set(await store.list("models/"))
    for model in found:
        version = await registry.resolve(ModelName(model.id))
        keys.remove(version.artifacts[0].key)
    assert keys == set()
    assert files_below(tmp_path / "scratch") == []


async def test_sweeping_removes_what_a_killed_upload_left_and_nothing_else(
    registry: Registry, store: LocalBlobStore
) -> None:
    version = await upload(registry, scale().SerializeToString())
    await store.put_bytes("models/digits/0123/model.onnx", b"left behind")
    await store.put_bytes("exports/j/1/model.onnx", b"not ours")

    assert await registry.sweep() == 1

    assert await store.list("") == sorted(["exports/j/1/model.onnx", version.artifacts[0].key])


async def test_torch_programs_are_not_taken_from_callers_unless_the_operator_says_so(registry: Registry) -> None:
    with pytest.raises(Unsupported, match=r"models\.accept_torch_uploads"):
        await registry.register_file("m", ArtifactFormat.TORCH_EXPORT, chunked(b"PK"), digest="", request_id="")


async def test_a_header_that_can_never_be_right_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidSpec, match="request_id"):
        await upload(registry, b"x", request_id="r" * 129)
    with pytest.raises(InvalidSpec, match="format"):
        await registry.register_file("m", ArtifactFormat.SAFETENSORS, chunked(b"x"), digest="", request_id="")
    with pytest.raises(InvalidName):
        await upload(registry, b"x", model="UP")


# Paths of this machine.


async def test_serving_the_same_file_again_is_the_same_version(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "scale.onnx"
    onnx.save(scale(2), path)

    first = await registry.serve_path("m", path)
    again = await registry.serve_path("m", path)
    onnx.save(scale(3), path)
    changed = await registry.serve_path("m", path)
    onnx.save(scale(2), path)
    back = await registry.serve_path("m", path)

    assert [version.version for version in (first, again, changed, back)] == [1, 1, 2, 3]
    assert first.artifacts[0].digest == back.artifacts[0].digest


async def test_a_folder_with_a_signature_adds_what_the_file_cannot_say(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(scale(), folder / "model.onnx")
    stated = Signature(
        inputs=(SPEC.model_copy(update={"finite_only": True}),),
        outputs=(SPEC.model_copy(update={"name": "y", "class_names": ("cat", "dog")}),),
    )
    (folder / "signature.json").write_text(stated.model_dump_json())

    version = await registry.serve_path("m", folder)

    assert version.signature == stated


async def test_weights_in_a_second_file_come_along(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(scale(), path, save_as_external_data=True, location="weights of mine.bin", size_threshold=0)

    version = await registry.serve_path("m", path)

    assert [(artifact.path, artifact.format) for artifact in version.artifacts] == [
        ("model.onnx", ArtifactFormat.ONNX),
        ("weights of mine.bin", ArtifactFormat.OTHER),
    ]


async def test_paths_that_hold_no_model_are_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "notes.txt").write_text("no model")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    onnx.save(scale(), wrong / "model.onnx")
    (wrong / "signature.json").write_text(SIGNATURE.model_dump_json())
    other = tmp_path / "other"
    other.mkdir()
    onnx.save(scale(), other / "model.onnx")
    spec = SPEC.model_copy(update={"data_type": DataType.INT64})
    integers = Signature(inputs=(spec,), outputs=(SPEC.model_copy(update={"name": "y"}),))
    (other / "signature.json").write_text(integers.model_dump_json())

    for path, problem in (
        ("empty", "holds neither"),
        ("text.onnx", "not an ONNX file"),
        ("notes.txt", "neither an .onnx"),
        ("missing", "neither an .onnx"),
        ("wrong", "names its outputs y"),
        ("other", r"input 'x' is FP32 \[-1, 2\], stated is INT64"),
    ):
        with pytest.raises(InvalidModel, match=problem):
            await registry.serve_path("m", tmp_path / path)
