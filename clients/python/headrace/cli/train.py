"""`headrace train …`: start a training from flags or from a file."""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from headrace.cli.jobs import follow_to_the_end
from headrace.cli.printing import print_json
from headrace.cli.session import DEFAULT_SERVER, AsJson, Server, console, fail, perform
from headrace.client import Client
from headrace.spec import Trainer, plugin, spec_from_json, training_spec
from headrace.training.v1.training_spec_pb2 import (
    AdamW,
    Augmentation,
    ConstantSchedule,
    CosineSchedule,
    EarlyStopping,
    Evaluation,
    ImageClassificationTrainer,
    LinearSchedule,
    MovingAverage,
    Numerics,
    Sgd,
    StepDecaySchedule,
    TabularTrainer,
    TrainingSpec,
)

train = typer.Typer(name="train", help="Start a training.", rich_markup_mode="rich")

_RECIPE = "How to train"
_CHOICES = {
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "device": ("auto", "cpu", "gpu"),
    "compilation": ("auto", "never", "always"),
    "graphs": ("auto", "never", "always"),
    "strategy": ("data_parallel", "fully_sharded"),
}
_SCHEDULES = {
    "constant": ConstantSchedule,
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "step_decay": StepDecaySchedule,
}
_ACTIONS = ("stop", "skip", "lower_rate")


@train.callback(invoke_without_command=True)
def from_file(
    context: typer.Context,
    spec: Annotated[
        Path | None,
        typer.Option(help="A specification as JSON, in the contract's form (TrainingSpec); - reads standard input."),
    ] = None,
    job_id: Annotated[str, typer.Option(help="The last part of the job's name; chosen by the server if empty.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it ends.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check everything, start nothing.")] = False,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Start a training: by kind (image, tabular, plugin), or from a file with --spec."""
    if context.invoked_subcommand is not None:
        if spec is not None:
            fail("--spec says everything; leave out what stands after it")
        return
    if spec is None:
        typer.echo(context.get_help())
        raise typer.Exit
    try:
        text = sys.stdin.read() if str(spec) == "-" else spec.read_text(encoding="utf-8")
        tree = spec_from_json(json.loads(text))
    except OSError as error:
        fail(f"{spec}: {error.strerror}")
    except ValueError as error:
        fail(f"{spec}: {error}")
    _start(server, as_json, tree, job_id=job_id, follow=follow, validate_only=validate_only)


def _recipe(
    dataset: Annotated[str, typer.Option(help="What to train on: digits, or datasets/digits/versions/….")],
    model: Annotated[str, typer.Option(help="The model that the result becomes a version of.")],
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.", rich_help_panel=_RECIPE)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of --epochs.", rich_help_panel=_RECIPE)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.", rich_help_panel=_RECIPE)] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.", rich_help_panel=_RECIPE)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak rate.", rich_help_panel=_RECIPE)] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, cosine, linear or step_decay.", rich_help_panel=_RECIPE)
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps in which the rate rises.", rich_help_panel=_RECIPE)
    ] = None,
    micro_batches: Annotated[
        int | None, typer.Option(help="Parts that a step is computed in.", rich_help_panel=_RECIPE)
    ] = None,
    split_to_fit: Annotated[
        bool, typer.Option("--split-to-fit", help="In as many as the memory demands.", rich_help_panel=_RECIPE)
    ] = False,
    max_gradient_norm: Annotated[
        float | None, typer.Option(help="Scale larger gradients down to it.", rich_help_panel=_RECIPE)
    ] = None,
    average_decay: Annotated[
        float | None, typer.Option(help="Evaluate and export averaged weights.", rich_help_panel=_RECIPE)
    ] = None,
    on_non_finite: Annotated[
        str | None, typer.Option(help="stop, skip or lower_rate, for NaN and infinity.", rich_help_panel=_RECIPE)
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits each time.", rich_help_panel=_RECIPE)
    ] = False,
    compilation: Annotated[str | None, typer.Option(help="auto, never or always.", rich_help_panel=_RECIPE)] = None,
    graphs: Annotated[
        str | None, typer.Option(help="auto, never or always: CUDA graphs.", rich_help_panel=_RECIPE)
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="data_parallel or fully_sharded, for many ranks.", rich_help_panel=_RECIPE)
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16, fp16.", rich_help_panel=_RECIPE)] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the training repeatable.", rich_help_panel=_RECIPE)] = None,
    holdout: Annotated[float | None, typer.Option(help="Share of rows held out.", rich_help_panel=_RECIPE)] = None,
    metric: Annotated[str | None, typer.Option(help="Decides which weights are best.", rich_help_panel=_RECIPE)] = None,
    patience: Annotated[
        int | None, typer.Option(help="Evaluations without improvement that end it.", rich_help_panel=_RECIPE)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or gpu.", rich_help_panel=_RECIPE)] = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first.", rich_help_panel=_RECIPE)] = None,
    ranks: Annotated[int | None, typer.Option(help="Processes that train together.", rich_help_panel=_RECIPE)] = None,
    start_from: Annotated[
        str | None,
        typer.Option(help="Weights to begin with: models/… or trainingJobs/….", rich_help_panel=_RECIPE),
    ] = None,
    preemptible: Annotated[
        bool | None,
        typer.Option("--preemptible", help="Give way to jobs of higher priority.", rich_help_panel=_RECIPE),
    ] = None,
    job_id: Annotated[str, typer.Option(help="The last part of the job's name; chosen by the server if empty.")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A word of yours; repeatable.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it ends.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check everything, start nothing.")] = False,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Hold the flags that every kind of training has."""
    raise AssertionError("only the signature of this function is used")


def _kind(make_trainer: Callable[..., Trainer]) -> Callable[..., None]:
    """A command with the flags of `make_trainer` and those of `_recipe`, in one signature for typer to read."""
    own, shared = inspect.signature(make_trainer), inspect.signature(_recipe)

    def command(**flags: Any) -> None:
        trainer = make_trainer(**{name: flags.pop(name) for name in own.parameters})
        run = {name: flags.pop(name) for name in ("server", "as_json", "job_id", "follow", "validate_only")}
        labels = dict(_pair(text, "--label") for text in flags.pop("label") or [])
        spec = training_spec(trainer=trainer, **cast("Any", _spec_keywords(flags)))
        _start(run.pop("server"), run.pop("as_json"), spec, labels=labels, **run)

    required = [one for one in shared.parameters.values() if one.default is one.empty]
    optional = [one for one in shared.parameters.values() if one.default is not one.empty]
    parameters = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*required, *own.parameters.values(), *optional)
    ]
    signature = inspect.Signature(parameters)
    command.__name__, command.__doc__ = make_trainer.__name__, make_trainer.__doc__
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__signature__ = signature  # type: ignore[attr-defined]  # functions may have one
    return command


@train.command("image")
@_kind
def _image(
    image_size: Annotated[int | None, typer.Option(help="Scale images to this height and width.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels after the first layer.")] = None,
    blocks: Annotated[int | None, typer.Option(help="Residual blocks at each size.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the images in training.")] = False,
    images: Annotated[str, typer.Option(help="The array of images, for data sets of arrays.")] = "",
    labels: Annotated[str, typer.Option(help="The array of classes, for data sets of arrays.")] = "",
    label_smoothing: Annotated[float | None, typer.Option(help="Certainty given to all classes alike.")] = None,
) -> Trainer:
    """Train a convolutional network over images."""
    return ImageClassificationTrainer(
        image_size=image_size,
        width=width,
        blocks_per_stage=blocks,
        augmentation=Augmentation(flip=True) if flip else None,
        images=images,
        labels=labels,
        label_smoothing=label_smoothing,
    )


@train.command("tabular")
@_kind
def _tabular(
    target: Annotated[str, typer.Option(help="The column to predict.")] = "",
    feature: Annotated[list[str] | None, typer.Option(help="A column to learn from; repeatable; all if none.")] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression; told by the target.")] = None,
    hidden: Annotated[str, typer.Option(metavar="128,128", help="The width of each hidden layer.")] = "",
    dropout: Annotated[float | None, typer.Option(help="The share of activations dropped.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Certainty given to all classes alike.")] = None,
) -> Trainer:
    """Train a network over the columns of a table."""
    if task not in (None, "classification", "regression"):
        fail("--task must be classification or regression")
    try:
        widths = [int(part) for part in hidden.split(",")] if hidden else []
    except ValueError:
        fail(f"--hidden {hidden!r} is not a list of numbers such as 128,128")
    return TabularTrainer(
        target=target,
        features=feature or [],
        task=TabularTrainer.Task.Value(f"TASK_{task.upper()}" if task else "TASK_UNSPECIFIED"),
        hidden_widths=widths,
        dropout=dropout,
        label_smoothing=label_smoothing,
    )


@train.command("plugin")
@_kind
def _plugin(
    name: Annotated[str, typer.Option(help="Its name in `headrace trainers`.")] = "",
    parameter: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter; the value is JSON, or text.")
    ] = None,
) -> Trainer:
    """Train with a trainer that somebody installed beside the server."""
    pairs = (_pair(text, "--set") for text in parameter or [])
    return plugin(name, **{key: _value(text) for key, text in pairs})


def _spec_keywords(flags: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `training_spec` for the flags that were given."""
    flags = {name: value for name, value in flags.items() if value is not None}
    keywords: dict[str, Any] = {
        name: flags[name]
        for name in (
            "dataset", "model", "epochs", "steps", "batch_size", "micro_batches", "split_to_fit", "max_gradient_norm",
            "deterministic", "seed", "priority", "preemptible", "ranks", "start_from",
        )
        if name in flags
    }  # fmt: skip
    if "epochs" in flags and "steps" in flags:
        fail("give --epochs or --steps, not both")
    for name, known in _CHOICES.items():
        if name in flags:
            keywords[name] = _one_of(f"--{name}", flags[name], known)
    return keywords | _policy_keywords(flags)


def _policy_keywords(flags: dict[str, Any]) -> dict[str, Any]:
    """Those keywords whose values are messages of their own."""
    keywords: dict[str, Any] = {}
    if "optimizer" in flags or "learning_rate" in flags:
        kind = _one_of("--optimizer", flags.get("optimizer", "adamw"), ("adamw", "sgd"))
        keywords["optimizer"] = (AdamW if kind == "adamw" else Sgd)(learning_rate=flags.get("learning_rate"))
    if "schedule" in flags or "warmup" in flags:
        schedule = _one_of("--schedule", flags.get("schedule", "cosine"), tuple(_SCHEDULES))
        keywords["schedule"] = _SCHEDULES[schedule](warmup_fraction=flags.get("warmup"))
    if "average_decay" in flags:
        keywords["moving_average"] = MovingAverage(decay=flags["average_decay"])
    if "on_non_finite" in flags:
        action = _one_of("--on-non-finite", flags["on_non_finite"], _ACTIONS)
        keywords["numerics"] = Numerics(on_non_finite=Numerics.Action.Value(f"ACTION_{action.upper()}"))
    if "holdout" in flags or "metric" in flags:
        keywords["evaluation"] = Evaluation(holdout_fraction=flags.get("holdout"), metric=flags.get("metric", ""))
    if "patience" in flags:
        keywords["early_stopping"] = EarlyStopping(patience=flags["patience"])
    return keywords


def _start(
    server: str,
    as_json: bool,
    spec: TrainingSpec,
    *,
    job_id: str,
    follow: bool,
    validate_only: bool,
    labels: dict[str, str] | None = None,
) -> None:
    async def work(client: Client) -> None:
        run = await client.start_training(spec, job_id=job_id, labels=labels, validate_only=validate_only)
        if follow and not validate_only:
            await follow_to_the_end(run, server, as_json)
        elif as_json:
            print_json(run.job)
        elif validate_only:
            console().print("Everything is in order; nothing was started.", style="green")
        else:
            console().print(f"Started [bold]{run.name}[/].  Watch it with: headrace watch {run.name.partition('/')[2]}")

    perform(server, as_json, work)


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        fail(f"{flag} {text!r} is not KEY=VALUE")
    return key, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        fail(f"{flag} must be one of {', '.join(known)}, not {value!r}")
    return value
