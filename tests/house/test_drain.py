"""SIGTERM under load: nobody who called before notices, and everybody after is told plainly."""

import asyncio
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.type.v1 import tensor_pb2
from tests.doubles import onnx_models
from tests.doubles.server_process import Callers, ServerProcess, running

NUM_CALLERS = 16
X = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, 64], data=b"\0" * 256)
REQUEST = pb.PredictRequest(model="models/mlp", inputs={"x": X})


@dataclass
class Tally:
    """What became of the calls, and when each refusal came."""

    num_ok: int = 0
    failures: list[tuple[float, grpc.aio.AioRpcError]] = field(default_factory=list)
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, error: grpc.aio.AioRpcError | None) -> None:
        if error is not None:
            self.failures.append((time.monotonic(), error))
            return
        self.num_ok += 1
        if self.num_ok > 20 * NUM_CALLERS:
            self.has_begun.set()


async def call_until_refused(callers: Callers, tally: Tally) -> None:
    while True:
        try:
            await callers.inference.Predict(REQUEST, timeout=60)
        except grpc.aio.AioRpcError as error:
            tally.note(error)
            return
        tally.note(None)


async def serve_mlp(tmp_path: Path, pre_stop_seconds: float) -> ServerProcess:
    file = tmp_path / "mlp.onnx"
    file.write_bytes(onnx_models.mlp().SerializeToString())
    return await ServerProcess.start(
        tmp_path / "data", "--model", f"mlp={file}", "--set", f"server.pre_stop_seconds={pre_stop_seconds}"
    )


async def test_no_call_that_was_under_way_fails_when_the_server_is_told_to_end(tmp_path: Path) -> None:
    server = await serve_mlp(tmp_path, pre_stop_seconds=0.5)
    try:
        async with await server.opened() as callers:
            tally = Tally()
            calls = [asyncio.ensure_future(call_until_refused(callers, tally)) for _ in range(NUM_CALLERS)]
            await tally.has_begun.wait()

            told_at = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*calls)

            # While readiness is false every call is still answered; afterwards it is refused, never dropped.
            assert all(refused_at > told_at + 0.5 for refused_at, _ in tally.failures)
            assert {error.code() for _, error in tally.failures} == {grpc.StatusCode.UNAVAILABLE}
            assert await server.ended() == 0
            assert not any(line["level"] == "error" for line in server.lines), server.report()
    finally:
        await server.kill()


async def test_without_any_wait_calls_are_answered_or_refused_and_never_dropped(tmp_path: Path) -> None:
    server = await serve_mlp(tmp_path, pre_stop_seconds=0)
    try:
        async with await server.opened() as callers:
            tally = Tally()
            calls = [asyncio.ensure_future(call_until_refused(callers, tally)) for _ in range(NUM_CALLERS)]
            await tally.has_begun.wait()

            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*calls)

            messages = [error.details() or "" for _, error in tally.failures]
            assert {error.code() for _, error in tally.failures} == {grpc.StatusCode.UNAVAILABLE}
            assert all("shutting down" in message or "connect" in message.lower() for message in messages), messages
            assert await server.ended() == 0
    finally:
        await server.kill()


async def test_a_stream_is_answered_for_all_that_it_sent_before_it_is_ended(tmp_path: Path) -> None:
    server = await serve_mlp(tmp_path, pre_stop_seconds=0.5)
    try:
        async with await server.opened() as callers:
            stream: Any = callers.inference.PredictStream()
            sent: set[str] = set()
            answered: set[str] = set()
            code = grpc.StatusCode.OK
            try:
                while True:
                    while len(answered) < 500 and len(sent) - len(answered) < 32:
                        sent.add(str(len(sent)))
                        await stream.write(pb.PredictStreamRequest(id=str(len(sent) - 1), request=REQUEST))
                    answer = await stream.read()
                    assert answer.HasField("response"), answer
                    answered.add(answer.id)
                    if len(answered) == 500:  # the stream stays open: the server has to end it
                        server.process.send_signal(signal.SIGTERM)
            except grpc.aio.AioRpcError as error:
                code = error.code()

            assert code is grpc.StatusCode.UNAVAILABLE
            assert answered == sent
            assert await server.ended() == 0
    finally:
        await server.kill()


async def test_a_second_signal_hurries(tmp_path: Path) -> None:
    server = await serve_mlp(tmp_path, pre_stop_seconds=600)
    try:
        async with await server.opened():
            server.process.send_signal(signal.SIGTERM)
            await server.logged("house.draining")
            server.process.send_signal(signal.SIGINT)

            assert await server.ended(seconds=60) == 0
    finally:
        await server.kill()


async def test_a_signal_while_the_server_still_opens_ends_it_cleanly(tmp_path: Path) -> None:
    server = await serve_mlp(tmp_path, pre_stop_seconds=0)
    try:
        await asyncio.sleep(0.9)  # somewhere in the middle: before, while or after it opens, it ends well
        server.process.send_signal(signal.SIGTERM)

        assert await server.ended(seconds=60) in (0, -signal.SIGTERM)
    finally:
        await server.kill()


@pytest.mark.parametrize("times", [3])
async def test_a_killed_server_starts_again_on_the_same_folder(tmp_path: Path, times: int) -> None:
    for _ in range(times):
        async with running(tmp_path / "data") as (server, _callers):
            await server.kill()
