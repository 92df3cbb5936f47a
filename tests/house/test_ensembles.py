"""An ensemble is a model like any other, to every kind of caller."""

from pathlib import Path

import numpy as np
import pytest

import headrace
from headrace_server.house import House
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as open_pb
from headrace_server.rpc.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from tests.doubles import onnx_models
from tests.house.test_house import callers_of, save, settings

ROWS = np.array([[1, 2], [3, 4]], np.float32)


async def test_an_ensemble_is_registered_named_asked_and_described_like_any_model(tmp_path: Path) -> None:
    files = {f"times-{n}": save(onnx_models.scale(n), tmp_path / f"{n}.onnx") for n in (2, 5)}
    async with House(settings(tmp_path / "data", models={"serve": files})) as house, callers_of(house) as callers:
        target = f"127.0.0.1:{house.port}"
        async with headrace.Client(target) as client:
            crowd = headrace.mean({"a": "times-2", "b": "models/times-5/versions/1"}, weights={"b": 2})
            version = await client.register_ensemble("crowd", crowd)
            await client.assign_alias("crowd", "champion", 1)
            prediction = await client.predict("crowd@champion", ROWS)
            pipeline = headrace.chain(
                {"first": "times-2", "then": "crowd"},
                inputs={"first.x": "rows", "then.x": "first.y"},
                outputs={"result": "then.y"},
            )
            await client.register_ensemble("pipeline", pipeline)
            chained = await client.predict("pipeline", ROWS)
            status = await client.model_status("pipeline")

        # The version says what it is made of, and the answer what each member did.
        assert version.ensemble == crowd
        assert [each.name for each in version.outputs] == ["y"]
        np.testing.assert_allclose(prediction.output, ROWS * 4)
        assert prediction.model_version == "models/crowd/versions/1"
        assert {each.name: each.model_version for each in prediction.members} == {
            "a": "models/times-2/versions/1", "b": "models/times-5/versions/1",
        }  # fmt: skip
        assert all(each.timing.server_seconds > 0 for each in prediction.members)

        # A chain has the inputs and outputs that its wiring names, and shows the ensemble inside of it.
        np.testing.assert_allclose(chained.outputs["result"], ROWS * 8)
        assert [each.name for each in chained.members[1].members] == ["a", "b"]
        assert [each.name for each in status.inputs] == ["rows"]

        # Clients of the Open Inference Protocol see a model.
        stub = GRPCInferenceServiceStub(callers.channel)
        metadata = await stub.ModelMetadata(open_pb.ModelMetadataRequest(name="pipeline"))
        assert (metadata.platform, metadata.inputs[0].name, metadata.outputs[0].name) == ("ensemble", "rows", "result")
        request = open_pb.ModelInferRequest(model_name="pipeline", raw_input_contents=[ROWS.tobytes()])
        request.inputs.add(name="rows", datatype="FP32", shape=ROWS.shape)
        answer = await stub.ModelInfer(request)
        np.testing.assert_allclose(np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 2), ROWS * 8)
        await house.drain()


async def test_what_is_wrong_with_an_ensemble_is_told_by_field_before_anything_is_registered(tmp_path: Path) -> None:
    file = save(onnx_models.scale(2), tmp_path / "m.onnx")
    async with House(settings(tmp_path / "data", models={"serve": {"m": file}})) as house:
        async with headrace.Client(f"127.0.0.1:{house.port}") as client:
            wrong = headrace.chain({"a": "m", "b": "nobody"}, inputs={"a.x": "b.y"}, outputs={})
            with pytest.raises(headrace.InvalidSpec) as caught:
                await client.register_ensemble("crowd", wrong)
            assert [violation.field for violation in caught.value.violations] == ["ensemble.members[1].model"]
            circle = headrace.chain({"a": "m", "b": "m"}, {"a.x": "b.y", "b.x": "a.y"}, {"y": "a.y"})
            with pytest.raises(headrace.InvalidSpec, match="in a circle"):
                await client.register_ensemble("crowd", circle)
            with pytest.raises(headrace.ModelNotFound):
                await client.get_model("crowd")
        await house.drain()
