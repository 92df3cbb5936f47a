"""A plan, from the owner's wish to the answer that names what really ran: all over gRPC."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from headrace.inference.v1 import inference_service_pb2 as inference_pb
from headrace.models.v1 import model_pb2, model_service_pb2 as pb, plan_pb2, serving_options_pb2 as serving_pb
from headrace.type.v1 import tensor_pb2
from headrace_server.devices import find_devices
from headrace_server.house import House
from tests.doubles.onnx_models import mlp
from tests.doubles.server_process import Callers
from tests.house.test_house import callers_of, save, settings

NAME = "models/m"


def rows(count: int) -> tensor_pb2.Tensor:
    array = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    return tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=array.shape, data=array.tobytes())


def wish(precision: tensor_pb2.Precision.ValueType) -> pb.UpdateModelRequest:
    anything = serving_pb.Tolerances(max_relative_error=1e6, min_cosine=-1, min_agreement=0)
    policy = serving_pb.PrecisionPolicy(precision=precision, tolerances=anything)
    model = model_pb2.Model(name=NAME, serving=serving_pb.ServingOptions(precision=policy))
    return pb.UpdateModelRequest(model=model, update_mask=FieldMask(paths=["serving.precision"]))


async def chosen(callers: Callers) -> plan_pb2.Plan:
    """Wait until the plan is decided."""
    async with asyncio.timeout(240):
        while True:
            plan = (await callers.models.GetPlan(pb.GetPlanRequest(name=NAME))).plan
            if plan.state not in (plan_pb2.Plan.STATE_MEASURING, plan_pb2.Plan.STATE_UNKNOWN):
                return plan
            await asyncio.sleep(0.2)


async def test_int8_that_was_asked_for_runs_and_every_answer_says_so(tmp_path: Path) -> None:
    file = save(mlp((16, 32, 4)), tmp_path / "m.onnx")
    async with House(settings(tmp_path / "data", models={"serve": {"m": file}})) as house, callers_of(house) as callers:
        before = (await callers.models.GetPlan(pb.GetPlanRequest(name=NAME))).plan
        calibration = pb.SetCalibrationRequest(name=NAME, inputs={"x": rows(32)})
        kept = await callers.models.SetCalibration(calibration)
        await callers.models.UpdateModel(wish(tensor_pb2.PRECISION_INT8))

        plan = await chosen(callers)
        answer = await callers.inference.Predict(inference_pb.PredictRequest(model=NAME, inputs={"x": rows(2)}))

        assert before.state == plan_pb2.Plan.STATE_REGISTERED
        assert kept.num_rows == 32
        assert plan.state == plan_pb2.Plan.STATE_CHOSEN, plan
        assert plan.row_source == plan_pb2.Plan.ROW_SOURCE_CALLER
        assert plan.num_rows == 32
        assert {trial.precision for trial in plan.trials} == {tensor_pb2.PRECISION_FP32, tensor_pb2.PRECISION_INT8}
        assert all(trial.speeds and trial.differences for trial in plan.trials)
        assert answer.provenance.precision == tensor_pb2.PRECISION_INT8
        assert answer.provenance.artifact_digest in {
            trial.prepared_digest for trial in plan.trials if trial.name in plan.running
        }
        await house.drain()


async def test_a_plan_shows_what_was_measured_what_was_chosen_and_why_not(tmp_path: Path) -> None:
    file = save(mlp((16, 32, 4)), tmp_path / "m.onnx")
    async with House(settings(tmp_path / "data", models={"serve": {"m": file}})) as house, callers_of(house) as callers:
        strict = serving_pb.Tolerances(max_relative_error=0, min_cosine=-1, min_agreement=0)
        request = wish(tensor_pb2.PRECISION_INT8)
        request.model.serving.precision.tolerances.CopyFrom(strict)
        await callers.models.UpdateModel(request)

        plan = await chosen(callers)

        registered, *others = plan.trials
        largest = max(speed.rows for speed in registered.speeds)
        # The parity certificate: a single row, a usual batch and the largest, whether the plan may run or not.
        for trial in plan.trials:
            compared = [difference.rows for difference in trial.differences]
            assert compared[:2] == [1, 8]
            assert compared[-1] >= largest
            assert all(difference.num_nonfinite == 0 for difference in trial.differences)
        assert [difference.max_absolute for difference in registered.differences] == [0, 0, 0]
        assert {(one.sessions, one.threads) for one in registered.arrangements} >= {(1, house_cores())}
        assert others
        assert all("the relative error is" in trial.refusal and "tolerated is 0" in trial.refusal for trial in others)
        assert plan.running == [registered.name]
        assert plan.decision.why.startswith(
            "none of the other 2 is within the tolerances: onnxruntime-int8-dynamic: the"
        )
        assert [bucket.trial for bucket in plan.decision.buckets] == [registered.name]
        assert 1 <= plan.decision.lone_threads <= house_cores()
        assert plan.environment["cores"] == str(house_cores())
        assert plan.row_source == plan_pb2.Plan.ROW_SOURCE_DRAWN
        assert plan.why_drawn
        assert plan.measure_duration.ToTimedelta().total_seconds() > 0
        await house.drain()


def house_cores() -> int:
    """What the server may use of this machine."""
    return find_devices().num_cores


async def test_rows_of_the_wrong_shape_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    file = save(mlp((16, 32, 4)), tmp_path / "m.onnx")
    async with House(settings(tmp_path / "data", models={"serve": {"m": file}})) as house, callers_of(house) as callers:
        wrong = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, 2], data=bytes(8))

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await callers.models.SetCalibration(pb.SetCalibrationRequest(name=NAME, inputs={"x": wrong}))

        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "inputs['x'].shape: is [1, 2], must be [any, 16]" in (caught.value.details() or "")
        await house.drain()
