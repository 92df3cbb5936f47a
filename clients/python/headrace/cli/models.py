"""`headrace models …`: the registry."""

from pathlib import Path
from typing import Annotated, cast

import typer

from headrace.cli.ensembles import ensemble
from headrace.cli.plans import plan
from headrace.cli.printing import age, print_fields, print_json, print_table
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, fail, perform
from headrace.cli.story import describe_bytes
from headrace.client import Client
from headrace.model_calls import BackendName, LaneSharingName, PrecisionName
from headrace.models.v1.model_pb2 import Lineage, Model, ModelVersion
from headrace.models.v1.serving_options_pb2 import ServingOptions
from headrace.names import short_name
from headrace.tensors import type_name
from headrace.type.v1.tensor_pb2 import Precision, TensorSpec

models = typer.Typer(name="models", help="List, load, name and move models.", no_args_is_help=True)
alias = typer.Typer(name="alias", help="Names that point to versions.", no_args_is_help=True)
models.add_typer(alias)
models.command()(plan)
models.command()(ensemble)

Name = Annotated[str, typer.Argument(help="The model: digits.", show_default=False)]
AnyName = Annotated[
    str, typer.Argument(help="digits, digits@champion or models/digits/versions/3.", show_default=False)
]
_BACKENDS = ("onnxruntime", "torch")
_LANE_SHARING = ("auto", "own", "shared")
_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


@models.command("list")
def list_(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List models by name."""

    async def work(client: Client) -> None:
        found = await client.list_models()
        if as_json:
            print_json(found)
            return
        rows = (
            (short_name(one.name), one.latest_version.rpartition("/")[2], _aliases(one), age(one.create_time))
            for one in found
        )
        columns = ("MODEL", "NEWEST", "ALIASES", "CREATED")
        print_table(console(), columns, rows, "There are no models; a training, or `headrace models upload`, adds one.")

    perform(server, as_json, work)


@models.command()
def show(name: AnyName, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show one version: what it takes and returns, how good it is, where it comes from."""

    async def work(client: Client) -> None:
        version = await client.get_model_version(name)
        if as_json:
            print_json(version)
        else:
            _print_version(version)

    perform(server, as_json, work)


@models.command()
def versions(name: Name, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List the versions of a model, newest first."""

    async def work(client: Client) -> None:
        found = await client.list_model_versions(name)
        if as_json:
            print_json(found)
            return
        model = await client.get_model(name)
        rows = (
            (
                one.name.rpartition("/")[2],
                ", ".join(sorted(key for key, target in model.aliases.items() if target == one.name)),
                _measures(one),
                short_name(one.lineage.training_job),
                age(one.create_time),
            )
            for one in found
        )
        print_table(console(), ("VERSION", "ALIASES", "MEASURES", "JOB", "REGISTERED"), rows, "There are no versions.")

    perform(server, as_json, work)


@alias.command("set")
def alias_set(
    name: Name,
    alias_name: Annotated[str, typer.Argument(metavar="ALIAS", help='"default" decides what the bare name means.')],
    version: Annotated[str, typer.Argument(help="Its number or full name.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version."""

    async def work(client: Client) -> None:
        _print_aliases(await client.assign_alias(name, alias_name, version), as_json)

    perform(server, as_json, work)


@alias.command("delete")
def alias_delete(
    name: Name,
    alias_name: Annotated[str, typer.Argument(metavar="ALIAS")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Take an alias away."""

    async def work(client: Client) -> None:
        _print_aliases(await client.delete_alias(name, alias_name), as_json)

    perform(server, as_json, work)


@models.command()
def update(
    name: Name,
    precision: Annotated[
        str | None,
        typer.Option(help="auto: the fastest that is within the tolerances, as measured; or fp32, bf16, fp16, int8."),
    ] = None,
    max_relative_error: Annotated[float | None, typer.Option(help="Largest difference from fp32.")] = None,
    min_cosine: Annotated[float | None, typer.Option(help="Smallest cosine to fp32.")] = None,
    min_agreement: Annotated[float | None, typer.Option(help="Smallest share of rows with the same class.")] = None,
    max_metric_loss: Annotated[float | None, typer.Option(help="Largest loss of the recorded measure.")] = None,
    pin: Annotated[bool | None, typer.Option(help="Keep it loaded, however long nobody asks for it.")] = None,
    cache: Annotated[bool | None, typer.Option(help="Give the answer to the same question again.")] = None,
    cache_max_age: Annotated[float | None, typer.Option(help="How old such an answer may be, in seconds.")] = None,
    lanes: Annotated[int | None, typer.Option(help="Threads that run a version, from its next load; 0: any.")] = None,
    lane_sharing: Annotated[
        str | None, typer.Option(help="own: threads of its own run it; shared: those of its device; auto: either.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Change how the versions of a model are served; what is not given stays as it is."""
    if precision is not None and precision not in _PRECISIONS:
        fail(f"--precision must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
    given = {
        "max_relative_error": max_relative_error,
        "min_cosine": min_cosine,
        "min_agreement": min_agreement,
        "max_metric_loss": max_metric_loss,
    }
    tolerances = {key: value for key, value in given.items() if value is not None}
    if lane_sharing is not None and lane_sharing not in _LANE_SHARING:
        fail(f"--lane-sharing must be one of {', '.join(_LANE_SHARING)}, not {lane_sharing!r}")
    if {precision, pin, cache, cache_max_age, lanes, lane_sharing} == {None} and not tolerances:
        fail("give at least one option: there is nothing to change")

    async def work(client: Client) -> None:
        changed = await client.update_model(
            name,
            precision=cast("PrecisionName | None", precision),
            tolerances=tolerances,
            is_pinned=pin,
            cache=cache,
            cache_max_age_seconds=cache_max_age,
            num_lanes=lanes,
            lane_sharing=cast("LaneSharingName | None", lane_sharing),
        )
        if as_json:
            print_json(changed)
        else:
            print_fields(console(), (("model", changed.name), *_serving(changed)))

    perform(server, as_json, work)


@models.command()
def load(
    name: AnyName,
    backend: Annotated[str | None, typer.Option(help=f"{' or '.join(_BACKENDS)}; the server's choice.")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Load a version and warm it up."""
    if backend is not None and backend not in _BACKENDS:
        fail(f"--backend must be one of {', '.join(_BACKENDS)}, not {backend!r}")

    async def work(client: Client) -> None:
        loaded = await client.load_model(name, backend=cast("BackendName | None", backend))
        if as_json:
            print_json(loaded)
        else:
            console().print(f"{loaded.model_version} answers, on {loaded.backend}.")

    perform(server, as_json, work)


@models.command()
def unload(name: AnyName, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Unload a version when the calls it has taken are finished."""

    async def work(client: Client) -> None:
        version = await client.unload_model(name)
        if as_json:
            print_json({"modelVersion": version})
        else:
            console().print(f"{version} is unloaded.")

    perform(server, as_json, work)


@models.command()
def upload(
    name: Name,
    path: Annotated[Path, typer.Argument(help="An ONNX (.onnx) or torch.export (.pt2) file.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Register a file as a new version."""

    async def work(client: Client) -> None:
        version = await client.upload_model(name, path)
        if as_json:
            print_json(version)
        else:
            _print_version(version)

    perform(server, as_json, work)


@models.command()
def download(
    name: AnyName,
    to: Annotated[Path, typer.Argument(help="A path, or an existing folder.")] = Path(),
    artifact: Annotated[str, typer.Option(help="Which file of the version; the first if empty.")] = "",
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Download a file of a version; its digest is checked."""

    async def work(client: Client) -> None:
        path = await client.download_artifact(name, to, artifact=artifact)
        if as_json:
            print_json({"path": str(path)})
        else:
            console().print(f"{path} ({describe_bytes(path.stat().st_size)})")

    perform(server, as_json, work)


def describe_tensor(spec: TensorSpec) -> str:
    """ "x FP32 [any, 64]"."""
    shape = ", ".join("any" if length == -1 else str(length) for length in spec.shape)
    return f"{spec.name} {type_name(spec.data_type)} [{shape}]"


def _aliases(model: Model) -> str:
    return ", ".join(f"{name} → {target.rpartition('/')[2]}" for name, target in sorted(model.aliases.items()))


def _print_aliases(model: Model, as_json: bool) -> None:
    if as_json:
        print_json(model)
    else:
        console().print(f"{model.name}: {_aliases(model) or 'no aliases'}")


def _serving(model: Model) -> tuple[tuple[str, str], ...]:
    policy, bounds = model.serving.precision, model.serving.precision.tolerances
    tolerances = (
        f"relative error {bounds.max_relative_error:g}, cosine {bounds.min_cosine:g}, "
        f"agreement {bounds.min_agreement:g}, loss of the measure {bounds.max_metric_loss:g}"
    )
    precision = "the server's choice" if not policy.precision else Precision.Name(policy.precision)[10:].lower()
    return (
        ("precision", precision),
        ("tolerances", tolerances),
        ("pinned", "yes" if model.serving.is_pinned else "no"),
        ("cache", "on" if model.serving.cache.is_enabled else "off"),
        ("lanes", _lanes(model.serving)),
    )


def _lanes(serving: ServingOptions) -> str:
    if serving.lane_sharing == ServingOptions.LANE_SHARING_SHARED:
        return "shared with other models"
    number = str(serving.num_lanes or "the server's choice")
    return f"{number}, its own" if serving.lane_sharing == ServingOptions.LANE_SHARING_OWN else number


def _measures(version: ModelVersion) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(version.metrics.items()))


def _seed(lineage: Lineage) -> str:
    if not lineage.HasField("seed"):
        return ""
    return f"{lineage.seed}{', deterministic' if lineage.deterministic else ''}"


def _print_version(version: ModelVersion) -> None:
    lineage = version.lineage
    print_fields(
        console(),
        (
            ("version", version.name),
            ("takes", "; ".join(map(describe_tensor, version.inputs))),
            ("returns", "; ".join(map(describe_tensor, version.outputs))),
            ("classes", ", ".join(next((one.class_names for one in version.outputs if one.class_names), ()))),
            ("measures", _measures(version)),
            ("files", ", ".join(f"{one.path} ({describe_bytes(one.size_bytes)})" for one in version.artifacts)),
            ("trained by", lineage.training_job),
            ("on", lineage.dataset_version),
            ("checkpoint", f"step {lineage.step:,}" if lineage.step else ""),
            ("data", lineage.dataset_digest),
            ("seed", _seed(lineage)),
            ("began with", " ".join(filter(None, (lineage.start_from, lineage.start_from_digest)))),
            ("code", lineage.code_version),
            ("environment", "  ".join(f"{name} {value}" for name, value in sorted(lineage.environment.items()))),
            ("registered", age(version.create_time)),
        ),
    )
