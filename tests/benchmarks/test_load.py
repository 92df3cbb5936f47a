"""The load generator counts what a small real server counts, and nothing else."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings, strategies as st

from tests.benchmarks.serving.load import Found, Load
from tests.benchmarks.serving.tools import CannotBuild, Tools, tools

pytestmark = pytest.mark.timeout(600)  # the first test builds the generator


@pytest.fixture(scope="module")
def built() -> Tools:
    try:
        return tools()
    except CannotBuild as error:
        pytest.skip(str(error))


class Server(grpc.GenericRpcHandler):
    """Answers with the request; numbers its calls and fails those that it is told to."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.time_left: list[float] = []
        self.fails: dict[int, grpc.StatusCode] = {}
        """Every call whose number this divides ends so."""
        self.reason = ""
        self.holds = False
        """Whether calls wait until their callers have gone."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        self.requests.append(request)
        self.time_left.append(context.time_remaining())
        if self.holds:
            await asyncio.Event().wait()
        for every, code in self.fails.items():
            if len(self.requests) % every == 0:
                context.set_trailing_metadata((("grpc-status-details-bin", self._details(code)),))
                await context.abort(code, "told to")
        return request

    def _details(self, code: grpc.StatusCode) -> bytes:
        info = any_pb2.Any()
        info.Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain="test"))
        other = any_pb2.Any()
        other.Pack(error_details_pb2.RetryInfo())
        status: Any = status_pb2.Status(code=code.value[0], message="told to", details=[other, info])
        content: bytes = status.SerializeToString()
        return content


@pytest.fixture
async def server(built: Tools) -> AsyncIterator[tuple[Server, str]]:
    served = grpc.aio.server()
    handler = Server()
    served.add_generic_rpc_handlers((handler,))
    port = served.add_insecure_port("127.0.0.1:0")
    await served.start()
    yield handler, f"127.0.0.1:{port}"
    await served.stop(None)


@pytest.fixture
def bodies(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("first", "second")]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


async def made(load: Load) -> Found:
    """What came of it, while this loop goes on serving."""
    return await asyncio.to_thread(load.run)


async def test_a_hundred_calls_are_counted_as_a_hundred(server: tuple[Server, str], bodies: list[Path]) -> None:
    handler, target = server
    load = Load(target=target, method="/a.B/C", bodies=bodies, callers=7, connections=3, threads=2, calls=100)

    found = await made(load)

    assert len(handler.requests) == 100
    assert (found.answers, found.errors) == (100, {})
    assert (found.total.started, found.total.answers, found.total.errors) == (100, 100, {})
    assert found.answer_bytes == (len("first"), len("second"))
    assert set(handler.requests) == {b"first", b"second"}
    assert 0 < found.latency.p50 <= found.latency.p99 <= found.latency.max


async def test_a_window_of_time_leaves_out_what_ends_before_and_after_it(
    server: tuple[Server, str], bodies: list[Path]
) -> None:
    handler, target = server
    load = Load(target=target, method="/a.B/C", bodies=bodies, callers=4, seconds=0.2, warm_up_seconds=0.2)

    found = await made(load)

    assert 0 < found.answers < found.total.answers
    assert found.total.started == found.total.answers == len(handler.requests)


async def test_errors_are_counted_by_code_and_reason(server: tuple[Server, str], bodies: list[Path]) -> None:
    handler, target = server
    handler.fails = {4: grpc.StatusCode.RESOURCE_EXHAUSTED}
    handler.reason = "NO_PERMIT"
    load = Load(target=target, method="/a.B/C", bodies=bodies, callers=3, calls=100)

    found = await made(load)

    assert found.answers == 75
    assert found.errors == {"RESOURCE_EXHAUSTED/NO_PERMIT": 25}
    assert found.total.first_messages == {"RESOURCE_EXHAUSTED/NO_PERMIT": "told to"}


async def test_an_error_without_a_reason_is_counted_by_its_code(server: tuple[Server, str], bodies: list[Path]) -> None:
    handler, target = server
    handler.fails = {2: grpc.StatusCode.NOT_FOUND}
    load = Load(target=target, method="/a.B/C", bodies=bodies, callers=1, calls=10, pause_seconds=0.001)

    found = await made(load)

    assert (found.answers, found.errors) == (5, {"NOT_FOUND": 5})


async def test_every_call_has_its_deadline_and_is_counted_when_it_passes(
    server: tuple[Server, str], bodies: list[Path]
) -> None:
    handler, target = server
    handler.holds = True
    load = Load(target=target, method="/a.B/C", bodies=bodies, callers=5, calls=10, deadline_seconds=0.5)

    found = await made(load)

    assert (found.answers, found.errors) == (0, {"DEADLINE_EXCEEDED": 10})
    assert all(left < 0.6 for left in handler.time_left)  # half a second, which gRPC rounds up on its way


async def test_an_open_loop_makes_its_calls_although_none_is_answered(
    server: tuple[Server, str], bodies: list[Path]
) -> None:
    handler, target = server
    handler.holds = True
    load = Load(
        target=target, method="/a.B/C", bodies=bodies, rate=100, seconds=0.5, warm_up_seconds=0, deadline_seconds=0.3
    )

    first, second = await made(load), await made(load)

    assert first.paced is not None
    assert second.paced is not None
    assert first.paced.due == second.paced.due == first.total.started == second.total.started
    assert 20 < first.paced.due < 100  # fifty are expected
    assert first.paced.good == 0
    assert first.total.errors == {"DEADLINE_EXCEEDED": first.total.started}


async def test_an_open_loop_knows_which_answers_came_in_time(server: tuple[Server, str], bodies: list[Path]) -> None:
    _, target = server
    load = Load(target=target, method="/a.B/C", bodies=bodies, rate=50, seconds=0.5, deadline_seconds=30)

    found = await made(load)

    assert found.paced is not None
    assert found.paced.good == found.answers > 0
    assert found.total.answers == found.total.started


def test_a_server_that_is_not_there_is_an_error(built: Tools, bodies: list[Path]) -> None:
    command = Load(target="unix:/nowhere", method="/a.B/C", bodies=bodies, calls=1).command()

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 1
    assert "cannot connect to unix:/nowhere" in done.stderr
    assert done.stdout == ""


def test_a_wrong_command_line_says_what_is_right(built: Tools) -> None:
    done = subprocess.run([built.load, "--rate", "fast"], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "'fast' is not a number" in done.stderr
    assert "usage" in done.stderr


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1 << 41), min_size=1, max_size=300))
def test_quantiles_are_right_to_a_hundredth(built: Tools, numbers: list[int]) -> None:
    shares = (0.0, 0.5, 0.9, 0.99)
    text = "\n".join(map(str, numbers))

    done = subprocess.run([built.quantiles, *map(str, shares)], input=text, capture_output=True, text=True, check=True)

    count, mean, most, *quantiles = map(float, done.stdout.split())
    assert (count, most) == (len(numbers), max(numbers))
    assert mean == pytest.approx(np.mean(numbers))
    for share, quantile in zip(shares, quantiles, strict=True):
        assert quantile == pytest.approx(sorted(numbers)[int(share * len(numbers))], rel=0.01)
