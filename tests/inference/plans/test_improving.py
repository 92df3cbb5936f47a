"""Versions come to their best plan while they answer."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from headrace_server.errors import ModelFailed
from headrace_server.inference.engine import Engine
from headrace_server.inference.improving import Improving, PlanReport, PlanState
from headrace_server.inference.plans.measurement import Source
from headrace_server.inference.plans.plan import Form
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision, PrecisionPolicy, Tolerances
from headrace_server.storage.local import LocalBlobStore
from headrace_server.tensors import Array
from tests.doubles.onnx_models import masked_mean, mlp
from tests.doubles.torch_programs import save
from tests.doubles.until import until
from tests.inference.plans.conftest import DEVICES, MakeEngine
from tests.inference.plans.programs import BATCH

M = ModelName("m")
ANYTHING = Tolerances(max_relative_error=1e6, min_cosine=-1, min_agreement=0)
SECONDS = 60


def rows(count: int = 1) -> dict[str, Array]:
    return {"x": np.linspace(-1, 1, count * 16, dtype=np.float32).reshape(count, 16)}


@pytest.fixture
async def version(registry: Registry, tmp_path: Path) -> ModelVersion:
    path = tmp_path / "given.onnx"
    onnx.save(mlp((16, 32, 4)), path)
    return await registry.serve_path("m", path)


@pytest.fixture
async def both(registry: Registry, tmp_path: Path) -> ModelVersion:
    """A version with a program in both forms."""
    folder = tmp_path / "given"
    folder.mkdir()
    onnx.save(mlp((16, 32, 4)), folder / "model.onnx")
    save(nn.Linear(16, 4), (torch.randn(2, 16),), folder, dynamic_shapes=({0: BATCH},))
    return await registry.serve_path("m", folder)


async def ask_for(registry: Registry, precision: Precision | None, tolerances: Tolerances = ANYTHING) -> None:
    policy = PrecisionPolicy(precision=precision, tolerances=tolerances)
    await registry.change_serving("m", lambda _: ServingOptions(precision=policy))


def plans_of(engine: Engine) -> Improving:
    assert engine.improving is not None
    return engine.improving


def running(engine: Engine, version: ModelVersion) -> tuple[str, ...]:
    resident = engine._residency.resident(version.key)
    return resident.plan_names if resident is not None else ()


async def settled(engine: Engine, version: ModelVersion) -> PlanReport:
    """Wait until nothing is under way for the version."""
    await until(lambda: version.key not in plans_of(engine)._under_way, SECONDS)
    return await plans_of(engine).report(version)


async def test_a_model_that_nobody_changed_runs_as_it_was_registered(
    make_engine: MakeEngine, version: ModelVersion
) -> None:
    engine = make_engine("die")

    prediction = await engine.predict(M, rows())
    report = await settled(engine, version)

    assert prediction.provenance.precision is Precision.FP32
    assert (report.state, report.running, report.measurement) == (PlanState.REGISTERED, ("onnxruntime",), None)


async def test_auto_answers_at_once_and_swaps_when_it_has_measured(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine("")

    first = await engine.predict(M, rows(3))
    report = await settled(engine, version)
    later = await engine.predict(M, rows(3))

    assert first.provenance.precision is Precision.FP32
    assert report.state is PlanState.CHOSEN, report.problem
    assert report.measurement is not None
    assert report.decision is not None
    assert [trial.plan.name for trial in report.measurement.trials] == [
        "onnxruntime-fp32", "onnxruntime-int8-dynamic", "onnxruntime-int8-static",
    ]  # fmt: skip
    assert report.running == tuple(plan.name for plan in report.decision.plans)
    assert np.allclose(later.outputs["y"], first.outputs["y"], atol=0.2)


async def test_the_best_so_far_runs_while_what_may_be_better_is_compiled(
    make_engine: MakeEngine, registry: Registry, both: ModelVersion, tmp_path: Path
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine(f"wait:{tmp_path / 'go'}", can_compile=True)
    await engine.load(M)

    await until(lambda: running(engine, both) == ("torch-fp16-norms32",), SECONDS)
    meanwhile = await plans_of(engine).report(both)
    answer = await engine.predict(M, rows())
    (tmp_path / "go").touch()
    report = await settled(engine, both)

    assert meanwhile.state is PlanState.MEASURING
    assert meanwhile.measurement is not None
    assert [trial.plan.form for trial in meanwhile.measurement.trials].count(Form.COMPILED) == 0
    assert answer.provenance.precision is Precision.FP16
    assert report.state is PlanState.CHOSEN
    assert report.decision is not None
    assert report.decision.refusals["torch-fp32-compiled"] == "it could not be compiled"
    assert report.running == ("torch-fp16-norms32",)


async def test_a_start_after_measuring_was_interrupted_takes_the_best_so_far_and_measures_the_rest(
    make_engine: MakeEngine, registry: Registry, both: ModelVersion, tmp_path: Path
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine(f"wait:{tmp_path / 'go'}", can_compile=True)
    await engine.load(M)
    await until(lambda: running(engine, both) == ("torch-fp16-norms32",), SECONDS)
    await engine.close()

    again = make_engine(f"wait:{tmp_path / 'go'}", can_compile=True)
    await again.load(M)
    await until(lambda: running(again, both) == ("torch-fp16-norms32",), SECONDS)
    meanwhile = await plans_of(again).report(both)
    (tmp_path / "go").touch()
    report = await settled(again, both)

    assert meanwhile.measurement is not None
    assert meanwhile.measurement.trial("torch-fp32-compiled") is None
    assert report.measurement is not None
    assert report.measurement.trial("torch-fp32-compiled") is not None


async def test_an_answer_names_what_really_ran(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.INT8)
    engine = make_engine()
    await engine.load(M)
    report = await settled(engine, version)

    prediction = await engine.predict(M, rows())

    assert report.measurement is not None
    trial = report.measurement.trial(report.running[-1])
    assert trial is not None
    assert trial.prepared is not None
    assert prediction.provenance.precision is Precision.INT8
    assert prediction.provenance.artifact_digest == trial.prepared.digest != version.artifacts[0].digest


async def test_a_later_start_begins_with_the_plan_that_was_chosen(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.INT8)
    engine = make_engine()
    await engine.load(M)
    await settled(engine, version)

    again = make_engine("die")
    prediction = await again.predict(M, rows())

    assert prediction.provenance.precision is Precision.INT8


async def test_other_hardware_measures_anew(make_engine: MakeEngine, registry: Registry, version: ModelVersion) -> None:
    await ask_for(registry, Precision.INT8)
    engine = make_engine()
    await engine.load(M)
    await settled(engine, version)

    elsewhere = make_engine("fast", replace(DEVICES, num_cores=4))
    first = await elsewhere.predict(M, rows())
    report = await settled(elsewhere, version)

    assert first.provenance.precision is Precision.FP32
    assert report.measurement is not None
    assert report.measurement.environment["cores"] == "4"


async def test_other_tolerances_choose_anew_from_what_was_measured(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine("fast")
    await engine.load(M)
    before = await settled(engine, version)

    await ask_for(registry, Precision.FP32)
    after = await settled(engine, version)

    assert before.running == ("onnxruntime-int8-static",)
    assert after.running == ("onnxruntime-fp32",)
    assert before.measurement == after.measurement


@pytest.mark.parametrize("harm", ["damage", "loss"])
async def test_a_prepared_file_that_is_damaged_or_lost_is_made_again(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion, store: LocalBlobStore, harm: str
) -> None:
    await ask_for(registry, Precision.INT8)
    engine = make_engine()
    await engine.load(M)
    await settled(engine, version)
    await engine.close()
    for key in await store.list("plans/"):
        if harm == "damage":
            await store.put_bytes(key, b"not a program")
        else:
            await store.delete(key)

    again = make_engine()
    first = await again.predict(M, rows())
    await settled(again, version)

    assert first.provenance.precision is Precision.FP32
    assert (await again.predict(M, rows())).provenance.precision is Precision.INT8


async def test_a_plan_that_kills_the_measuring_process_is_refused_and_the_others_are_tried(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine("die:onnxruntime-int8-dynamic")
    await engine.load(M)

    report = await settled(engine, version)

    assert report.decision is not None
    assert "died of SIGSEGV" in report.decision.refusals["onnxruntime-int8-dynamic"]
    assert report.running == ("onnxruntime-int8-static",)


async def test_measuring_that_dies_leaves_the_registered_program_and_says_so(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine("die")
    await engine.load(M)

    report = await settled(engine, version)

    assert report.state is PlanState.FAILED
    assert "died of SIGSEGV" in report.problem
    assert (await engine.predict(M, rows())).provenance.precision is Precision.FP32
    with pytest.raises(ModelFailed, match="died of SIGSEGV"):
        await plans_of(engine).measure_again(version)


async def test_measuring_that_hangs_is_ended(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine("hang", measure_seconds=8)
    await engine.load(M)

    report = await settled(engine, version)

    assert report.state is PlanState.FAILED
    assert "the time for measuring was over" in report.problem


async def test_a_version_that_leaves_while_it_is_measured_is_left_alone(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.INT8)
    engine = make_engine()
    await engine.load(M)
    await engine.unload(M)

    report = await settled(engine, version)

    assert (report.running, report.state) == ((), PlanState.CHOSEN)
    assert engine.loaded() == []


async def test_twenty_swaps_under_load_fail_no_call(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.INT8)
    engine = make_engine()
    await engine.load(M)
    await settled(engine, version)
    is_over = asyncio.Event()
    seen: list[Precision] = []

    async def call() -> None:
        while not is_over.is_set():
            seen.append((await engine.predict(M, rows(2))).provenance.precision)

    callers = [asyncio.create_task(call()) for _ in range(8)]
    wanted = [Precision.FP32, Precision.INT8] * 10
    for precision in wanted:
        await ask_for(registry, precision)
        report = await settled(engine, version)
        assert [name.split("-")[1] for name in report.running] == [precision]
        seen.clear()
        await until(lambda precision=precision: precision in seen, SECONDS)  # type: ignore[misc]
    is_over.set()
    await asyncio.gather(*callers)

    await until(lambda: len(engine._residency.residents) == 1, SECONDS)


async def test_a_store_that_goes_away_while_a_plan_is_made_leaves_the_old_one_serving(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion, store: LocalBlobStore
) -> None:
    await ask_for(registry, Precision.INT8)
    engine = make_engine()

    async def refuse(*_: object) -> None:
        raise OSError("the store is away")

    store.put_file = refuse  # type: ignore[assignment, method-assign]
    await engine.load(M)

    report = await settled(engine, version)

    assert (report.state, report.running) == (PlanState.FAILED, ("onnxruntime",))
    assert "the store is away" in report.problem
    assert (await engine.predict(M, rows())).provenance.precision is Precision.FP32


async def test_stored_rows_that_do_not_fit_are_replaced_by_drawn_ones_and_the_plan_says_so(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion, store: LocalBlobStore
) -> None:
    await store.put_bytes(plans_of(make_engine("")).planner.calibration_key(version), b"not rows")
    await ask_for(registry, Precision.FP32)
    engine = make_engine("")
    await engine.load(M)

    report = await settled(engine, version)

    assert report.state is PlanState.CHOSEN, report.problem
    assert report.measurement is not None
    assert report.measurement.source is Source.DRAWN
    assert "cannot be read as safetensors" in report.measurement.why_drawn


async def test_each_answer_names_the_plan_that_ran_its_own_batch(
    make_engine: MakeEngine, registry: Registry, version: ModelVersion
) -> None:
    await ask_for(registry, Precision.AUTO)
    engine = make_engine("split")
    await engine.load(M)
    report = await settled(engine, version)

    single = await engine.predict(M, rows(1))
    several = await engine.predict(M, rows(8))

    assert report.running == ("onnxruntime-fp32", "onnxruntime-int8-static")
    assert single.provenance.precision is Precision.FP32
    assert single.provenance.artifact_digest == version.artifacts[0].digest
    assert several.provenance.precision is Precision.INT8


async def test_padding_that_a_mask_hides_is_not_computed_and_changes_no_answer(
    make_engine: MakeEngine, registry: Registry, tmp_path: Path
) -> None:
    onnx.save(masked_mean(), tmp_path / "given.onnx")
    version = await registry.serve_path("m", tmp_path / "given.onnx")
    await ask_for(registry, Precision.FP32)
    engine = make_engine("")
    await engine.load(M)
    report = await settled(engine, version)

    mask = np.zeros((2, 100), np.int64)
    mask[0, :3] = mask[1, :20] = 1
    answer = await engine.predict(M, {"ids": np.full((2, 100), 7, np.int64), "attention_mask": mask})

    assert report.decision is not None
    assert report.decision.mask_input == "attention_mask"
    assert answer.outputs["y"].tolist() == [[7], [7]]
