"""Training specifications from keywords: `training_spec(dataset="digits", model="digits", trainer=…, epochs=20)`.

Checks nothing that the server checks: it answers with every violation at once, and its rules may be newer than ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

from google.protobuf.json_format import ParseDict

from headrace.names import dataset_name, model_name
from headrace.training.v1.training_spec_pb2 import (
    AdamW,
    CheckpointPolicy,
    ConstantSchedule,
    CosineSchedule,
    EarlyStopping,
    Evaluation,
    ImageClassificationTrainer,
    LinearSchedule,
    MovingAverage,
    Numerics,
    Optimizer,
    Placement,
    PluginTrainer,
    Resources,
    Schedule,
    Sgd,
    StartFrom,
    StepDecaySchedule,
    TabularTrainer,
    TrainingSpec,
)
from headrace.type.v1.tensor_pb2 import Precision

Trainer: TypeAlias = TabularTrainer | ImageClassificationTrainer | PluginTrainer
PrecisionName: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
DeviceName: TypeAlias = Literal["auto", "cpu", "gpu"]
GraphsName: TypeAlias = Literal["auto", "never", "always"]
CompilationName: TypeAlias = Literal["auto", "never", "always"]
StrategyName: TypeAlias = Literal["data_parallel", "fully_sharded"]


class SpecKeywords(TypedDict, total=False):
    """What `training_spec` and `Client.start_training` take; what is left out has the server's default."""

    dataset: str
    """Required: "digits", "datasets/digits" or one version of it."""
    model: str
    """Required: the model that the result becomes a version of: "digits" or "models/digits"."""
    trainer: Trainer
    """Required: TabularTrainer(target="species"), ImageClassificationTrainer(), plugin("name", depth=3)."""
    epochs: int
    """Passes over the training rows; leave out when `steps` is given."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    micro_batches: int
    """How many parts a step's rows are computed in, one after another."""
    split_to_fit: bool
    """Compute in as many parts as the memory demands."""
    optimizer: AdamW | Sgd
    schedule: ConstantSchedule | CosineSchedule | LinearSchedule | StepDecaySchedule
    max_gradient_norm: float
    """Gradients are scaled down to it."""
    moving_average: MovingAverage
    """MovingAverage(decay=0.999): evaluates and exports averaged weights."""
    numerics: Numerics
    """For example Numerics(on_non_finite=Numerics.ACTION_SKIP)."""
    precision: PrecisionName
    deterministic: bool
    """The same bits each time, on the same machine."""
    compilation: CompilationName
    graphs: GraphsName
    """Whether micro-batches are recorded as CUDA graphs."""
    channels_last: bool
    synchronize_batch_norm: bool
    """Whether batch normalisation takes its statistics over the rows of all ranks."""
    strategy: StrategyName
    """What each of several ranks holds."""
    seed: int
    evaluation: Evaluation
    """For example Evaluation(holdout_fraction=0.1, metric="loss")."""
    early_stopping: EarlyStopping
    """For example EarlyStopping(patience=5)."""
    checkpoint_period: timedelta
    """Besides a checkpoint after each evaluation."""
    keep_last: int
    """How many of the newest checkpoints are kept."""
    keep_best: int
    """How many of those that were the best when they were evaluated are kept."""
    start_from: str
    """Weights to begin with: "models/digits@champion", "trainingJobs/first" or "trainingJobs/first@best"."""
    device: DeviceName
    cpu_threads: int
    ranks: int
    """Processes that train together; on a GPU each has one of its own."""
    placement: Placement
    """For example Placement(mode=Placement.Mode.MODE_YIELD), which lets predictions go first."""
    priority: int
    """Higher goes first among waiting jobs, -100 to 100."""
    preemptible: bool
    """Whether a waiting job of higher priority may take its place; it goes on later, exactly where it was."""
    max_restarts: int
    """How often a lost worker is replaced."""


def training_spec(**keywords: Unpack[SpecKeywords]) -> TrainingSpec:
    """The contract's message for these keywords.  Raises TypeError for unknown ones and for both epochs and steps."""
    unknown = keywords.keys() - SpecKeywords.__annotations__.keys()
    if unknown:
        known = ", ".join(SpecKeywords.__annotations__)
        raise TypeError(f"{', '.join(sorted(unknown))}: not a part of a specification; these are: {known}")
    if "epochs" in keywords and "steps" in keywords:
        raise TypeError("give epochs or steps, not both")
    spec = TrainingSpec(
        dataset=dataset_name(keywords.get("dataset", "")),
        model=model_name(keywords.get("model", "")),
        batch_size=keywords.get("batch_size"),
        micro_batches=keywords.get("micro_batches"),
        split_to_fit=keywords.get("split_to_fit", False),
        max_gradient_norm=keywords.get("max_gradient_norm"),
        moving_average=keywords.get("moving_average"),
        numerics=keywords.get("numerics"),
        deterministic=keywords.get("deterministic", False),
        channels_last=keywords.get("channels_last"),
        synchronize_batch_norm=keywords.get("synchronize_batch_norm"),
        seed=keywords.get("seed"),
        evaluation=keywords.get("evaluation"),
        early_stopping=keywords.get("early_stopping"),
        max_restarts=keywords.get("max_restarts"),
    )
    if "epochs" in keywords:
        spec.epochs = keywords["epochs"]
    if "steps" in keywords:
        spec.steps = keywords["steps"]
    if (trainer := keywords.get("trainer")) is not None:
        _set_trainer(spec, trainer)
    _set_arithmetic(spec, keywords)
    _set_resources(spec, keywords)
    _set_checkpoints(spec, keywords)
    return spec


def plugin(name: str, /, **parameters: Any) -> PluginTrainer:
    """A trainer that somebody installed beside the server, by its name in `Client.list_trainers`."""
    trainer = PluginTrainer(name=name)
    trainer.parameters.update(parameters)
    return trainer


def spec_from_json(tree: Mapping[str, Any]) -> TrainingSpec:
    """A specification from parsed JSON in the contract's own form (protobuf's JSON mapping).

    Raises ValueError, which names the field, for what the contract does not have.
    """
    try:
        return ParseDict(dict(tree), TrainingSpec())
    except Exception as error:
        # ParseDict raises ParseError, and bare TypeError or ValueError for some values.
        raise ValueError(f"not a training specification: {error}") from error


def _set_trainer(spec: TrainingSpec, trainer: Trainer) -> None:
    match trainer:
        case TabularTrainer():
            spec.tabular.CopyFrom(trainer)
        case ImageClassificationTrainer():
            spec.image_classification.CopyFrom(trainer)
        case PluginTrainer():
            spec.plugin.CopyFrom(trainer)
        case _:
            raise TypeError(
                f"trainer: {type(trainer).__name__} is not a trainer; plugin(name, …) makes one of any name"
            )


def _set_arithmetic(spec: TrainingSpec, keywords: SpecKeywords) -> None:
    match keywords.get("optimizer"):
        case AdamW() as adamw:
            spec.optimizer.CopyFrom(Optimizer(adamw=adamw))
        case Sgd() as sgd:
            spec.optimizer.CopyFrom(Optimizer(sgd=sgd))
        case None:
            pass
        case other:
            raise TypeError(f"optimizer: {type(other).__name__} is neither AdamW nor Sgd")
    if (schedule := keywords.get("schedule")) is not None:
        spec.schedule.CopyFrom(_schedule(schedule))
    if (precision := keywords.get("precision")) is not None:
        spec.precision = Precision.Value(f"PRECISION_{precision.upper()}")
    if (compilation := keywords.get("compilation", "auto")) != "auto":
        spec.compilation = TrainingSpec.Compilation.Value(f"COMPILATION_{compilation.upper()}")
    if (graphs := keywords.get("graphs", "auto")) != "auto":
        spec.graphs = TrainingSpec.Graphs.Value(f"GRAPHS_{graphs.upper()}")
    if (strategy := keywords.get("strategy")) is not None:
        spec.strategy = TrainingSpec.Strategy.Value(f"STRATEGY_{strategy.upper()}")


def _schedule(schedule: ConstantSchedule | CosineSchedule | LinearSchedule | StepDecaySchedule) -> Schedule:
    match schedule:
        case ConstantSchedule():
            return Schedule(constant=schedule)
        case CosineSchedule():
            return Schedule(cosine=schedule)
        case LinearSchedule():
            return Schedule(linear=schedule)
        case StepDecaySchedule():
            return Schedule(step_decay=schedule)
        case _:
            raise TypeError(f"schedule: {type(schedule).__name__} is not a schedule such as CosineSchedule")


def _set_checkpoints(spec: TrainingSpec, keywords: SpecKeywords) -> None:
    if keywords.keys() & {"checkpoint_period", "keep_last", "keep_best"}:
        policy = CheckpointPolicy(keep_last=keywords.get("keep_last"), keep_best=keywords.get("keep_best"))
        if (period := keywords.get("checkpoint_period")) is not None:
            policy.period.FromTimedelta(period)
        spec.checkpoints.CopyFrom(policy)
    if start := keywords.get("start_from", ""):
        spec.start_from.CopyFrom(
            StartFrom(training_job=start) if start.startswith("trainingJobs/") else StartFrom(model=model_name(start))
        )


def _set_resources(spec: TrainingSpec, keywords: SpecKeywords) -> None:
    if not keywords.keys() & {"device", "cpu_threads", "ranks", "placement", "priority", "preemptible"}:
        return
    device = keywords.get("device", "auto")
    spec.resources.CopyFrom(
        Resources(
            device=Resources.Device.DEVICE_UNSPECIFIED
            if device == "auto"
            else Resources.Device.Value(f"DEVICE_{device.upper()}"),
            cpu_threads=keywords.get("cpu_threads"),
            ranks=keywords.get("ranks"),
            placement=keywords.get("placement"),
            priority=keywords.get("priority", 0),
            preemptible=keywords.get("preemptible", False),
        )
    )
