"""Several trainers that train together: they find each other, end together, and leave evidence of whoever did not."""

from pathlib import Path
from typing import Any

import pytest

from headrace_server.launchers.launcher import Formation
from headrace_server.training.events import LogLine
from headrace_server.training.session import Outcome
from tests.doubles.agent_at_work import FAILED, FINISHED, STOPPED, work

pytestmark = pytest.mark.usefixtures("subreaper")

EXPORT = ["export"]
FIRST_OF_CONNECTIONS = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def on(rank: int, *steps: list[Any]) -> list[Any]:
    return ["rank", rank, list(steps)]


def lines_of(server: Any) -> set[str]:
    return {line.text for line in server.ledger.of(LogLine)}


async def test_each_rank_knows_its_place_and_the_first_speaks_for_all(tmp_path: Path, socket: Path) -> None:
    script = [["print_world"], on(0, EXPORT), on(2, ["report", {"kind": "phase_changed", "phase": "mine"}]), FINISHED]

    ended, server = await work(tmp_path, socket, script, num_ranks=3)

    assert ended.outcome is Outcome.FINISHED
    lines = lines_of(server)
    assert "world 0 0 3 3 127.0.0.1" in lines
    assert "[rank 2] world 2 2 3 3 127.0.0.1" in lines
    (meeting,) = {line.rpartition(" ")[2] for line in lines if "meets at" in line}
    assert int(meeting.rpartition(":")[2]) < FIRST_OF_CONNECTIONS  # no connection takes it meanwhile
    assert "mine" not in [getattr(content, "phase", "") for content in server.ledger.contents]


async def test_one_trainer_alone_is_told_of_no_world(tmp_path: Path, socket: Path) -> None:
    _, server = await work(tmp_path, socket, [["print_world"], EXPORT, FINISHED])

    assert "world none none none none none" in lines_of(server)


async def test_ranks_on_several_machines_meet_where_the_launcher_says(tmp_path: Path, socket: Path) -> None:
    formation = Formation(num_nodes=2, node=1, rendezvous="ranks.example:29500")
    _, server = await work(tmp_path, socket, [["print_world"], FINISHED], num_ranks=2, formation=formation)

    assert "[rank 3] world 3 1 4 2 ranks.example" in lines_of(server)
    assert "[rank 3] meets at 29500" in lines_of(server)


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_rank_that_is_killed_takes_its_world_down(tmp_path: Path, socket: Path, rank: int) -> None:
    script = [on(rank, ["signal", 9]), ["sleep", 600]]

    ended, _ = await work(tmp_path, socket, script, num_ranks=2)

    assert (ended.outcome, ended.signal, ended.num_killed) == (Outcome.DIED, "SIGKILL", 1)
    assert ended.last_lines[-1] == f"rank {rank} was ended by SIGKILL without a word"


async def test_what_others_say_of_a_rank_that_is_gone_is_not_why_the_job_ended(tmp_path: Path, socket: Path) -> None:
    noticed = ["report", {"kind": "failed", "error": "DistBackendError", "message": "connection closed by peer"}]
    script = [on(1, ["signal", 9]), on(0, ["sleep", 0.5], noticed)]

    ended, _ = await work(tmp_path, socket, script, num_ranks=2)

    assert (ended.outcome, ended.signal) == (Outcome.DIED, "SIGKILL")


async def test_a_rank_that_says_why_it_failed_is_believed(tmp_path: Path, socket: Path) -> None:
    script = [on(1, FAILED, ["exit", 3]), ["sleep", 600]]

    ended, _ = await work(tmp_path, socket, script, {"exit_seconds": 0.5}, num_ranks=2)

    assert (ended.outcome, ended.error) == (Outcome.FAILED, "InvalidDataset")
    assert ended.message == "rank 1: no such column"


async def test_a_rank_may_take_longer_to_end_than_another(tmp_path: Path, socket: Path) -> None:
    ended, _ = await work(tmp_path, socket, [on(0, ["sleep", 0.6]), STOPPED], num_ranks=2)

    assert (ended.outcome, ended.num_killed) == (Outcome.STOPPED, 0)
