"""Which door holds the port: as the setting says, and otherwise as the native module was built."""

import json
from pathlib import Path

import pytest

from headrace.training.v1 import training_service_pb2 as pb
from headrace_server import _native, selfcheck
from headrace_server.errors import CannotStart
from headrace_server.house import House
from headrace_server.rpc.door import kind_of
from headrace_server.settings import Settings
from tests.doubles.door import open_door


@pytest.fixture
def no_native_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """As built without gRPC for C++."""
    monkeypatch.setattr(_native, "door_built", False)
    monkeypatch.delattr(_native, "Door", raising=False)


def settings_in(folder: Path, door: str = "auto") -> Settings:
    return Settings.model_validate(
        {"data": folder / "data", "server": {"port": 0, "door": door}, "telemetry": {"metrics_port": -1}}
    )


@pytest.mark.usefixtures("no_native_door")
async def test_without_a_native_door_grpc_aio_holds_the_port_and_answers() -> None:
    async with open_door() as door:
        assert door.holder.kind == "grpc_aio"
        await door.training.ListTrainingJobs(pb.ListTrainingJobsRequest(), timeout=20)


@pytest.mark.usefixtures("no_native_door")
async def test_the_log_says_which_door_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with House(settings_in(tmp_path)):
        pass

    said = capsys.readouterr()
    assert "house.open" in said.out + said.err
    line = next(line for line in (said.out + said.err).splitlines() if "house.open" in line)
    assert "grpc_aio" in line


@pytest.mark.usefixtures("no_native_door")
def test_a_self_check_says_so_and_what_would_help(tmp_path: Path) -> None:
    finding = selfcheck._door(settings_in(tmp_path))

    assert finding.verdict is selfcheck.Verdict.WARNING
    assert "grpc.aio holds the port" in finding.detail
    assert "libgrpc++-dev" in finding.detail
    assert json.dumps(finding.as_json())


@pytest.mark.usefixtures("no_native_door")
def test_a_native_door_that_was_not_built_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"libgrpc\+\+-dev"):
        kind_of("native")
    assert selfcheck._door(settings_in(tmp_path, "native")).verdict is selfcheck.Verdict.BROKEN


@pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")
def test_a_native_door_is_taken_where_it_was_built() -> None:
    assert kind_of("auto") == "native"
    assert kind_of("grpc_aio") == "grpc_aio"
