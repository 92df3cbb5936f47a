"""Decisions whose plans lanes run without Python."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from headrace_server.inference.batcher import Batcher
from headrace_server.inference.plans.choice import Bucket, Decision
from headrace_server.inference.plans.opening import PlanFiles
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.sessions import PlannedBackend, PlannedSession
from headrace_server.models.calibration import draw_rows
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors
from tests.inference.batcher_under_test import limits
from tests.inference.plans.programs import onnx_sources, signature, torch_sources
from tests.inference.plans.test_sessions import planned

SMALL = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
LARGE = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, form=Form.DYNAMIC)
IN_TORCH = Plan(runtime=Runtime.TORCH, precision=Precision.FP32)
OF = signature(16, 4, "y")


def opened(folder: Path, decision: Decision) -> PlannedSession:
    """The session of a lane; both plans of ONNX run the same program."""
    onnx_sources(folder)
    in_torch = torch_sources(nn.Linear(16, 4), folder, width=16)[ArtifactFormat.TORCH_EXPORT]
    files = {
        SMALL.name: PlanFiles(folder / "model.onnx"),
        LARGE.name: PlanFiles(folder / "model.onnx", folder / "model.onnx"),
        IN_TORCH.name: PlanFiles(in_torch),
    }
    return PlannedBackend(replace(planned(0), decision=decision, files=files, rows=draw_rows(OF).inputs)).open(
        folder, OF
    )


def decided(*buckets: Bucket, mask: str = "") -> Decision:
    return replace(planned(0).decision, buckets=buckets, lone_threads=2, mask_input=mask)


def rows(count: int) -> Tensors:
    return {"x": np.random.default_rng(count).random((count, 16), np.float32)}


async def test_each_batch_runs_the_plan_of_its_size_says_so_and_answers_what_python_would(tmp_path: Path) -> None:
    session = opened(tmp_path, decided(Bucket(2, SMALL), Bucket(8, LARGE)))
    batcher = Batcher(
        "models/m/versions/1", ["x"], limits(64), is_batchable=True, loop=asyncio.get_running_loop(), output_names=["y"]
    )
    batcher.set_program(0, session.program)

    for count, variant in ((1, 0), (2, 0), (3, 1), (40, 1)):
        ticket = batcher.submit(rows(count), 64 * count)
        assert batcher.take(timeout=0) is None
        answer = await asyncio.wait_for(ticket.future, 60)
        assert answer.variant == variant
        assert answer.outputs["y"].tobytes() == session.run(rows(count))["y"].tobytes()

    batcher.close(RuntimeError)
    session.close()
    assert session.program is None


@pytest.mark.parametrize(
    "decision",
    [decided(Bucket(2, SMALL), Bucket(8, IN_TORCH)), decided(Bucket(8, SMALL), mask="x")],
    ids=["a plan of torch", "padding that is cut"],
)
def test_what_needs_python_for_one_batch_goes_through_it_with_all(tmp_path: Path, decision: Decision) -> None:
    session = opened(tmp_path, decision)

    assert session.program is None
    session.close()
