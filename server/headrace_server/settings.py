"""Every setting of the server: one typed, frozen tree, and where each value came from.

Later sources win: defaults, then a TOML file, then the environment (`HEADRACE_TRAINING__QUEUE_LIMIT=10`), then the
command line (`--set training.queue_limit=10`).  An unknown key in any of them is an error that names it.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrace_server.errors import CannotStart

MIB = 1 << 20
GIB = 1 << 30

CLIENT_VARIABLES = frozenset(
    {"HEADRACE_SERVER", "HEADRACE_TLS", "HEADRACE_TLS_CA", "HEADRACE_TLS_CERTIFICATE", "HEADRACE_TLS_KEY"}
)
"""What the command line of the client reads from the same environment; not a setting of the server."""

_PREFIX = "HEADRACE_"
# What Kubernetes puts into every pod beside a Service that is called "headrace".
_SERVICE_LINK = re.compile(
    r"HEADRACE_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_PASSWORD = re.compile(r"(?<=:)[^:/@]*(?=@)")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class ServerSettings(_Section):
    """The public port."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 lets the system choose one.")
    door: Literal["auto", "native", "grpc_aio"] = Field(
        "auto", description="Who holds the port: the native door (auto: where it was built), or grpc.aio alone."
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with the server's certificate; read again when it changes.  None: no TLS."
    )
    tls_key: Path | None = Field(None, description="PEM file with its key.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the authority whose certificates callers must show.  None: they need none."
    )
    max_message_bytes: int = Field(
        64 * MIB, ge=2 * MIB, description="Largest message in either direction; files travel in pieces of 1 MiB."
    )
    max_buffered_bytes: int = Field(
        GIB, ge=16 * MIB, description="What may wait in the native door to be read; beyond it calls are cancelled."
    )
    max_concurrent_calls: int = Field(8192, ge=1, description="Calls under way, streams included; more are refused.")
    drain_seconds: float = Field(30, ge=0, description="How long calls in flight may take to finish on shutdown.")
    pre_stop_seconds: float = Field(
        0, ge=0, description="Wait between readiness turning false and refusing calls, for load balancers to notice."
    )
    heartbeat_seconds: float = Field(15, gt=0, description="Period of heartbeats on quiet streams.")


class DatabaseSettings(_Section):
    """Where jobs, journals, data sets and models are recorded."""

    url: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data folder.")


class SinkSettings(_Section):
    """One place outside the house that keeps the figures of trainings too."""

    kind: str = Field(min_length=1, description="mlflow, tensorboard, or one of an installed package.")
    name: str = Field("", max_length=63, description="What it is called here; its kind when empty.")
    options: dict[str, Any] = Field({}, description="As its kind has them; see docs/training.md.")
    period_seconds: float = Field(1, ge=0, le=3600, description="What comes within so long is told together.")
    batch_entries: int = Field(500, ge=1, le=10_000, description="Most entries that are told together.")
    deadline_seconds: float = Field(30, gt=0, le=3600, description="How long one call may take.")

    @model_validator(mode="before")
    @classmethod
    def _name_after_its_kind(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("name"):
            return {**given, "name": given.get("kind", "")}
        return given


class TrainingSettings(_Section):
    """Jobs and their workers."""

    queue_limit: int = Field(1000, ge=1, description="Jobs that may wait; more are refused with QUEUE_FULL.")
    max_running_jobs: int = Field(1, ge=1, description="Jobs that train at the same time.")
    preemption: bool = Field(
        True, description="Whether waiting jobs may take the place of preemptible ones of lower priority."
    )
    heartbeat_seconds: float = Field(1, gt=0, description="Period of a worker's sign of life.")
    lease_seconds: float = Field(4, gt=0, description="A worker that is silent this long is replaced.")
    attach_seconds: float = Field(60, gt=0, description="How long a new worker may take to attach.")
    cancel_grace_seconds: float = Field(20, ge=0, description="How long a graceful end may take before a kill.")
    store_patience_seconds: float = Field(
        600, gt=0, description="How long the store may refuse a worker before its job fails."
    )
    restart_backoff_seconds: float = Field(
        0.5, ge=0, description="Wait before the first replacement; doubles, to 30 s."
    )
    warm_workers: int = Field(
        1, ge=0, le=64, description="Workers kept ready for the next job once there was a first; 0: none."
    )
    warm_seconds: float = Field(600, gt=0, description="How long after the last job began they are kept.")
    on_shutdown: Literal["suspend", "detach"] = Field(
        "suspend",
        description="On shutdown, workers checkpoint and end (suspend) or train on and re-attach later (detach).",
    )
    detached_seconds: float = Field(600, gt=0, description="How long a worker trains on with no server to report to.")
    keep_events: int = Field(100_000, ge=100, description="Events kept of each job; the oldest go first.")
    keep_log_lines: int = Field(20_000, ge=100, description="Log lines kept of each job; the oldest go first.")
    sinks: tuple[SinkSettings, ...] = Field(
        (), description="Trackers of experiments that follow all trainings: MLflow, TensorBoard."
    )

    @field_validator("sinks")
    @classmethod
    def _names_differ(cls, sinks: tuple[SinkSettings, ...]) -> tuple[SinkSettings, ...]:
        names = [sink.name for sink in sinks]
        if len({*names}) < len(names):
            raise ValueError("two sinks have the same name: give them different ones")
        return sinks


class DatasetSettings(_Section):
    """What may be stored as a data set."""

    roots: tuple[Path, ...] = Field((), description="Folders below which RegisterDataset may read; none when empty.")
    max_upload_bytes: int = Field(4 * GIB, ge=1, description="Largest content of one version.")
    max_unpacked_bytes: int = Field(16 * GIB, ge=1, description="Most that an archive may unpack to.")
    max_archive_entries: int = Field(1_000_000, ge=1, description="Most files in an archive.")


class ModelSettings(_Section):
    """What is served."""

    max_upload_bytes: int = Field(4 * GIB, ge=1, description="Largest model file.")
    accept_torch_uploads: bool = Field(
        False,
        description="Take torch.export files from callers.  Loading one can run code of its author: trust them first.",
    )
    serve: dict[str, Path] = Field({}, description="Models to register and load at start: name = file or folder.")


class InferenceSettings(_Section):
    """How predictions are batched and bounded."""

    max_batch_rows: int = Field(64, ge=1, description="Most rows computed together.")
    max_batch_bytes: int = Field(64 * MIB, ge=1, description="Most input bytes computed together.")
    max_delay_seconds: float = Field(0, ge=0, le=10, description="How long a batch may wait for company; 0: never.")
    max_waiting_rows: int = Field(4096, ge=1, description="Rows that may wait for one model; more are refused.")
    max_waiting_bytes: int = Field(256 * MIB, ge=1, description="Input bytes that may wait for one model.")
    max_loaded_versions: int = Field(16, ge=1, description="Versions kept loaded; the least recently used leave.")
    stream_window: int = Field(64, ge=1, description="Requests of one PredictStream that may be under way.")
    lanes_per_model: int = Field(1, ge=1, le=64, description="Threads that run one model.")
    lane_sharing: Literal["auto", "own", "shared"] = Field(
        "auto", description="Whose threads run models: their own (auto: on processors), or a device's (auto: on GPUs)."
    )
    lanes_per_device: int = Field(1, ge=1, le=64, description="Threads that models of one device share, where they do.")
    threads_per_lane: int = Field(1, ge=1, le=256, description="Threads inside one run of a model.")
    default_precision: Literal["fp32", "auto", "bf16", "fp16", "int8"] = Field(
        "fp32", description="How models run whose owner has not said: fp32 is the registered program as it is."
    )
    measure_seconds: float = Field(
        600, gt=0, description="How long measuring the ways to run one version may take; it happens in the background."
    )
    memory_bytes: int = Field(
        0, ge=0, description="Memory that loaded versions may take together; 0: what the machine has left."
    )
    copies_bytes: int = Field(
        4096 * MIB, ge=0, description="Disk for optimised copies of ONNX programs, which load sooner; 0: none is made."
    )
    cache_bytes: int = Field(64 * MIB, ge=0, description="Answers kept in memory for models whose cache is on.")
    cache_entry_bytes: int = Field(MIB, ge=1, description="Largest answer that is kept.")
    cache_redis_url: str = Field(
        "", description="Redis to keep answers in as well, as redis://host:6379/0; empty: memory alone."
    )
    cache_redis_timeout_seconds: float = Field(0.05, gt=0, description="What a prediction waits for Redis at most.")
    cache_redis_seconds: float = Field(3600, gt=0, description="How long Redis keeps an answer.")
    load_seconds: float = Field(120, gt=0, description="How long loading one version may take.")


class TelemetrySettings(_Section):
    """Logs and metrics."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is written.")
    log_format: Literal["json", "console"] = Field("json", description="One JSON object a line, or text for people.")
    metrics_host: str = Field("127.0.0.1", description="Address of the Prometheus endpoint.")
    metrics_port: int = Field(9464, ge=-1, le=65535, description="Its port; 0 lets the system choose, -1 turns it off.")
    trace_endpoint: str = Field(
        "", description="Where spans of calls are sent (OTLP over gRPC), such as http://127.0.0.1:4317; empty: nowhere."
    )
    trace_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of calls that are traced; callers who send a traceparent decide that.",
    )


class Settings(_Section):
    """Every setting of the server."""

    data: Path = Field(Path(".headrace"), description="The folder that holds everything the server keeps.")
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    training: TrainingSettings = TrainingSettings()
    datasets: DatasetSettings = DatasetSettings()
    models: ModelSettings = ModelSettings()
    inference: InferenceSettings = InferenceSettings()
    telemetry: TelemetrySettings = TelemetrySettings()


@dataclass(frozen=True, slots=True)
class Setting:
    """One value with its origin, for people."""

    key: str
    value: Any
    source: str
    """"default", the path of the file, "HEADRACE_…", or "command line"."""
    description: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings and where each came from."""

    settings: Settings
    sources: Mapping[str, str]
    """By dotted key; keys that are not here have their default."""

    def explain(self) -> list[Setting]:
        """Every setting in the order of the tree, without passwords."""
        return [
            Setting(key, _shown(value), self.sources.get(key, "default"), description)
            for key, value, description in _leaves(self.settings)
        ]


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    argv: Mapping[str, Any] | None = None,
) -> Loaded:
    """Merge all sources.  `argv` maps dotted keys to values, text or typed.

    Raises CannotStart, which names every key that is unknown or has a bad value, and its source.
    """
    sources: dict[str, str] = {}
    tree: dict[str, Any] = {}
    if file is not None:
        for key, value in _flatten(_read_file(file)):
            _place(tree, sources, key, value, str(file))
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(_PREFIX) and name not in CLIENT_VARIABLES and not _SERVICE_LINK.fullmatch(name):
            key = name.removeprefix(_PREFIX).lower().replace("__", ".")
            _place(tree, sources, key, _parse(key, text), name)
    for key, value in (argv or {}).items():
        _place(tree, sources, key, _parse(key, value) if isinstance(value, str) else value, "command line")
    try:
        return Loaded(Settings.model_validate(tree), sources)
    except ValidationError as error:
        raise CannotStart(_describe(error, sources)) from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotStart(f"the configuration file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CannotStart(f"the configuration file {file} is not TOML: {error}") from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and dotted != "models.serve":
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _place(tree: dict[str, Any], sources: dict[str, str], key: str, value: Any, source: str) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise CannotStart(f"unknown setting {key} (from {source})")
        tree = branch
    tree[leaf] = value
    for replaced in [known for known in sources if known.startswith(f"{key}.")]:
        del sources[replaced]
    sources[key] = source


def _parse(key: str, text: str) -> Any:
    """Read what is no single value from text: folders separated as in PATH, a table `name=path,…`, JSON."""
    if key == "models.serve":
        return _parse_pairs(text)
    if key == "datasets.roots":
        return [part for part in text.split(os.pathsep) if part]
    if key == "training.sinks":
        return _parse_json(key, text)
    return text


def _parse_json(key: str, text: str) -> Any:
    try:
        return json.loads(text) if text.strip() else []
    except ValueError as error:
        raise CannotStart(f"{key}: {text[:200]!r} is not JSON: {error}") from error


def _parse_pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in text.split(",") if text.strip() else ():
        name, _, path = (piece.strip() for piece in part.partition("="))
        if not name or not path:
            raise CannotStart(f"models.serve: {part!r} is not NAME=PATH")
        if name in pairs:
            raise CannotStart(f"models.serve: {name!r} is given twice")
        pairs[name] = path
    return pairs


def _shown(value: Any) -> Any:
    """A value for people: without passwords, and tables as plain ones."""
    if isinstance(value, BaseModel):
        return _shown(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {key: _shown(one) for key, one in value.items()}
    if isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
        return [_shown(one) for one in value]
    return _without_password(value)


def _without_password(value: Any) -> Any:
    return _PASSWORD.sub("…", value, count=1) if isinstance(value, str) and "://" in value else value


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, _Section):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field.description or ""


def _describe(error: ValidationError, sources: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        about = {known: source for known, source in sources.items() if _is_about(key, known)}
        if problem["type"] == "extra_forbidden":
            lines += [f"unknown setting {max(key, known, key=len)} (from {source})" for known, source in about.items()]
        else:
            lines.append(f"{key} = {problem['input']!r} (from {', '.join(about.values())}): {problem['msg']}")
    return "\n".join(lines)


def _is_about(key: str, known: str) -> bool:
    """Whether one is the other, or lies in it."""
    return f"{key}.".startswith(f"{known}.") or known.startswith(f"{key}.")


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Read `--set key=value` arguments.  Raises CannotStart for one without an equals sign."""
    values: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise CannotStart(f"--set {assignment!r} is not KEY=VALUE")
        values[key.strip()] = value
    return values
