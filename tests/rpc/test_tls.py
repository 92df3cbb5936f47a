"""TLS at the public port, whoever holds it."""

import asyncio
import json
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.channel import tls_credentials
from headrace.client import Client
from headrace.errors import Unavailable
from headrace.training.v1 import training_service_pb2 as pb
from headrace.training.v1.training_service_pb2_grpc import TrainingServiceStub
from headrace_server import _native
from headrace_server.errors import CannotStart
from headrace_server.rpc.caller import Caller, caller_of
from headrace_server.rpc.tls import tls_of
from headrace_server.settings import ServerSettings
from tests.doubles.certificates import Authority, Pair
from tests.doubles.door import Door, open_door

DOORS = [
    pytest.param("native", marks=pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")),
    "grpc_aio",
]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def server(authority: Authority) -> Pair:
    return authority.issue("server")


def files(pair: Pair, client_ca: Path | None = None) -> dict[str, Any]:
    chosen = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    return chosen | ({"tls_client_ca": client_ca} if client_ca is not None else {})


async def list_jobs(port: int, credentials: grpc.ChannelCredentials | None, timeout: float = 30) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    target = f"127.0.0.1:{port}"
    channel = (
        grpc.aio.insecure_channel(target, options)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options)
    )
    async with channel:
        stub: Any = TrainingServiceStub(channel)
        await stub.ListTrainingJobs(pb.ListTrainingJobsRequest(), timeout=timeout)


def certificate_shown(port: int, authority: Path) -> bytes:
    """What the server shows to one who connects now."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 30) as line,
        context.wrap_socket(line, server_hostname="server") as tls,
    ):
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    return shown


@pytest.mark.parametrize("door", DOORS)
async def test_a_caller_who_knows_the_authority_is_served(door: str, server: Pair, authority: Authority) -> None:
    async with open_door(door=door, **files(server)) as opened:
        await list_jobs(opened.port, tls_credentials(authority.file))
        async with Client(f"127.0.0.1:{opened.port}", credentials=tls_credentials(authority.file)) as client:
            assert await client.list_training_jobs() == []


@pytest.mark.parametrize("door", DOORS)
async def test_a_caller_who_does_not_is_not(door: str, server: Pair, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    async with open_door(door=door, **files(server)) as opened:
        for credentials in (tls_credentials(stranger.file), None):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_jobs(opened.port, credentials)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("door", DOORS)
async def test_callers_without_a_certificate_are_kept_out_where_one_is_asked_for(
    door: str, server: Pair, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("caller")
    own = authority.issue("caller")
    async with open_door(door=door, **files(server, authority.file)) as opened:
        await list_jobs(opened.port, tls_credentials(authority.file, own.certificate, own.key))
        for credentials in (
            tls_credentials(authority.file),
            tls_credentials(authority.file, stranger.certificate, stranger.key),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_jobs(opened.port, credentials, timeout=3)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@asynccontextmanager
async def noting_callers(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[tuple[Door, list[Caller]]]:
    callers: list[Caller] = []
    from headrace_server.rpc.services.training import TrainingService

    plain = TrainingService.ListTrainingJobs

    async def noting(self: Any, request: Any, context: Any) -> Any:
        callers.append(caller_of(context))
        return await plain(self, request, context)

    monkeypatch.setattr(TrainingService, "ListTrainingJobs", noting)
    async with open_door(**settings) as opened:
        yield opened, callers


@pytest.mark.parametrize("door", DOORS)
async def test_the_name_in_a_certificate_is_known_to_the_server(
    door: str, server: Pair, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = authority.issue("alice")
    async with noting_callers(monkeypatch, door=door, **files(server, authority.file)) as (opened, callers):
        await list_jobs(opened.port, tls_credentials(authority.file, own.certificate, own.key))

    assert [caller.identity for caller in callers] == ["alice"]
    assert callers[0].address.startswith("ipv4:127.0.0.1:")


@pytest.mark.parametrize("door", DOORS)
async def test_a_renewed_certificate_is_shown_without_a_restart(door: str, server: Pair, authority: Authority) -> None:
    async with open_door(door=door, **files(server)) as opened:
        before = await asyncio.to_thread(certificate_shown, opened.port, authority.file)

        server.replace_with(authority.issue("server"))

        async with asyncio.timeout(60):
            while await asyncio.to_thread(certificate_shown, opened.port, authority.file) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.2)  # files ring no bell
        await list_jobs(opened.port, tls_credentials(authority.file))


def version_spoken(port: int, authority: Path, most: ssl.TLSVersion) -> str | None:
    """What the server speaks with one who knows nothing newer than `most`."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else the caller itself would refuse what is old
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, most
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 30) as line,
        context.wrap_socket(line, server_hostname="server") as tls,
    ):
        return tls.version()


@pytest.mark.parametrize("door", DOORS)
async def test_nothing_older_than_tls_1_2_is_spoken(door: str, server: Pair, authority: Authority) -> None:
    async with open_door(door=door, **files(server)) as opened:
        for most, spoken in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            assert await asyncio.to_thread(version_spoken, opened.port, authority.file, most) == spoken
        for old in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1):
            with pytest.raises(ssl.SSLError, match=r"ALERT_PROTOCOL_VERSION|UNEXPECTED_EOF"):
                await asyncio.to_thread(version_spoken, opened.port, authority.file, old)


@pytest.mark.parametrize("door", DOORS)
async def test_a_pair_that_does_not_fit_is_passed_over(door: str, server: Pair, authority: Authority) -> None:
    async with open_door(door=door, **files(server)) as opened:
        server.key.write_bytes(authority.issue("other").key.read_bytes())
        await asyncio.sleep(2.5)  # longer than the native door takes to look again

        await list_jobs(opened.port, tls_credentials(authority.file))


def test_half_of_what_tls_needs_is_not_enough(server: Pair, tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="both"):
        tls_of(ServerSettings(tls_certificate=server.certificate))
    with pytest.raises(CannotStart, match="both"):
        tls_of(ServerSettings(tls_client_ca=server.certificate))
    with pytest.raises(CannotStart, match="does not exist"):
        tls_of(ServerSettings(tls_certificate=server.certificate, tls_key=tmp_path / "nothing"))


def test_a_key_of_another_certificate_is_refused(server: Pair, authority: Authority) -> None:
    with pytest.raises(CannotStart, match="cannot be used"):
        tls_of(ServerSettings(tls_certificate=server.certificate, tls_key=authority.issue("other").key))


async def test_a_plain_client_is_told_that_nobody_answers(server: Pair) -> None:
    async with (
        open_door(**files(server)) as opened,
        Client(f"127.0.0.1:{opened.port}", timeout_seconds=30) as client,
    ):
        with pytest.raises(Unavailable):
            await client.get_model("digits")


def test_the_command_line_speaks_tls(server: Pair, authority: Authority) -> None:
    from typer.testing import CliRunner

    from headrace.cli.app import app

    async def ask() -> Any:
        async with open_door(**files(server)) as opened:
            words = ["--tls-ca", str(authority.file), "jobs", "list", "--server", f"127.0.0.1:{opened.port}", "--json"]
            return await asyncio.to_thread(CliRunner().invoke, app, words)

    result = asyncio.run(ask())

    assert result.exit_code == 0, result.output
    assert json.loads(result.output or "[]") in ([], {"jobs": []}, {})


def test_the_command_line_names_a_file_that_is_missing(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from headrace.cli.app import app

    result = CliRunner().invoke(app, ["--tls-ca", str(tmp_path / "none.pem"), "jobs", "list"])

    assert result.exit_code == 2
    assert "none.pem" in result.output
