"""Runs the process that makes a job's template, with a deadline.

The process has torch and the code of the job's family; this one has neither.  It is started by exec in a session of its
own, with a clean environment and no open file of the server's, and whatever becomes of it is told as ModelFailed.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from pydantic import ValidationError

from headrace_server.errors import ModelFailed
from headrace_server.launchers.process import clean_environment
from headrace_server.trainers.template import FAILURE, TEMPLATE, Template, TemplateFailure, TemplateOrder

COMMAND = (sys.executable, "-P", "-m", "headrace_server.trainers.template_process")
ORDER = "order.json"
LAST_WORDS_BYTES = 2000

log = structlog.get_logger()


class TemplateMaker:
    """Starts processes; `deadline_seconds` is what each may take."""

    def __init__(self, deadline_seconds: float, command: Sequence[str] = COMMAND) -> None:
        self._deadline_seconds = deadline_seconds
        self._command = tuple(command)

    async def make(self, name: str, order: TemplateOrder) -> Template:
        """Have the files of a template written into `order.folder`.  Raises ModelFailed, which names `name`."""
        path = order.folder / ORDER
        await asyncio.to_thread(path.write_text, order.model_dump_json(), encoding="utf-8")
        code, last_words = await self._run(name, path)
        if code != 0:
            raise ModelFailed(name, await asyncio.to_thread(_why, order.folder, code, last_words))
        try:
            return Template.model_validate_json(await asyncio.to_thread((order.folder / TEMPLATE).read_bytes))
        except (OSError, ValidationError) as error:
            raise ModelFailed(name, f"its program was made, but cannot be read: {error}") from error

    async def _run(self, name: str, order: Path) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            str(order),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd=order.parent,
            env=clean_environment(os.environ),
            start_new_session=True,
        )
        log.info("live.template_started", model=name, pid=process.pid)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                _, errors = await process.communicate()
        except TimeoutError:
            raise ModelFailed(
                name, f"its program could not be made within {self._deadline_seconds:g} seconds"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        assert process.returncode is not None
        return process.returncode, errors[-LAST_WORDS_BYTES:].decode(errors="replace")


def _why(folder: Path, code: int, last_words: str) -> str:
    try:
        failure = TemplateFailure.model_validate_json((folder / FAILURE).read_bytes())
    except (OSError, ValidationError):
        ended = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
        return f"the process that makes its program {ended}: {last_words.strip().rpartition(chr(10))[2]}"
    return f"its program cannot be made: {failure.error}: {failure.message}"
