import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace_server.rpc.server import PUBLIC_SERVICES
from tests.doubles.door import open_door

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def ask(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_nothing_serves_before_the_house_is_open_and_everything_after() -> None:
    async with open_door() as door:
        stub = health_pb2_grpc.HealthStub(door.channel)
        before = [(await stub.Check(ask(name))).status for name in ("", *PUBLIC_SERVICES)]
        door.health.open()
        after = [(await stub.Check(ask(name))).status for name in ("", *PUBLIC_SERVICES)]

        assert set(before) == {NOT_SERVING}
        assert set(after) == {SERVING}


async def test_a_name_that_nobody_knows_is_not_found() -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(door.channel).Check(ask("models/nobody"))

        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_tells_when_a_model_can_answer_and_when_the_server_ends() -> None:
    async with open_door() as door:
        stream = health_pb2_grpc.HealthStub(door.channel).Watch(ask("models/m"))
        seen = [(await stream.read()).status]
        door.health.tell("models/m", True)
        seen.append((await stream.read()).status)
        door.health.tell("models/m", True)
        door.health.tell("models/m", False)
        seen.append((await stream.read()).status)
        door.health.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()

        assert seen == [UNKNOWN, SERVING, NOT_SERVING]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_is_ending_never_serves_again() -> None:
    async with open_door() as door:
        stub = health_pb2_grpc.HealthStub(door.channel)
        door.health.open()
        door.health.tell("models/m", True)
        door.health.latch()
        door.health.open()
        door.health.tell("models/m", True)

        assert (await stub.Check(ask(""))).status == NOT_SERVING
        assert (await stub.Check(ask("models/m"))).status == NOT_SERVING


async def test_health_answers_while_new_calls_are_refused() -> None:
    async with open_door() as door:
        door.health.latch()
        door.closing.set()

        answer = await health_pb2_grpc.HealthStub(door.channel).Check(ask(""))

        assert answer.status == NOT_SERVING


async def test_all_names_are_listed_up_to_a_limit() -> None:
    async with open_door() as door:
        stub = health_pb2_grpc.HealthStub(door.channel)
        door.health.open()
        door.health.tell("models/m", False)
        listed = (await stub.List(health_pb2.HealthListRequest())).statuses

        assert listed[""].status == SERVING
        assert listed["models/m"].status == NOT_SERVING
        assert len(listed) == 2 + len(PUBLIC_SERVICES)

        for n in range(200):
            door.health.tell(f"models/m{n}", True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.List(health_pb2.HealthListRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
