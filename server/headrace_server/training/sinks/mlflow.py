"""Keeps trainings in an MLflow tracking server, over its REST interface.

Each job is a run.  Everything that is sent may be sent again: a run is found by its tag before it is made, parameters
do not change, and a metric with the time and value of one that is there is the same one.
https://mlflow.org/docs/latest/rest-api.html, version 2.0.
"""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field

from headrace_server.training.sinks.sink import (
    Batch,
    Figures,
    Options,
    Run,
    SinkKind,
    SinkRefused,
    SinkUnavailable,
    StateNote,
)

METRICS_A_REQUEST = 1000
PARAMETERS_A_REQUEST = 100
LONGEST_NAME = 250
LONGEST_PARAMETER = 6000
LONGEST_TAG = 5000
RUNS_REMEMBERED = 256
RUN_TAG = "headrace.run"

_STATUSES = {
    "SUCCEEDED": "FINISHED",
    "FAILED": "FAILED",
    "CANCELLED": "KILLED",
    "QUEUED": "SCHEDULED",
    "PAUSED": "SCHEDULED",
}
_NOT_IN_NAMES = re.compile(r"[^\w./ :-]")
# What passes by itself, or when somebody mends the server or its credentials; every other refusal is for good.
_MAY_PASS = frozenset({401, 403, 408, 425, 429})


class MlflowOptions(Options):
    """Where the tracking server is.

    Credentials come from where MLflow's own client has them: the variables MLFLOW_TRACKING_TOKEN, or
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """

    url: str = Field(pattern=r"^https?://", max_length=2000)
    experiment: str = Field("headrace", min_length=1, max_length=500)
    ca_file: Path | None = None
    """Of the authority that vouches for the server; the system's when absent."""
    request_seconds: float = Field(10, gt=0, le=300)


class MlflowSink:
    """One experiment of one tracking server."""

    def __init__(self, options: MlflowOptions) -> None:
        self._experiment = options.experiment
        self._client = httpx.Client(
            base_url=f"{options.url.rstrip('/')}/api/2.0/mlflow/",
            timeout=options.request_seconds,
            verify=True if options.ca_file is None else str(options.ca_file),
            **_credentials(),
        )
        self._runs: OrderedDict[str, str] = OrderedDict()

    def write(self, batch: Batch) -> None:
        """Send figures, states and notes of one job."""
        run_id = self._run_id(batch.run)
        metrics = list(_metrics(batch))
        tags = _tags(batch)
        for first in range(0, max(len(metrics), 1), METRICS_A_REQUEST):
            some = metrics[first : first + METRICS_A_REQUEST]
            self._log(batch.run, run_id, metrics=some, tags=tags if first == 0 else [])
        states = [entry for entry in batch.entries if isinstance(entry, StateNote)]
        if states:
            change: dict[str, Any] = {"run_id": run_id, "status": _STATUSES.get(states[-1].state, "RUNNING")}
            if states[-1].is_terminal:
                change["end_time"] = _milliseconds(states[-1].time)
            self._post("runs/update", change)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _run_id(self, run: Run) -> str:
        if (known := self._runs.get(run.key)) is not None:
            self._runs.move_to_end(run.key)
            return known
        experiment = self._experiment_id()
        run_id = self._find(experiment, run) or self._create(experiment, run)
        parameters = [
            {"key": _name(key), "value": value[:LONGEST_PARAMETER]} for key, value in sorted(run.parameters.items())
        ]
        for first in range(0, len(parameters), PARAMETERS_A_REQUEST):
            self._log(run, run_id, params=parameters[first : first + PARAMETERS_A_REQUEST])
        self._runs[run.key] = run_id
        while len(self._runs) > RUNS_REMEMBERED:
            self._runs.popitem(last=False)
        return run_id

    def _experiment_id(self) -> str:
        try:
            found = self._call("GET", "experiments/get-by-name", params={"experiment_name": self._experiment})
            return str(found["experiment"]["experiment_id"])
        except _Absent:
            pass
        try:
            return str(self._post("experiments/create", {"name": self._experiment})["experiment_id"])
        except SinkRefused as error:  # another server was quicker: next time it is found
            raise SinkUnavailable(f"the experiment cannot be made: {error}") from error

    def _find(self, experiment: str, run: Run) -> str | None:
        found = self._post(
            "runs/search",
            {
                "experiment_ids": [experiment],
                "filter": f"tags.`{RUN_TAG}` = '{run.key}'",
                "run_view_type": "ALL",  # one that somebody has deleted there is not to come back
                "max_results": 1,
            },
        )
        runs = found.get("runs") or []
        return str(runs[0]["info"]["run_id"]) if runs else None

    def _create(self, experiment: str, run: Run) -> str:
        tags = {
            RUN_TAG: run.key,
            "headrace.job": f"trainingJobs/{run.id}",
            "headrace.model": run.model,
            "headrace.dataset": run.dataset,
            "headrace.trainer": run.trainer,
            "mlflow.source.name": "headrace",
            "mlflow.source.type": "JOB",
            **{f"label.{key}": value for key, value in run.labels.items()},
        }
        created = self._post(
            "runs/create",
            {
                "experiment_id": experiment,
                "run_name": run.id,
                "start_time": _milliseconds(run.created_at),
                "tags": [_tag(key, value) for key, value in tags.items()],
            },
        )
        return str(created["run"]["info"]["run_id"])

    def _log(self, run: Run, run_id: str, **content: Sequence[dict[str, Any]]) -> None:
        if not any(content.values()):
            return
        try:
            self._post("runs/log-batch", {"run_id": run_id, **content})
        except _Absent as error:  # the server has lost it, as when it begins anew: so do we
            self._runs.pop(run.key, None)
            raise SinkUnavailable(f"run {run_id} is gone") from error

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, json=body)

    def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, **content)
        except httpx.HTTPError as error:
            raise SinkUnavailable(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return _body(answer)
        problem = _problem(answer)
        if answer.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" in problem:
            raise _Absent(problem)
        if answer.is_client_error and answer.status_code not in _MAY_PASS:
            raise SinkRefused(problem)
        raise SinkUnavailable(problem)


class _Absent(SinkRefused):
    """The server knows no such thing."""


def _credentials() -> dict[str, Any]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"headers": {"Authorization": f"Bearer {token}"}}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {}


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError as error:
        raise SinkUnavailable(f"the answer is not MLflow's: {answer.text[:200]!r}") from error
    if not isinstance(body, dict):
        raise SinkUnavailable(f"the answer is not MLflow's: {answer.text[:200]!r}")
    return body


def _problem(answer: httpx.Response) -> str:
    return f"{answer.request.url.path}: status {answer.status_code}: {answer.text[:500]}"


def _metrics(batch: Batch) -> Iterator[dict[str, Any]]:
    for entry in batch.entries:
        if isinstance(entry, Figures):
            for name, value in entry.values.items():
                yield {
                    "key": _name(name),
                    "value": _number(value),
                    "timestamp": _milliseconds(entry.time),
                    "step": entry.step,
                }


def _tags(batch: Batch) -> list[dict[str, str]]:
    """The newest of each kind."""
    tags: dict[str, str] = {}
    for entry in batch.entries:
        if isinstance(entry, StateNote):
            tags["headrace.state"] = entry.state
            tags["headrace.state_message"] = entry.message or entry.reason
        elif not isinstance(entry, Figures):
            tags[f"headrace.{entry.kind}"] = entry.text
    return [_tag(key, value) for key, value in tags.items()]


def _tag(key: str, value: str) -> dict[str, str]:
    return {"key": _name(key), "value": value[:LONGEST_TAG]}


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub("_", text)[:LONGEST_NAME]


def _number(value: float) -> float | str:
    # JSON has no word for these; the JSON form of protobuf, which MLflow reads, has.
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _open(options: Options) -> MlflowSink:
    assert isinstance(options, MlflowOptions)
    return MlflowSink(options)


MLFLOW = SinkKind("mlflow", MlflowOptions, _open)
