"""What a user of Triton's own client does, with that client as it comes from PyPI: `python triton_client.py HOST:PORT`.

It runs in an environment of its own, for it cannot live in one process with the server's stubs.  Prints what it saw as
one JSON object; knows nothing of Headrace.
"""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ROWS = np.array([[1, 2], [3, 4.5]], np.float32)
# One array for each type that the client knows, by the name of the model that gives it back.
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "bool": np.array([[True, False]]),
    "int8": np.array([[-128, 127]], np.int8),
    "int16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "int32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "int64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "uint8": np.array([[0, 255]], np.uint8),
    "uint16": np.array([[0, 2**16 - 1]], np.uint16),
    "uint32": np.array([[0, 2**32 - 1]], np.uint32),
    "uint64": np.array([[0, 2**64 - 1]], np.uint64),
    "fp16": np.array([[1.5, -65504]], np.float16),
    "bf16": np.array([[1.5, -3e38]], ml_dtypes.bfloat16),
    "fp32": np.array([[1.5, -3e38]], np.float32),
    "fp64": np.array([[1.5, -1e300]], np.float64),
    "text": np.array([["", "größer"]], np.object_),
}


def tensor(array: "np.ndarray[Any, Any]") -> Any:
    """An input called x."""
    made = triton.InferInput("x", list(array.shape), np_to_triton_dtype(array.dtype))
    return made.set_data_from_numpy(array)


def refusal(call: Any) -> list[str]:
    """The status and the message that a call ends with."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["OK", ""]


def look_around(client: Any) -> dict[str, Any]:
    """Everything that is asked without running a model."""
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("double"),
        "version_ready": client.is_model_ready("double", "1"),
        "nobody_ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("double", as_json=True),
        "config": client.get_model_config("double", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }


def run_models(client: Any) -> dict[str, Any]:
    """One request of each kind, and the counts afterwards."""
    asked = triton.InferRequestedOutput("y")
    answer = client.infer("double", [tensor(ROWS)], "1", [asked], "id-1", priority=1, timeout=10_000_000)
    waiting: queue.Queue[Any] = queue.Queue()
    client.async_infer("double", [tensor(ROWS)], callback=lambda result, error: waiting.put((result, error)))
    later, error = waiting.get(timeout=30)
    assert error is None
    back = {
        name: client.infer(name, [tensor(array)], compression_algorithm="gzip").as_numpy("y")
        for name, array in ARRAYS.items()
    }
    texts = back.pop("text")
    return {
        "answer": answer.as_numpy("y").tolist(),
        "id": answer.get_response().id,
        "later": later.as_numpy("y").tolist(),
        "same": {name: bool(array.tobytes() == ARRAYS[name].tobytes()) for name, array in back.items()},
        "texts": [[text.decode() for text in row] for row in texts.tolist()],
        "statistics": client.get_inference_statistics("double", as_json=True),
    }


def be_refused(client: Any) -> dict[str, list[str]]:
    """What must not work."""
    rows = [tensor(ROWS)]
    shared = triton.InferInput("x", [2, 2], "FP32")
    shared.set_shared_memory("region", 16)
    return {
        "nobody": refusal(lambda: client.infer("nobody", rows)),
        "version": refusal(lambda: client.infer("double", rows, "9")),
        "output": refusal(lambda: client.infer("double", rows, outputs=[triton.InferRequestedOutput("z")])),
        "classes": refusal(lambda: client.infer("double", rows, outputs=[triton.InferRequestedOutput("y", 2)])),
        "shape": refusal(lambda: client.infer("double", [tensor(ROWS.T[:1, :1])])),
        "datatype": refusal(lambda: client.infer("double", [tensor(ROWS.astype(np.float64))])),
        "sequence": refusal(lambda: client.infer("double", rows, sequence_id=7, sequence_start=True)),
        "shared": refusal(lambda: client.infer("double", [shared])),
        "shared_status": refusal(client.get_system_shared_memory_status),
        "trace": refusal(client.get_trace_settings),
        "log": refusal(client.get_log_settings),
        "override": refusal(lambda: client.load_model("double", config="{}")),
    }


def reload(client: Any) -> list[bool]:
    """Whether the model is ready after unloading it, and after loading it again."""
    client.unload_model("double")
    after_unload = client.is_model_ready("double")
    client.load_model("double")
    return [after_unload, client.is_model_ready("double")]


def stream(client: Any) -> list[list[Any]]:
    """A stream of ten requests, the fourth of which fails."""
    came: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: came.put((result, error)))
    for number in range(10):
        model = "nobody" if number == 3 else "double"
        client.async_stream_infer(
            model, [tensor(ROWS + number)], request_id=str(number), enable_empty_final_response=True
        )
    client.stop_stream()
    seen = []
    for _ in range(10):
        result, error = came.get(timeout=30)
        if error is not None:
            seen.append(["refused", str(error)])
        else:
            response = result.get_response()
            is_final = response.parameters["triton_final_response"].bool_param
            seen.append([response.id, result.as_numpy("y").tolist(), is_final])
    return seen


async def run_asynchronously(target: str) -> dict[str, Any]:
    """The same with the asynchronous client."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            model = "nobody" if number == 3 else "double"
            yield {"model_name": model, "inputs": [tensor(ROWS)], "request_id": str(number)}

    async with triton_aio.InferenceServerClient(target) as client:
        answers = await asyncio.gather(*(client.infer("double", [tensor(ROWS + n)]) for n in range(32)))
        seen = [
            str(error) if error is not None else result.get_response().id
            async for result, error in client.stream_infer(requests())
        ]
        return {
            "live": await client.is_server_live(),
            "answers": [answer.as_numpy("y").tolist() for answer in answers],
            "stream": seen,
        }


def main(target: str) -> None:
    """Do all of it."""
    with triton.InferenceServerClient(target) as client:
        seen = {
            "around": look_around(client),
            "models": run_models(client),
            "refused": be_refused(client),
            "reloaded": reload(client),
            "stream": stream(client),
        }
    seen["aio"] = asyncio.run(run_asynchronously(target))
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
