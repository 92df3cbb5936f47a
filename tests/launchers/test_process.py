"""Agents are started apart from the server and end for certain."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from headrace_server.launchers.launcher import CannotLaunch
from headrace_server.launchers.process import AGENT_LOG_FILE, ProcessLauncher, clean_environment
from headrace_server.launchers.processes import AGENT_PID_FILE, MARK, is_alive, recall, record
from headrace_server.names import JobName
from tests.doubles.until import until

JOB = str(JobName("j"))


def agent(folder: Path, text: str) -> ProcessLauncher:
    """A launcher of a small program instead of the agent; its argument is the folder."""
    program = folder / "program.py"
    program.write_text(textwrap.dedent(text), encoding="utf-8")
    return ProcessLauncher((sys.executable, str(program)))


# Writes its own facts, then waits; with "escape" it leaves a child in a session of its own, without the mark.
FAMILY = """
    import json, os, subprocess, sys, time
    folder = sys.argv[1]
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    trainer = subprocess.Popen(sleep, start_new_session=True)
    hidden = subprocess.Popen(sleep, start_new_session=True, env={"PATH": os.environ["PATH"]})
    facts = {"pid": os.getpid(), "trainer": trainer.pid, "hidden": hidden.pid, "session": os.getsid(0),
             "group": os.getpgid(0), "environment": dict(os.environ), "descriptors": os.listdir("/proc/self/fd")}
    open(folder + "/facts.draft", "w").write(json.dumps(facts))
    os.rename(folder + "/facts.draft", folder + "/facts.json")
    time.sleep(600)
"""


async def start_family(tmp_path: Path) -> tuple[ProcessLauncher, dict[str, int]]:
    launcher = agent(tmp_path, FAMILY)
    await launcher.launch(JOB, 1, tmp_path)
    await until((tmp_path / "facts.json").exists)
    return launcher, json.loads((tmp_path / "facts.json").read_text())


def runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


async def test_an_agent_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    launcher, facts = await start_family(tmp_path)

    assert facts["session"] == facts["pid"] != os.getsid(0)
    assert facts["group"] == facts["pid"]
    assert runs(facts["pid"])

    await launcher.kill(JOB, 1, tmp_path, 0)


async def test_killing_takes_the_agent_and_all_its_children_wherever_they_are(tmp_path: Path) -> None:
    launcher, facts = await start_family(tmp_path)

    num_killed = await launcher.kill(JOB, 1, tmp_path, facts["trainer"])

    assert num_killed == 3
    assert not any(runs(facts[who]) for who in ("pid", "trainer", "hidden"))
    assert await launcher.kill(JOB, 1, tmp_path, facts["trainer"]) == 0


async def test_an_agent_that_is_about_to_end_is_let_end(tmp_path: Path) -> None:
    launcher = agent(tmp_path, "import time; time.sleep(0.5)")
    await launcher.launch(JOB, 1, tmp_path)

    assert await launcher.wait(JOB, 1, tmp_path, 60)
    assert await launcher.kill(JOB, 1, tmp_path, 0) == 0


async def test_an_agent_that_stays_is_not_waited_for_longer_than_asked(tmp_path: Path) -> None:
    launcher = agent(tmp_path, "import time; time.sleep(600)")
    await launcher.launch(JOB, 1, tmp_path)

    assert not await launcher.wait(JOB, 1, tmp_path, 0.1)
    assert await launcher.kill(JOB, 1, tmp_path, 0) == 1
    assert await launcher.wait(JOB, 1, tmp_path, 0)


async def test_a_dead_agent_is_reaped(tmp_path: Path) -> None:
    launcher = agent(tmp_path, "print('done')")

    await launcher.launch(JOB, 1, tmp_path)
    pid = json.loads((tmp_path / AGENT_PID_FILE).read_text())["pid"]

    await until(lambda: not psutil.pid_exists(pid))
    assert (tmp_path / AGENT_LOG_FILE).read_text() == "done\n"


async def test_a_new_launcher_kills_what_an_earlier_server_left(tmp_path: Path) -> None:
    # Given a trainer whose agent was killed, together with the server that had started it.
    script = f"""
        import asyncio, pathlib, sys
        from headrace_server.launchers.process import ProcessLauncher
        launcher = ProcessLauncher((sys.executable, {str(tmp_path / "program.py")!r}))
        asyncio.run(launcher.launch("trainingJobs/j", 1, pathlib.Path({str(tmp_path)!r})))
    """
    agent(tmp_path, FAMILY)
    server = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)  # noqa: ASYNC221
    assert server.returncode == 0
    await until((tmp_path / "facts.json").exists)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert runs(facts["pid"]), "it outlives its server"
    record(tmp_path / "trainer.pid", facts["trainer"])
    psutil.Process(facts["hidden"]).kill()  # an orphan without a mark is for the agent to find, not for us
    psutil.Process(facts["pid"]).kill()
    await until(lambda: not runs(facts["pid"]))
    assert runs(facts["trainer"])

    num_killed = await ProcessLauncher().kill(JOB, 1, tmp_path, facts["trainer"])

    assert num_killed == 1
    assert not runs(facts["trainer"])


async def test_a_recycled_pid_is_left_alone(tmp_path: Path) -> None:
    # Given a stranger that has the pid of the agent and the session of the trainer.
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)  # noqa: ASYNC220
    record(tmp_path / AGENT_PID_FILE, stranger.pid)
    written = json.loads((tmp_path / AGENT_PID_FILE).read_text())
    (tmp_path / AGENT_PID_FILE).write_text(json.dumps({**written, "born": "another boot:1"}))

    num_killed = await ProcessLauncher().kill(JOB, 1, tmp_path, stranger.pid)

    assert num_killed == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


async def test_a_marked_member_shows_that_the_session_is_the_trainers(tmp_path: Path) -> None:
    # Given a trainer that is gone, and of its children one with a mark and one without.
    sleep = f"{sys.executable} -c 'import time; time.sleep(600)'"
    script = f"{sleep} & {MARK}= {sleep} & echo ready; wait"
    trainer = subprocess.Popen(  # noqa: ASYNC220
        ["/bin/sh", "-c", script], start_new_session=True, env={**os.environ, MARK: str(tmp_path)}, stdout=-1
    )
    assert trainer.stdout is not None
    trainer.stdout.readline()
    children = psutil.Process(trainer.pid).children()
    await until(lambda: all("sleep(600)" in " ".join(child.cmdline()) for child in children))
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()

    num_killed = await ProcessLauncher().kill(JOB, 1, tmp_path, trainer.pid)

    assert len(children) == 2
    assert num_killed == 2
    assert not any(is_alive(child) for child in children)


async def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(CannotLaunch, match="trainingJobs/j"):
        await ProcessLauncher(("/no/such/program",)).launch(JOB, 1, tmp_path)
    with pytest.raises(CannotLaunch):
        await ProcessLauncher().launch(JOB, 1, tmp_path / "missing")


async def test_a_cancelled_launch_leaves_nothing_that_is_not_found(tmp_path: Path) -> None:
    launcher = agent(tmp_path, FAMILY)
    launch = asyncio.create_task(launcher.launch(JOB, 1, tmp_path))
    await asyncio.sleep(0)

    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch

    assert await launcher.kill(JOB, 1, tmp_path, 0) >= 1
    assert recall(tmp_path / AGENT_PID_FILE) is None


async def test_agents_inherit_no_settings_and_no_open_files(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        launcher, facts = await start_family(tmp_path)
    finally:
        os.close(read_end)
        os.close(write_end)

    await launcher.kill(JOB, 1, tmp_path, 0)

    assert str(write_end) not in facts["descriptors"]  # type: ignore[operator]


def test_the_environment_is_clean() -> None:
    kept = clean_environment(
        {
            "PATH": "/bin",
            "LC_ALL": "C",
            "CUDA_VISIBLE_DEVICES": "0",
            "OMP_NUM_THREADS": "2",
            "HEADRACE_SERVER__PORT": "1",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
    )

    assert {name for name in kept if not name.startswith(("PYTHON", "GRPC_"))} == {
        "PATH",
        "LC_ALL",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
    }


async def test_closing_lets_agents_live(tmp_path: Path) -> None:
    launcher, facts = await start_family(tmp_path)

    await launcher.close()

    assert runs(facts["pid"])
    assert await ProcessLauncher().kill(JOB, 1, tmp_path, 0) == 3
    os.waitpid(facts["pid"], 0)  # noqa: ASYNC222 - it is dead


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pid": "x", "born": "y"}', '{"pid": -1, "born": "y"}'])
def test_a_record_that_says_nothing_is_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.pid").write_text(content)

    assert recall(tmp_path / "a.pid") is None


def test_a_record_of_a_living_process_is_that_process(tmp_path: Path) -> None:
    record(tmp_path / "a.pid", os.getpid())

    assert recall(tmp_path / "a.pid") == psutil.Process()


def test_a_process_that_has_ended_already_is_nobody(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        pass

    record(tmp_path / "a.pid", process.pid)

    assert list(tmp_path.iterdir()) == []


async def test_the_end_of_an_agent_is_told_with_what_ended_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    failing = agent(tmp_path / "a", "raise SystemExit(3)")
    waiting = agent(tmp_path / "b", "import time; time.sleep(600)")
    await failing.launch(JOB, 1, tmp_path / "a")
    await waiting.launch(JOB, 2, tmp_path / "b")
    try:
        assert await waiting.ending(JOB, 2, tmp_path / "b") is None
        assert await _ending(failing, 1, tmp_path / "a") == "exited with code 3"

        os.kill(json.loads((tmp_path / "b" / AGENT_PID_FILE).read_text())["pid"], signal.SIGKILL)
        assert await _ending(waiting, 2, tmp_path / "b") == "was ended by SIGKILL"
    finally:
        await waiting.kill(JOB, 2, tmp_path / "b", 0)


async def test_another_server_sees_whether_an_agent_is_still_there(tmp_path: Path) -> None:
    launcher = agent(tmp_path, "import time; time.sleep(600)")
    await launcher.launch(JOB, 1, tmp_path)
    another = ProcessLauncher()

    assert await another.ending(JOB, 1, tmp_path) is None
    (tmp_path / AGENT_PID_FILE).rename(tmp_path / "hidden")  # as when the server died before it wrote that down
    assert await another.ending(JOB, 1, tmp_path) is None
    (tmp_path / "hidden").rename(tmp_path / AGENT_PID_FILE)
    await launcher.kill(JOB, 1, tmp_path, 0)

    assert await another.ending(JOB, 1, tmp_path) == "is not there any more"
    assert await another.ending(JOB, 1, tmp_path / "never") == "is not there any more"


async def _ending(launcher: ProcessLauncher, attempt: int, folder: Path) -> str:
    async with asyncio.timeout(20):
        while (ending := await launcher.ending(JOB, attempt, folder)) is None:  # noqa: ASYNC110 - it rings no bell
            await asyncio.sleep(0.01)
    return ending
