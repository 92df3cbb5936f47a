"""Finds processes again, and kills them for certain.  Knows nothing of what they do.

A pid says little: it is given to somebody else once its process is gone.  So a process is recorded with the moment of
its birth, and everything that is started for one attempt carries a mark in its environment.  Children inherit the mark,
also those that leave their parents' group and session.

Blocks: everything here is meant for a thread.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from headrace_server.launchers.launcher import CannotKill

MARK = "AGENT_FOLDER"
"""The environment variable whose value, the attempt's folder, marks everything that runs for the attempt."""

AGENT_PID_FILE = "agent.pid"
MARK_FILE = "agent.mark"
"""In an attempt's folder: the mark that its processes carry instead, when they were started ahead of it."""

KILL_SECONDS = 10.0
POLL_SECONDS = 0.01


def record(file: Path, pid: int) -> None:
    """Write down which process `pid` is.  The file appears complete or not at all.

    Nothing is written of one that has ended and was collected: nobody has to end it any more.
    """
    try:
        born = _birth(pid)
    except (FileNotFoundError, ProcessLookupError):
        return
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(json.dumps({"pid": pid, "born": born}), encoding="utf-8")
    draft.replace(file)


def adopt_mark(folder: Path, mark: str) -> None:
    """Note that the processes of the attempt in `folder` carry another mark: they were started ahead of it."""
    draft = folder / f"{MARK_FILE}.draft"
    draft.write_text(mark, encoding="utf-8")
    draft.replace(folder / MARK_FILE)


def recall(file: Path) -> psutil.Process | None:
    """The recorded process, if it still runs; None for one that is gone, and where nothing readable was recorded."""
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        pid, born = int(written["pid"]), str(written["born"])
        process = psutil.Process(pid)
        return process if _birth(pid) == born else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that only waits for its parent to take note of its end does not."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def descendants(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """The processes and all their children's children, from one look at all processes of the machine."""
    running = {process.pid: process for process in _all_processes()}
    children: dict[int, list[psutil.Process]] = {}
    for process in running.values():
        with contextlib.suppress(psutil.Error):
            children.setdefault(process.ppid(), []).append(process)
    found: set[psutil.Process] = set()
    waiting = list(processes)
    while waiting:
        process = waiting.pop()
        # Where its pid has been given to somebody else meanwhile, the children under it are somebody else's too.
        if process not in found and running.get(process.pid) == process:
            found.add(process)
            waiting += children.get(process.pid, [])
    return found


def find_marked(folder: Path) -> set[psutil.Process]:
    """All processes that carry the mark of the attempt in `folder`."""
    marks = _marks(folder)
    return {process for process in _all_processes() if _is_marked(process, marks)}


def find_session(session: int, leader: psutil.Process | None, folder: Path) -> set[psutil.Process]:
    """The members of a session, provided that it is the one meant.

    It is when `leader`, the recorded process that made it, still lives, or when any member carries the mark; otherwise
    the number may have been given to strangers, and nothing is found.
    """
    if session <= 0:
        return set()
    marks = _marks(folder)
    members = {process for process in _all_processes() if _session_of(process) == session}
    is_ours = (leader is not None and leader.pid == session) or any(_is_marked(process, marks) for process in members)
    return members if is_ours else set()


def kill_until_gone(find: Callable[[], Iterable[psutil.Process]], seconds: float = KILL_SECONDS) -> int:
    """Kill what `find` finds, again and again until it finds nothing alive; returns how many processes that took.

    Raises CannotKill when some are still there after so many seconds.
    """
    deadline = time.monotonic() + seconds
    killed: set[psutil.Process] = set()
    num_empty = 0
    while True:
        alive = [process for process in find() if is_alive(process)]
        # A process that forks and ends while we look may slip through one look, but hardly through two.
        num_empty = 0 if alive else num_empty + 1
        if num_empty == 2:
            return len(killed)
        if alive and time.monotonic() > deadline:
            raise CannotKill([process.pid for process in alive])
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.add(process)
        if alive:
            time.sleep(POLL_SECONDS)


def name_of_signal(code: int) -> str:
    """The name for a negative exit code, as "SIGKILL" for -9; empty for any other."""
    if code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        return f"SIG{-code}"


def _birth(pid: int) -> str:
    """When a process was born: the boot, and the clock ticks since.  Raises OSError when there is no such process."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    ticks = stat.rpartition(b")")[2].split()[19].decode()  # field 22; the name before it may hold anything
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{ticks}"


def _all_processes() -> Iterable[psutil.Process]:
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):
            yield psutil.Process(pid)


def _marks(folder: Path) -> frozenset[bytes]:
    marks = {str(folder)}
    with contextlib.suppress(OSError):
        marks.add((folder / MARK_FILE).read_text(encoding="utf-8"))
    return frozenset(f"{MARK}={mark}".encode() for mark in marks)


def _is_marked(process: psutil.Process, marks: frozenset[bytes]) -> bool:
    try:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return False
    return not marks.isdisjoint(environment.split(b"\0"))


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None
