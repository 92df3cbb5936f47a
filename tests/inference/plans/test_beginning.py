"""A version answers at once, whatever was chosen for it: what takes long to open comes in later."""

import itertools
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from headrace_server.inference.engine import Engine
from headrace_server.inference.improving import PlanState
from headrace_server.inference.plans import opening, sessions
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.memory import RESERVE_BYTES, Ledger
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import ArtifactFormat, ModelVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision, PrecisionPolicy, Tolerances
from headrace_server.tensors import Array
from tests.doubles.onnx_models import mlp, scale
from tests.doubles.torch_programs import save
from tests.doubles.until import until
from tests.inference.plans.conftest import MakeEngine
from tests.inference.plans.programs import BATCH

M = ModelName("m")
SECONDS = 60
ROW: dict[str, Array] = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)}
CHOSEN = ("torch-fp16-norms32",)


class Door:
    """Holds the opening of plans back until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.num_asked = 0


class Room:
    """Memory for the first version that is loaded, and for no more until there is some."""

    def __init__(self) -> None:
        self.is_there = False
        self._num_asked = 0

    def available(self) -> int:
        self._num_asked += 1
        return 1 << 40 if self.is_there or self._num_asked == 1 else RESERVE_BYTES


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    door = Door()
    real = opening.open_plan

    def open_plan(*args: Any, **keywords: Any) -> Any:
        door.num_asked += 1
        assert door.is_open.wait(SECONDS)
        return real(*args, **keywords)

    monkeypatch.setattr(sessions, "open_plan", open_plan)
    return door


@pytest.fixture
async def measured(
    make_engine: MakeEngine, registry: Registry, door: Door, tmp_path: Path
) -> AsyncIterator[ModelVersion]:
    """A version for which a plan of torch was chosen by an earlier server; its opening is held back from now on."""
    version = await register(registry, tmp_path)
    await registry.change_serving(
        "m",
        lambda _: ServingOptions(
            precision=PrecisionPolicy(
                precision=Precision.AUTO,
                tolerances=Tolerances(max_relative_error=1e6, min_cosine=-1, min_agreement=0),
            )
        ),
    )
    earlier = make_engine("fast")
    await earlier.load(M)
    await until(lambda: running(earlier, version) == CHOSEN, SECONDS)
    await earlier.close()
    door.is_open.clear()
    door.num_asked = 0
    yield version
    door.is_open.set()


async def register(registry: Registry, tmp_path: Path) -> ModelVersion:
    folder = tmp_path / "given"
    folder.mkdir(exist_ok=True)
    onnx.save(mlp((16, 32, 4)), folder / "model.onnx")
    save(nn.Linear(16, 4), (torch.randn(2, 16),), folder, dynamic_shapes=({0: BATCH},))
    return await registry.serve_path("m", folder)


def running(engine: Engine, version: ModelVersion) -> tuple[str, ...]:
    resident = engine._residency.resident(version.key)
    return resident.plan_names if resident is not None else ()


async def precision_of(engine: Engine, name: ModelName = M) -> Precision:
    return (await engine.predict(name, ROW)).provenance.precision


async def test_a_start_answers_with_the_registered_program_while_the_chosen_plan_is_opened(
    make_engine: MakeEngine, measured: ModelVersion, door: Door
) -> None:
    engine = make_engine("die")

    first = await precision_of(engine)
    await until(lambda: door.num_asked > 0, SECONDS)
    meanwhile = await precision_of(engine)
    assert engine.improving is not None
    state = (await engine.improving.report(measured)).state
    door.is_open.set()
    await until(lambda: running(engine, measured) == CHOSEN, SECONDS)

    assert (first, meanwhile, state) == (Precision.FP32, Precision.FP32, PlanState.MEASURING)
    assert await precision_of(engine) is Precision.FP16


async def test_a_version_that_comes_back_after_it_was_evicted_answers_before_its_plan_is_opened(
    make_engine: MakeEngine, registry: Registry, measured: ModelVersion, door: Door, tmp_path: Path
) -> None:
    onnx.save(scale(), tmp_path / "other.onnx")
    await registry.serve_path("other", tmp_path / "other.onnx")
    engine = make_engine("die", max_loaded_versions=1)
    door.is_open.set()
    await engine.load(M)
    await until(lambda: running(engine, measured) == CHOSEN, SECONDS)
    await engine.predict(ModelName("other"), {"x": np.ones((1, 2), np.float32)})
    assert running(engine, measured) == ()
    door.is_open.clear()

    back = await precision_of(engine)
    door.is_open.set()
    await until(lambda: running(engine, measured) == CHOSEN, SECONDS)

    assert back is Precision.FP32
    assert await precision_of(engine) is Precision.FP16


async def test_an_alias_that_moves_to_such_a_version_is_answered_at_once(
    make_engine: MakeEngine, registry: Registry, measured: ModelVersion, door: Door, tmp_path: Path
) -> None:
    later = await registry.serve_path("m", tmp_path / "given")
    await registry.assign_alias("m", "default", later.version)
    engine = make_engine("die")
    await engine.predict(M, ROW)

    await registry.assign_alias("m", "default", measured.version)
    moved = await engine.predict(M, ROW)
    door.is_open.set()
    await until(lambda: running(engine, measured) == CHOSEN, SECONDS)
    after = await engine.predict(M, ROW)

    assert (moved.version.version, moved.provenance.precision) == (measured.version, Precision.FP32)
    assert (after.version.version, after.provenance.precision) == (measured.version, Precision.FP16)


async def test_a_plan_that_there_is_no_room_for_beside_what_runs_comes_in_when_there_is(
    make_engine: MakeEngine, measured: ModelVersion, door: Door
) -> None:
    room = Room()
    engine = make_engine("die", ledger=Ledger(0, room.available, itertools.count(0, 1000).__next__))
    improving = engine.improving
    assert improving is not None
    improving._retry_seconds = 0.01
    door.is_open.set()

    first = await precision_of(engine)
    await until(lambda: measured.key in improving._delays, SECONDS)
    refused = await improving.report(measured)
    room.is_there = True
    await until(lambda: running(engine, measured) == CHOSEN, SECONDS)
    await until(lambda: measured.key not in improving._under_way, SECONDS)

    assert first is Precision.FP32
    assert "1,000 bytes are missing" in refused.problem
    assert (await improving.report(measured)).problem == ""


@pytest.mark.parametrize(
    ("plan", "is_prompt"),
    [
        (Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32), True),
        (Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, form=Form.DYNAMIC), True),
        (Plan(runtime=Runtime.TORCH, precision=Precision.FP32), False),
        (Plan(runtime=Runtime.TORCH, precision=Precision.BF16, form=Form.COMPILED), False),
        (Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32, device="cuda:0", provider="CUDA"), False),
    ],
    ids=lambda value: value.name if isinstance(value, Plan) else None,
)
def test_what_needs_torch_or_a_gpu_is_not_what_a_version_with_an_onnx_program_begins_with(
    plan: Plan, *, is_prompt: bool
) -> None:
    assert plan.is_prompt(ArtifactFormat.ONNX) is is_prompt


def test_a_version_of_torch_alone_begins_with_its_program_as_it_is() -> None:
    as_it_is = Plan(runtime=Runtime.TORCH, precision=Precision.FP32)

    assert as_it_is.is_prompt(ArtifactFormat.TORCH_EXPORT)
    assert not as_it_is.model_copy(update={"form": Form.COMPILED}).is_prompt(ArtifactFormat.TORCH_EXPORT)
    assert not as_it_is.model_copy(update={"precision": Precision.BF16}).is_prompt(ArtifactFormat.TORCH_EXPORT)
