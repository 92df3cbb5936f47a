"""A real MLflow tracking server of the test's own, which can be killed, held still, and started again on the same port.

It lives in an environment of its own, made once: MLflow and this house want different versions of the same packages.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from headrace_server.worker.ports import free_port
from tests.doubles.environment import Environment

PACKAGES = Environment("mlflow", ("mlflow==3.17.2",))
SECONDS_TO_START = 240


class MlflowServer:
    """One server on 127.0.0.1; keeps its runs in a SQLite file."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python = python
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: asyncio.subprocess.Process | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where it is, or will be."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it answers."""
        log = (self._folder / "mlflow.log").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            *(str(self._python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"),
            *("--default-artifact-root", str(self._folder / "artifacts")),
            cwd=self._folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
        )  # fmt: skip
        log.close()
        async with asyncio.timeout(SECONDS_TO_START), httpx.AsyncClient() as client:
            while True:
                assert self._process.returncode is None, (self._folder / "mlflow.log").read_text()
                try:
                    if (await client.get(f"{self.url}/health", timeout=5)).is_success:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.1)

    async def kill(self) -> None:
        """End it with all its processes, as a power cut would."""
        if self._process is not None:
            for process in self._processes():
                process.kill()
            await self._process.wait()
            self._process = None

    def hold(self) -> None:
        """Leave its connections open and answer nothing."""
        for process in self._processes():
            process.send_signal(signal.SIGSTOP)

    def release(self) -> None:
        """Answer again."""
        for process in self._processes():
            process.send_signal(signal.SIGCONT)

    async def runs(self, experiment: str) -> list[dict[str, Any]]:
        """All runs of an experiment, as the REST interface shows them."""
        async with httpx.AsyncClient(base_url=f"{self.url}/api/2.0/mlflow/", timeout=30) as client:
            found = await client.get("experiments/get-by-name", params={"experiment_name": experiment})
            if found.status_code == 404:
                return []
            body = {"experiment_ids": [found.json()["experiment"]["experiment_id"]], "max_results": 100}
            runs: list[dict[str, Any]] = (await client.post("runs/search", json=body)).json().get("runs", [])
            return runs

    async def history(self, run_id: str, metric: str) -> list[tuple[int, Any]]:
        """Every step and value of one metric, in the order of steps."""
        found: list[tuple[int, Any]] = []
        token = ""
        async with httpx.AsyncClient(base_url=f"{self.url}/api/2.0/mlflow/", timeout=30) as client:
            while True:
                asked = {"run_id": run_id, "metric_key": metric, "max_results": "1000"}
                answer = (await client.get("metrics/get-history", params={**asked, "page_token": token})).json()
                found += [(int(one["step"]), one["value"]) for one in answer.get("metrics", [])]
                if not (token := answer.get("next_page_token", "")):
                    return sorted(found, key=lambda one: one[0])

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@asynccontextmanager
async def mlflow_running(python: Path, folder: Path) -> AsyncIterator[MlflowServer]:
    """A started server, gone after the block."""
    server = MlflowServer(python, folder)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
