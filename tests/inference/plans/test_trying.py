"""Plans, made and tried for real."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from headrace_server.inference.plans import timing, trying
from headrace_server.inference.plans.compiling import CannotCompile, CompileRequest, compile_apart
from headrace_server.inference.plans.difference import why_intolerable
from headrace_server.inference.plans.measurement import Trial
from headrace_server.inference.plans.opening import NotHere, PlanFiles, open_plan
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.trying import Bench, _time, batch_of, try_plan
from headrace_server.models.calibration import CalibrationRows, draw_rows
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision, Tolerances
from headrace_server.tensors import DataType, Signature, Tensors, TensorSpec
from tests.doubles.hand_clock import HandClock
from tests.doubles.onnx_models import identity, scale
from tests.inference.plans.programs import Exploding, Overflowing, onnx_sources, signature, torch_sources

ONNX_FP32 = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
INT8 = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, form=Form.DYNAMIC)
INT8_STATIC = INT8.model_copy(update={"form": Form.STATIC})
TORCH_FP32 = Plan(runtime=Runtime.TORCH, precision=Precision.FP32)
BF16 = Plan(runtime=Runtime.TORCH, precision=Precision.BF16)
FP16 = Plan(runtime=Runtime.TORCH, precision=Precision.FP16)


def bench(
    sources: Mapping[ArtifactFormat, Path],
    of: Signature,
    folder: Path,
    rows: CalibrationRows | None = None,
    sizes: tuple[int, ...] = (1, 4),
    compile_seconds: float = 280,
) -> Bench:
    return Bench(
        sources=dict(sources), signature=of, rows=rows or draw_rows(of), sizes=sizes, thread_counts=(1, 2),
        folder=folder, seconds_per_figure=0.002, seconds_per_compilation=compile_seconds, base={}, references={},
    )  # fmt: skip


class SlowSession:
    """Takes its time for each row, on a clock that is given: larger batches gain nothing."""

    device = "cpu"
    precision = Precision.FP32

    def __init__(self, seconds_a_row: float, clock: HandClock) -> None:
        self._seconds_a_row = seconds_a_row
        self._clock = clock

    def run(self, inputs: Tensors) -> Tensors:
        """Let so much time pass as so many rows take."""
        self._clock.advance(self._seconds_a_row * len(inputs["x"]))
        return {}

    def close(self) -> None:
        """Nothing to close."""


def tried(on: Bench, *plans: Plan) -> list[Trial]:
    return [try_plan(plan, on) for plan in plans]


def reason(trial: Trial) -> str:
    return trial.problem or why_intolerable(trial.worst_difference(), None, Tolerances())


def test_quantised_programs_are_near_and_their_figures_complete(tmp_path: Path) -> None:
    on = bench(onnx_sources(tmp_path), signature(16, 4, "y"), tmp_path, sizes=(1, 4, 8))

    base, *quantised = tried(on, ONNX_FP32, INT8, INT8_STATIC)

    assert base.worst_difference().max_absolute == 0
    for trial in quantised:
        assert not trial.problem
        assert 0 < trial.worst_difference().max_relative < 0.1
        assert trial.worst_difference().min_cosine > 0.99
        assert trial.prepared is not None
        assert (tmp_path / trial.prepared.name).stat().st_size == trial.prepared.size_bytes
        assert {(speed.rows, speed.threads) for speed in trial.speeds} >= {(1, 1), (1, 2)}
    assert [one.rows for one in base.differences] == [1, 8]
    assert {(one.sessions, one.threads) for one in base.arrangements} == {(1, 2), (2, 1)}


@pytest.mark.parametrize("plan", [BF16, FP16])
def test_shorter_floats_are_near_and_answer_in_the_types_of_the_signature(tmp_path: Path, plan: Plan) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3), nn.Softmax(-1))
    on = bench(torch_sources(module, tmp_path), signature(4, 3), tmp_path)

    base, short, rescued = tried(on, TORCH_FP32, plan, plan.model_copy(update={"keeps_norms": True}))

    assert (base.problem, short.problem, rescued.problem) == ("", "", "")
    assert 0 < short.worst_difference().max_relative < 0.05
    session = open_plan(plan, PlanFiles(on.sources[ArtifactFormat.TORCH_EXPORT]), on.signature, num_threads=1)
    assert session.precision is plan.precision
    assert session.run({"x": np.ones((2, 4), np.float32)})["output"].dtype == np.float32


def test_a_model_that_overflows_fp16_is_refused_fp16_with_the_reason(tmp_path: Path) -> None:
    rows = CalibrationRows({"x": np.linspace(0.5, 2, 32, dtype=np.float32).reshape(8, 4)})
    on = bench(torch_sources(Exploding(), tmp_path), signature(4, 4), tmp_path, rows)

    base, fp16, rescued, bf16 = tried(on, TORCH_FP32, FP16, FP16.model_copy(update={"keeps_norms": True}), BF16)

    assert not reason(base)
    # A million is infinity in FP16, whose hyperbolic tangent is 1: finite, and far off.
    assert "relative error" in reason(fp16) or "overflow" in reason(fp16)
    assert reason(rescued)
    assert not reason(bf16)


def test_norms_in_32_bits_rescue_what_only_they_made_overflow(tmp_path: Path) -> None:
    rows = CalibrationRows({"x": np.linspace(0.9, 2, 32, dtype=np.float32).reshape(8, 4)})
    on = bench(torch_sources(Overflowing(), tmp_path), signature(4, 3), tmp_path, rows)

    _, fp16, rescued = tried(on, TORCH_FP32, FP16, FP16.model_copy(update={"keeps_norms": True}))

    assert reason(fp16)
    assert not reason(rescued)


@pytest.mark.parametrize("most_rows", [1024, 65_536])
def test_a_compiled_plan_runs_any_number_of_rows_and_any_number_of_threads(tmp_path: Path, most_rows: int) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    on = bench(torch_sources(module, tmp_path, most_rows=most_rows), signature(4, 3), tmp_path)
    plan = TORCH_FP32.model_copy(update={"form": Form.COMPILED})

    base, compiled = tried(on, TORCH_FP32, plan)

    assert (base.problem, compiled.problem) == ("", "")
    assert compiled.worst_difference().max_relative < 1e-5
    assert compiled.prepared is not None
    files = PlanFiles(on.sources[ArtifactFormat.TORCH_EXPORT], tmp_path / compiled.prepared.name)
    session = open_plan(plan, files, on.signature, num_threads=2, num_runs=2)
    for rows in (1, 3, 17):
        x = torch.randn(rows, 4)
        assert np.allclose(session.run({"x": x.numpy()})["output"], module(x).detach().numpy(), atol=1e-5)


def test_a_compilation_that_takes_too_long_is_given_up_with_its_compilers(tmp_path: Path) -> None:
    on = bench(torch_sources(nn.Linear(4, 3), tmp_path), signature(4, 3), tmp_path, compile_seconds=0.5)

    _, compiled = tried(on, TORCH_FP32, TORCH_FP32.model_copy(update={"form": Form.COMPILED}))

    assert "took more than 0 s, and was given up" in compiled.problem
    assert not [child.cmdline() for child in psutil.Process().children(recursive=True) if child.is_running()]


def test_a_program_that_cannot_be_compiled_says_what_the_compiler_said(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(b"not a program")
    request = CompileRequest(
        plan=TORCH_FP32.model_copy(update={"form": Form.COMPILED}), source=path, signature=signature(4, 3),
        shapes={"x": (2, 4)}, target=tmp_path / "made.pt2",
    )  # fmt: skip

    with pytest.raises(CannotCompile, match=r"failed after .*BadZipFile"):
        compile_apart(request, 60)


def test_sizes_of_batch_that_gain_nothing_any_more_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, clock = bench({}, signature(4, 3), tmp_path, sizes=(1, 2, 4, 8, 16, 32)), HandClock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))

    speeds = list(_time(SlowSession(0.002, clock), on, 1))
    later = list(_time(SlowSession(0.001, clock), on, 1))

    assert [speed.rows for speed in speeds] == [speed.rows for speed in later]
    assert speeds[-1].rows < 32


def test_what_a_lone_caller_waits_for_is_timed_in_turns_and_only_for_plans_that_may_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "time_in_turns", lambda blocks: {threads: threads * 100.0 for threads in blocks})
    on = bench(onnx_sources(tmp_path), signature(16, 4, "y"), tmp_path)

    (base,) = tried(on, ONNX_FP32)
    on.base.update(dict.fromkeys(on.base, 1e-9))  # whatever comes now is slower by far
    (hopeless,) = tried(on, ONNX_FP32)

    assert (base.seconds(1, 1), base.seconds(1, 2)) == (100, 200)
    assert (base.seconds(4, 1) or 100) < 100
    assert hopeless.arrangements == ()
    assert (hopeless.seconds(1, 1) or 100) < 100


def test_a_program_without_anything_to_quantise_says_so(tmp_path: Path) -> None:
    import onnx

    onnx.save(scale(), tmp_path / "model.onnx")
    on = bench({ArtifactFormat.ONNX: tmp_path / "model.onnx"}, signature(2, 2, "y"), tmp_path)

    _, int8 = tried(on, ONNX_FP32, INT8)

    assert "no operator that can be quantised" in int8.problem


def test_text_and_integers_are_planned_like_anything_else(tmp_path: Path) -> None:
    import onnx

    onnx.save(identity(onnx.TensorProto.STRING, ("batch",)), tmp_path / "model.onnx")
    spec = TensorSpec(name="x", data_type=DataType.STRING, shape=(-1,))
    of = Signature(inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),))
    on = bench({ArtifactFormat.ONNX: tmp_path / "model.onnx"}, of, tmp_path)

    (trial,) = tried(on, ONNX_FP32)

    assert (trial.problem, trial.worst_difference().agreement) == ("", 1)


def test_a_provider_that_the_runtime_does_not_really_have_is_not_believed(tmp_path: Path) -> None:
    plan = ONNX_FP32.model_copy(update={"provider": "CUDAExecutionProvider", "device": "cuda:0"})
    on = bench(onnx_sources(tmp_path), signature(16, 4, "y"), tmp_path)

    with pytest.raises(NotHere, match="asked for CUDAExecutionProvider and runs on CPUExecutionProvider"):
        open_plan(plan, PlanFiles(on.sources[ArtifactFormat.ONNX]), on.signature, num_threads=1)


def test_batches_of_any_size_are_made_of_the_rows_there_are() -> None:
    arrays = {"x": np.array([[1.0], [2.0], [3.0]])}

    assert batch_of(arrays, 5, signature(1, 1))["x"].ravel().tolist() == [1, 2, 3, 1, 2]
    assert batch_of(arrays, 1, signature(1, 1))["x"].ravel().tolist() == [1]


def test_the_measure_that_training_recorded_is_taken_on_the_stored_targets(tmp_path: Path) -> None:
    on = bench(onnx_sources(tmp_path), signature(16, 4, "y"), tmp_path)
    session = open_plan(ONNX_FP32, PlanFiles(on.sources[ArtifactFormat.ONNX]), on.signature, num_threads=1)
    answers = session.run(on.rows.inputs)["y"]
    rows = CalibrationRows(on.rows.inputs, targets={"y": answers + 1})

    trial = try_plan(ONNX_FP32, bench(on.sources, on.signature, tmp_path, rows))

    assert trial.metric == pytest.approx(1, rel=1e-5)
