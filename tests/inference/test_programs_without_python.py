"""ONNX programs that lanes run without Python: the same answers, and everything that a lane promises."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from headrace_server.errors import DeviceOutOfMemory, ModelFailed
from headrace_server.inference.backends import onnxruntime
from headrace_server.inference.backends.onnxruntime import OnnxRuntimeSession, PackageSession
from headrace_server.inference.plans.opening import PlanFiles, open_plan
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.preparing import prepare
from headrace_server.kernels import onnx_programs
from headrace_server.kernels.gate import ServingGate, TrainingGate
from headrace_server.models.calibration import draw_rows
from headrace_server.models.onnx_signature import read_signature
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.tensors import Array, Signature, Tensors
from tests.doubles.onnx_models import identity, lookup, mlp, scale
from tests.doubles.until import until
from tests.inference.conftest import MakeEngine, Publish

M, N = ModelName("m"), ModelName("n")
ELEMENTS = [
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E5M2, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL,
]  # fmt: skip


def both(program: onnx.ModelProto, path: Path) -> tuple[OnnxRuntimeSession, PackageSession, Signature]:
    """A program as lanes run it, and as the runtime's Python package does."""
    onnx.save(program, path)
    signature = read_signature(path, may_have_companions=False)
    ours = onnxruntime.open_program(path, signature, num_threads=1)
    theirs = onnxruntime.open_with_package(
        path, signature, num_threads=1, providers=[onnxruntime.CPU_PROVIDER], precision=Precision.FP32
    )
    assert isinstance(ours, OnnxRuntimeSession)
    return ours, theirs, signature


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        assert array.tobytes() == theirs[name].tobytes()


def failure(run: Callable[[], object]) -> tuple[str, str]:
    """What it raises, in the words that a caller gets to see."""
    try:
        run()
    except Exception as error:  # noqa: BLE001 - the runtime's errors have no common type below Exception
        return type(error).__name__, str(error)
    pytest.fail("it did not raise")


@pytest.mark.parametrize("element", ELEMENTS, ids=TensorProto.DataType.Name)
def test_every_type_of_element_goes_in_and_out_as_it_is(tmp_path: Path, element: int) -> None:
    ours, theirs, signature = both(identity(element), tmp_path / "m.onnx")
    dtype = signature.inputs[0].data_type.dtype
    bits = np.random.default_rng(0).integers(0, 2, (3, 2 * dtype.itemsize), np.uint8)
    given = {"x": bits.view(dtype)}

    assert_same(ours.run(given), theirs.run(given))


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_answers_are_the_same_bit_for_bit(tmp_path: Path, rows: int) -> None:
    ours, theirs, signature = both(mlp(), tmp_path / "m.onnx")
    given = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in draw_rows(signature).inputs.items()}

    assert_same(ours.run(given), theirs.run(given))


def test_arrays_that_do_not_lie_together_are_read_all_the_same(tmp_path: Path) -> None:
    ours, theirs, _ = both(scale(3), tmp_path / "m.onnx")
    given = {"x": np.arange(12, dtype=np.float32).reshape(2, 6).T[::2][:, ::-1]}

    assert_same(ours.run(given), theirs.run(given))


def test_answers_outlive_later_runs_and_the_session(tmp_path: Path) -> None:
    ours, _, _ = both(scale(2), tmp_path / "m.onnx")

    first = ours.run({"x": np.full((1, 2), 1, np.float32)})
    second = ours.run({"x": np.full((1, 2), 2, np.float32)})
    ours.close()
    del ours

    assert (first["y"].tolist(), second["y"].tolist()) == ([[2, 2]], [[4, 4]])


@pytest.mark.parametrize(
    "x",
    [np.array([9]), np.array([-5]), np.zeros((2, 2), np.int64), np.zeros(2, np.float32)],
    ids=["too large", "too small", "two axes", "floats"],
)
def test_failures_have_the_names_and_words_of_the_runtime(tmp_path: Path, x: Array) -> None:
    ours, theirs, _ = both(lookup(4), tmp_path / "m.onnx")

    assert failure(lambda: ours.run({"x": x})) == failure(lambda: theirs.run({"x": x}))


@pytest.mark.parametrize("content", [b"", b"\x08\x08nothing", None], ids=["empty", "broken", "not there"])
def test_files_that_cannot_be_opened_have_the_names_and_words_of_the_runtime(
    tmp_path: Path, content: bytes | None
) -> None:
    _, _, signature = both(scale(2), tmp_path / "m.onnx")
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)

    ours = failure(lambda: onnx_programs.open_program(path, num_threads=1, input_names=[], output_names=[]))
    theirs = failure(
        lambda: onnxruntime.open_with_package(
            path, signature, num_threads=1, providers=[onnxruntime.CPU_PROVIDER], precision=Precision.FP32
        )
    )

    assert ours == theirs


def test_memory_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    ours, _, _ = both(scale(2), tmp_path / "m.onnx")

    judged = ours.judge(RuntimeError("Failed to allocate memory for requested buffer of size 1"))

    assert isinstance(judged, DeviceOutOfMemory)


def test_text_and_a_runtime_without_a_library_go_through_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(identity(TensorProto.STRING), tmp_path / "text.onnx")
    signature = read_signature(tmp_path / "text.onnx", may_have_companions=False)
    assert isinstance(onnxruntime.open_program(tmp_path / "text.onnx", signature, num_threads=1), PackageSession)

    monkeypatch.setattr(onnx_programs, "library", lambda: None)
    onnx.save(scale(2), tmp_path / "m.onnx")
    session = onnxruntime.open_program(
        tmp_path / "m.onnx", read_signature(tmp_path / "m.onnx", may_have_companions=False), num_threads=1
    )

    assert isinstance(session, PackageSession)
    assert session.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2, 2]]


def test_the_package_is_not_even_imported(tmp_path: Path) -> None:
    onnx.save(scale(2), tmp_path / "m.onnx")
    script = f"""
import sys
from pathlib import Path
from headrace_server.inference.backends.onnxruntime import open_program
from headrace_server.models.onnx_signature import read_signature
path = Path({str(tmp_path / "m.onnx")!r})
open_program(path, read_signature(path, may_have_companions=False), num_threads=1)
maps = Path("/proc/self/maps").read_text()
print("onnxruntime" in sys.modules, "libonnxruntime.so" in maps, "onnxruntime_pybind11_state" in maps)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)

    assert done.stdout.split() == ["False", "True", "False"]


@pytest.mark.parametrize("form", [Form.DYNAMIC, Form.STATIC])
def test_programs_in_eight_bits_give_the_same_bits(tmp_path: Path, form: Form) -> None:
    _, _, signature = both(mlp(), tmp_path / "m.onnx")
    plan = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, form=form)
    rows = draw_rows(signature).inputs
    prepared = tmp_path / "prepared.onnx"
    prepare(plan, tmp_path / "m.onnx", signature, rows, prepared, 60)
    ours = open_plan(plan, PlanFiles(tmp_path / "m.onnx", prepared), signature, num_threads=1)
    theirs = onnxruntime.open_with_package(
        prepared, signature, num_threads=1, providers=[onnxruntime.CPU_PROVIDER], precision=Precision.INT8
    )

    assert isinstance(ours, OnnxRuntimeSession)
    assert_same(ours.run(rows), theirs.run(rows))


# In an engine.


@pytest.fixture
def python_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each run that went through Python, in order."""
    runs: list[int] = []
    run = OnnxRuntimeSession.run

    def counted(self: OnnxRuntimeSession, inputs: Tensors) -> Tensors:
        runs.append(len(next(iter(inputs.values()))))
        return run(self, inputs)

    monkeypatch.setattr(OnnxRuntimeSession, "run", counted)
    return runs


def x(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, value] for value in values], np.float32)}


@pytest.mark.parametrize("sharing", ["own", "shared"])
async def test_batches_do_not_go_through_python(
    make_engine: MakeEngine, publish: Publish, python_runs: list[int], sharing: str
) -> None:
    await publish(scale(2), "m")
    await publish(scale(3), "n")
    engine = make_engine(lane_sharing=sharing)
    await engine.load(M)
    await engine.load(N)
    python_runs.clear()  # each was warmed up

    answers = await asyncio.gather(
        *(engine.predict(name, x(value)) for value in range(20) for name in (M, N)),
    )

    found = [answer.outputs["y"].tolist() for answer in answers]
    assert found == [[[value * factor] * 2] for value in range(20) for factor in (2, 3)]
    assert all(answer.timing.compute_seconds > 0 for answer in answers)
    assert python_runs == []


async def test_arrays_in_strides_alone_are_left_to_python(
    make_engine: MakeEngine, publish: Publish, python_runs: list[int]
) -> None:
    await publish(scale(2))
    engine = make_engine()
    await engine.load(M)
    python_runs.clear()

    answer = await engine.predict(M, {"x": np.arange(8, dtype=np.float32).reshape(2, 4).T})

    assert answer.outputs["y"].tolist() == [[0, 8], [2, 10], [4, 12], [6, 14]]
    assert python_runs == [4]


@pytest.mark.parametrize("sharing", ["own", "shared"])
async def test_a_program_that_fails_for_one_of_many_fails_for_that_one_alone(
    make_engine: MakeEngine, publish: Publish, sharing: str
) -> None:
    await publish(lookup(4))
    engine = make_engine(lane_sharing=sharing)
    await engine.load(M)

    outcomes = await asyncio.gather(
        *(engine.predict(M, {"x": np.array([index])}) for index in [0, 9, 1, 2, 9, 3] * 5), return_exceptions=True
    )

    for index, outcome in zip([0, 9, 1, 2, 9, 3] * 5, outcomes, strict=True):
        if index == 9:
            assert isinstance(outcome, ModelFailed)
            assert "InvalidArgument: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : " in str(outcome)
        else:
            assert not isinstance(outcome, BaseException)
            assert outcome.outputs["y"].tolist() == [index * 10]


async def test_a_version_is_replaced_under_load_and_every_call_is_answered(
    make_engine: MakeEngine, publish: Publish
) -> None:
    await publish(scale(2))
    engine = make_engine()
    await engine.load(M)
    is_over = False
    factors: set[float] = set()

    async def call() -> None:
        while not is_over:
            factors.add(float((await engine.predict(M, x(1))).outputs["y"][0, 0]))

    callers = [asyncio.create_task(call()) for _ in range(8)]
    for number in (1, 2, 3):
        await publish(scale(2 + number))
        await until(lambda: len(factors) > number)  # noqa: B023 - it is over before the next
    is_over = True
    await asyncio.gather(*callers)

    assert factors <= {2, 3, 4, 5}


async def test_a_model_that_is_unloaded_while_it_is_called_is_loaded_anew(
    make_engine: MakeEngine, publish: Publish
) -> None:
    await publish(scale(2))
    engine = make_engine()
    calls = [asyncio.create_task(engine.predict(M, x(1))) for _ in range(50)]
    await calls[0]

    await engine.unload(M)
    answers = await asyncio.gather(*calls, engine.predict(M, x(1)))

    assert {answer.outputs["y"][0, 0] for answer in answers} == {2}


async def test_a_training_waits_for_batches_that_run_without_python(
    make_engine: MakeEngine, publish: Publish, tmp_path: Path
) -> None:
    await publish(scale(2))
    gate = ServingGate(tmp_path / "gate")
    training = TrainingGate(tmp_path / "gate")
    engine = make_engine(gate=gate)
    await engine.load(M)
    assert training.latency_seconds == 0

    await engine.predict(M, x(1))

    assert training.latency_seconds > 0
    assert (gate.num_passing, training.is_busy) == (0, False)
