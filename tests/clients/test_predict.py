import numpy as np
import pytest

import headrace
from headrace import Client
from headrace.type.v1.tensor_pb2 import DataType, TensorSpec
from tests.doubles.scripted_server import ScriptedServer

ROWS = [[1.0, 2.0, 3.0], [4.0, 4.0, 5.0]]


async def test_an_array_is_enough_for_a_model_with_one_input(client: Client) -> None:
    prediction = await client.predict("digits", np.array(ROWS))

    np.testing.assert_array_equal(prediction.output, np.array(ROWS) + 1)
    assert list(prediction.outputs) == ["plus_one", "scores"]
    assert prediction.model_version == "models/digits/versions/1"
    assert prediction.labels == ["even", "odd"]


async def test_arrays_may_be_given_by_name_and_outputs_chosen(client: Client) -> None:
    prediction = await client.predict("models/digits", {"x": ROWS}, output_names=["scores"])

    assert list(prediction.outputs) == ["scores"]
    assert prediction.output.shape == (2, 2)


async def test_it_says_where_the_time_went_and_what_ran(client: Client) -> None:
    prediction = await client.predict("digits", ROWS)

    timing = prediction.timing
    assert timing.queue_seconds == pytest.approx(100e-6)
    assert timing.server_seconds == pytest.approx(430e-6)
    assert timing.total_seconds == pytest.approx(timing.server_seconds + timing.transport_seconds)
    assert (timing.batch_rows, timing.batch_calls) == (2, 1)
    assert (prediction.provenance.backend, prediction.provenance.precision) == ("onnxruntime", "fp32")


async def test_the_question_for_the_signature_may_take_as_long_as_the_answer(
    client: Client, server: ScriptedServer
) -> None:
    await client.predict("digits", ROWS, timeout=3000)

    assert 2000 < server.inference.status_seconds[0] <= 3000


async def test_the_signature_is_asked_for_once(client: Client, server: ScriptedServer) -> None:
    for _ in range(3):
        await client.predict("digits", ROWS)

    assert server.inference.num_status_calls == 1


async def test_what_does_not_fit_is_refused_before_it_is_sent(client: Client, server: ScriptedServer) -> None:
    with pytest.raises(headrace.InvalidTensor, match="has the shape"):
        await client.predict("digits", [1.0, 2.0, 3.0])

    assert server.inference.requests == []


async def test_a_new_version_with_another_signature_is_noticed(client: Client, server: ScriptedServer) -> None:
    await client.predict("digits", ROWS)
    server.inference.version = 2
    server.inference.inputs = [TensorSpec(name="pixels", data_type=DataType.DATA_TYPE_FP64, shape=[-1, 3])]

    prediction = await client.predict("digits", ROWS)

    assert prediction.model_version == "models/digits/versions/2"
    assert server.inference.requests[-1].inputs["pixels"].data_type == DataType.DATA_TYPE_FP64
    assert "x" not in server.inference.requests[-1].inputs


async def test_a_new_version_that_answers_is_asked_for_its_signature(client: Client, server: ScriptedServer) -> None:
    await client.predict("digits", ROWS)
    server.inference.version = 2

    await client.predict("digits", ROWS)
    await client.predict("digits", ROWS)
    await client.predict("digits", ROWS)

    assert server.inference.num_status_calls == 2


async def test_several_inputs_need_names(client: Client, server: ScriptedServer) -> None:
    server.inference.inputs.append(TensorSpec(name="y", data_type=DataType.DATA_TYPE_FP32, shape=[-1]))

    with pytest.raises(headrace.InvalidTensor, match=r"by name \(x, y\)"):
        await client.predict("digits", ROWS)


async def test_an_unknown_model_is_not_found(client: Client) -> None:
    with pytest.raises(headrace.ModelNotFound):
        await client.predict("numbers", ROWS)


def test_text_stands_for_numbers_where_the_model_lists_it() -> None:
    from headrace.tensors import fit_inputs

    spec = TensorSpec(name="island", data_type=DataType.DATA_TYPE_INT64, shape=[-1], class_names=["", "Dream"])

    tensors = fit_inputs({"island": ["Dream", "Biscoe"]}, [spec], "models/m")

    assert list(tensors["island"].strings.values) == ["Dream", "Biscoe"]
