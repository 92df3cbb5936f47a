from collections.abc import AsyncIterator

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest as Request

from headrace_server.rpc.server import PUBLIC_SERVICES
from tests.doubles.door import Door, open_door

VERSIONS = ("v1", "v1alpha")


async def ask(door: Door, version: str, *requests: Request) -> list[reflection_pb2.ServerReflectionResponse]:
    async def each() -> AsyncIterator[Request]:
        for request in requests:
            yield request

    call = door.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=Request.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return [response async for response in call(each())]


@pytest.mark.parametrize("version", VERSIONS)
async def test_both_versions_list_every_service(version: str) -> None:
    async with open_door() as door:
        answer = (await ask(door, version, Request(list_services="*")))[0]

        names = {service.name for service in answer.list_services_response.service}
        assert names == {
            *PUBLIC_SERVICES,
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        }


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_listed_service_can_be_described(version: str) -> None:
    async with open_door() as door:
        listed = (await ask(door, version, Request(list_services="*")))[0].list_services_response.service
        requests = [Request(file_containing_symbol=service.name) for service in listed]
        for service, answer in zip(listed, await ask(door, version, *requests), strict=True):
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(content)
                for content in answer.file_descriptor_response.file_descriptor_proto
            ]
            described = {f"{file.package}.{entry.name}" for file in files for entry in file.service}
            assert service.name in described


async def test_what_is_unknown_is_not_found() -> None:
    async with open_door() as door:
        answers = await ask(door, "v1", Request(file_containing_symbol="no.Such"), Request(file_by_filename="no.proto"))

        assert [answer.error_response.error_code for answer in answers] == [5, 5]
