"""What a lane runs of a decision."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from torch import nn

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import Session
from headrace_server.inference.backends.one_thread import OnOneThread
from headrace_server.inference.plans.choice import Bucket, Decision
from headrace_server.inference.plans.measurement import Measurement, Source, Trial
from headrace_server.inference.plans.opening import PlanFiles
from headrace_server.inference.plans.plan import Plan, Runtime
from headrace_server.inference.plans.planner import Planned
from headrace_server.inference.plans.sessions import PlannedBackend, PlannedSession, thread_counts, threads_of
from headrace_server.inference.processors import Company, Processors, running
from headrace_server.models.calibration import draw_rows
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors
from tests.inference.plans.programs import onnx_sources, signature, torch_sources

ON_GPU = Plan(runtime=Runtime.TORCH, precision=Precision.BF16, device="cuda:0")


def planned(took_bytes: int) -> Planned:
    decision = Decision(
        buckets=(Bucket(8, ON_GPU),), lone_threads=1, busy_threads=1, busy_sessions=1, max_batch_rows=8,
        refusals={}, mask_input="", why="",
    )  # fmt: skip
    measurement = Measurement(
        environment={}, source=Source.DRAWN, num_rows=1, reference="", seconds=0,
        trials=(Trial(plan=ON_GPU, resident_bytes=took_bytes),), measured_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    files = {ON_GPU.name: PlanFiles(Path("program.pt2"))}
    return Planned(decision, measurement, files, {ON_GPU.name: "sha256:0"}, {}, ())


def test_a_gpu_that_has_not_what_a_plan_took_while_it_was_tried_is_not_even_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def free_bytes(device: str) -> int:
        asked.append(device)
        return 700

    backend = PlannedBackend(planned(took_bytes=1000), free_bytes)

    with pytest.raises(DeviceOutOfMemory) as refused:
        backend.open(tmp_path, signature(4, 3))

    assert (refused.value.missing_bytes, asked) == (300, ["cuda:0"])


class CountingSession:
    """Remembers how many rows it ran."""

    device = "cpu"
    precision = Precision.FP32

    def __init__(self) -> None:
        self.ran: list[int] = []

    def run(self, inputs: Tensors) -> Tensors:
        """An echo."""
        self.ran.append(len(inputs["x"]))
        return {"output": inputs["x"]}

    def close(self) -> None:
        """Nothing to close."""


def a_lane(
    sessions: Mapping[tuple[str, int], Session], decision: Decision, company: Company = Company.OWN
) -> PlannedSession:
    return PlannedSession(decision, signature(4, 4), dict(sessions), lambda: nullcontext(company), lambda: None)


def rows(count: int) -> Tensors:
    return {"x": np.zeros((count, 4), np.float32)}


def test_a_lane_uses_all_threads_while_it_is_alone_and_few_while_others_wait_or_run() -> None:
    plan = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
    decision = replace(planned(0).decision, buckets=(Bucket(8, plan),), lone_threads=4, busy_threads=1)
    few, many = CountingSession(), CountingSession()
    sessions = {(plan.name, 1): few, (plan.name, 4): many}

    a_lane(sessions, decision, Company.NONE).run(rows(1))
    a_lane(sessions, decision, Company.OWN).run(rows(2))
    a_lane(sessions, decision, Company.OTHERS).run(rows(3))

    assert (many.ran, few.ran) == ([1], [2, 3])


@pytest.mark.parametrize(("runtime", "beside_others"), [(Runtime.TORCH, 1), (Runtime.ONNXRUNTIME, 2)])
def test_beside_another_model_a_run_has_as_few_threads_as_there_are_sessions_for(
    runtime: Runtime, beside_others: int
) -> None:
    plan = Plan(runtime=runtime, precision=Precision.FP32)
    decision = replace(planned(0).decision, buckets=(Bucket(8, plan),), lone_threads=4, busy_threads=2)

    assert threads_of(decision, plan, Company.NONE) == 4
    assert threads_of(decision, plan, Company.OWN) == 2
    assert threads_of(decision, plan, Company.OTHERS) == beside_others
    assert thread_counts(decision, plan) == tuple(sorted({beside_others, 2, 4}))
    assert threads_of(decision, ON_GPU, Company.NONE) == 1


def test_each_size_of_batch_runs_with_its_own_plan_and_says_so() -> None:
    small = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
    large = Plan(runtime=Runtime.TORCH, precision=Precision.BF16)
    decision = replace(planned(0).decision, buckets=(Bucket(2, small), Bucket(8, large)))
    ran_small, ran_large = CountingSession(), CountingSession()
    lane = a_lane({(small.name, 1): ran_small, (large.name, 1): ran_large}, decision)

    precisions = []
    for count in (1, 2, 3, 64):
        lane.run(rows(count))
        precisions.append(lane.precision)

    assert (ran_small.ran, ran_large.ran) == ([1, 2], [3, 64])
    assert precisions == [Precision.FP32, Precision.FP32, Precision.BF16, Precision.BF16]


def test_two_lanes_that_run_at_once_have_company_and_one_that_runs_alone_has_when_calls_wait(tmp_path: Path) -> None:
    onnx_sources(tmp_path)
    plan = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
    decision = replace(planned(0).decision, buckets=(Bucket(8, plan),), lone_threads=2, busy_threads=1, busy_sessions=2)
    drawn = draw_rows(signature(16, 4, "y")).inputs
    backend = PlannedBackend(
        replace(planned(0), decision=decision, files={plan.name: PlanFiles(tmp_path / "model.onnx")}, rows=drawn)
    )

    with backend._running() as alone, backend._running() as second:
        assert (alone, second) == (Company.NONE, Company.OWN)
    backend.num_waiting = lambda: 1
    with backend._running() as alone:
        assert alone is Company.OWN

    first, other = (backend.open(tmp_path, signature(16, 4, "y")) for _ in range(2))
    assert first.run({"x": np.ones((3, 16), np.float32)})["y"].shape == (3, 4)
    first.close()
    assert other.run({"x": np.ones((1, 16), np.float32)})["y"].shape == (1, 4)
    other.close()


def torch_backend(folder: Path, processors: Processors) -> PlannedBackend:
    """A model of torch whose lone runs have two threads."""
    (path,) = torch_sources(nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 3)), folder, 512).values()
    plan = Plan(runtime=Runtime.TORCH, precision=Precision.FP32)
    decision = replace(planned(0).decision, buckets=(Bucket(64, plan),), lone_threads=2, busy_threads=1)
    drawn = draw_rows(signature(512, 3)).inputs
    files = {plan.name: PlanFiles(path)}
    return PlannedBackend(replace(planned(0), decision=decision, files=files, rows=drawn), processors=processors)


def alone_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lane-alone"]


def test_models_of_one_server_share_the_thread_whose_runs_have_helpers_and_have_no_helpers_besides(
    tmp_path: Path,
) -> None:
    of, processors = signature(512, 3), Processors(memory_seconds=0)
    x = {"x": np.ones((64, 512), np.float32)}
    lanes = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        lanes.append(torch_backend(folder, processors).open(folder, of))
    lanes[0].run(x)
    before = len([*Path("/proc/self/task").iterdir()])

    for _ in range(5):
        for lane in lanes:
            lane.run(x)

    assert len(alone_threads()) == 1
    assert len([*Path("/proc/self/task").iterdir()]) == before  # the helpers of the first are those of the second
    for lane in lanes:
        lane.close()
    for thread in alone_threads():
        thread.join(60)
    assert alone_threads() == []


class HeldSession(CountingSession):
    """Runs until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def run(self, inputs: Tensors) -> Tensors:
        self.has_begun.set()
        assert self.may_end.wait(60)
        return super().run(inputs)


def test_a_model_beside_which_another_runs_waits_for_nobody_and_the_next_lone_run_has_all_threads_again(
    tmp_path: Path,
) -> None:
    plan = Plan(runtime=Runtime.TORCH, precision=Precision.FP32)
    decision = replace(planned(0).decision, buckets=(Bucket(8, plan),), lone_threads=2, busy_threads=1)
    processors = Processors(memory_seconds=0)
    long, few, many = HeldSession(), CountingSession(), CountingSession()

    def lane(wide: Session, narrow: Session) -> PlannedSession:
        backend = PlannedBackend(replace(planned(0), decision=decision), processors=processors)
        helped = OnOneThread(wide, processors.thread)
        sessions = {(plan.name, 1): narrow, (plan.name, 2): helped}
        return PlannedSession(decision, signature(4, 4), sessions, backend._running, helped.close)

    one, other = lane(long, CountingSession()), lane(many, few)
    at_once = threading.Thread(target=one.run, args=(rows(1),))
    at_once.start()
    assert long.has_begun.wait(60)
    other.run(rows(2))  # the thread with helpers is taken by the first
    long.may_end.set()
    at_once.join(60)
    other.run(rows(3))

    assert (few.ran, many.ran, long.ran) == ([2], [3], [1])
    for each in (one, other):
        each.close()


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40))
def test_whoever_begins_is_told_what_runs_already(moves: list[tuple[int, bool]]) -> None:
    processors = Processors(memory_seconds=0)
    models = [processors.runs_of_a_model() for _ in range(3)]
    under_way: list[tuple[int, ExitStack]] = []
    for model, begins in moves:
        if begins:
            others = [other for other, _ in under_way]
            run = ExitStack()
            company = run.enter_context(running(models[model]))
            expected = Company.OWN if others else Company.NONE
            assert company is (Company.OTHERS if set(others) - {model} else expected)
            under_way.append((model, run))
        elif under_way:
            under_way.pop(model % len(under_way))[1].close()
    for _, run in under_way:
        run.close()

    with running(processors.runs_of_a_model()) as company:
        assert company is Company.NONE
