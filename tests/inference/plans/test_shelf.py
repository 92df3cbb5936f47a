"""Files that were made for plans leave the store when no verdict names them any more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from headrace_server.database.database import Database
from headrace_server.inference.engine import Engine
from headrace_server.models.plan_records import MOST_ENVIRONMENTS
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision, PrecisionPolicy, Tolerances
from headrace_server.storage.local import LocalBlobStore
from tests.doubles.onnx_models import mlp
from tests.inference.plans.conftest import DEVICES, MakeEngine

M = ModelName("m")


@pytest.fixture
async def version(registry: Registry, tmp_path: Path) -> ModelVersion:
    path = tmp_path / "given.onnx"
    onnx.save(mlp((16, 32, 4)), path)
    found = await registry.serve_path("m", path)
    tolerances = Tolerances(max_relative_error=1e6, min_cosine=-1, min_agreement=0)
    policy = PrecisionPolicy(precision=Precision.INT8, tolerances=tolerances)
    await registry.change_serving("m", lambda _: ServingOptions(precision=policy))
    return found


async def measure(engine: Engine) -> None:
    await engine.measure(M)


async def named(engine: Engine) -> set[str]:
    """The digests of the files that the verdict names."""
    report = await engine.plan(M)
    assert report.measurement is not None
    return {trial.prepared.digest for trial in report.measurement.trials if trial.prepared is not None}


async def stored(store: LocalBlobStore, folder: Path) -> set[str]:
    return {(await store.fetch(key, folder / "file")).digest for key in await store.list("plans/")}


async def test_a_verdict_that_is_replaced_takes_its_files_with_it(
    make_engine: MakeEngine, version: ModelVersion, store: LocalBlobStore, tmp_path: Path
) -> None:
    engine = make_engine("")
    await measure(engine)
    before = await store.list("plans/")
    await engine.calibrate(M, {"x": np.linspace(-9, 9, 16 * 16, dtype=np.float32).reshape(16, 16)})
    assert await store.list("plans/") == []

    await measure(engine)
    await measure(engine)

    assert len(before) == 2
    assert await stored(store, tmp_path) == await named(engine)


async def test_what_a_dead_server_has_left_is_removed_at_the_next_start_and_nothing_else(
    make_engine: MakeEngine, version: ModelVersion, store: LocalBlobStore, tmp_path: Path
) -> None:
    engine = make_engine()
    await measure(engine)
    await store.put_bytes(f"plans/m/{version.version}/an-environment/a-digest/left.onnx", b"left behind")
    await store.put_bytes("plans/gone/1/an-environment/a-digest/left.onnx", b"of a model that is gone")

    again = make_engine()
    await again.open()

    assert await stored(store, tmp_path) == await named(again)


async def test_verdicts_of_other_machines_stay_but_not_of_any_number(
    make_engine: MakeEngine, version: ModelVersion, store: LocalBlobStore, database: Database
) -> None:
    for cores in range(1, MOST_ENVIRONMENTS + 3):
        await measure(make_engine("fast", replace(DEVICES, num_cores=cores)))

    environments = {key.split("/")[3] for key in await store.list("plans/")}
    first = make_engine("fast", replace(DEVICES, num_cores=1))
    newest = make_engine("fast", replace(DEVICES, num_cores=MOST_ENVIRONMENTS + 2))

    assert len(environments) == MOST_ENVIRONMENTS
    assert (await first.plan(M)).measurement is None
    assert (await newest.plan(M)).measurement is not None
