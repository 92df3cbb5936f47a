"""Training requests and jobs, between the contract's messages and the house's values.

A request becomes a draft that holds only what was set: defaults and ranges are the house's own, and admission fills in
and checks.  A job shows its specification whole, defaults included.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from headrace.training.v1 import training_job_pb2 as job_pb, training_service_pb2 as pb, training_spec_pb2 as spec_pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import InvalidSpec, Violation
from headrace_server.precision import Precision
from headrace_server.rpc.status import failure_status
from headrace_server.rpc.wire.arithmetic import key_of, present, read_arithmetic, set_arithmetic
from headrace_server.rpc.wire.events import (
    checkpoint_to_proto,
    duration_from_proto,
    duration_to_proto,
    state_to_proto,
    step_to_proto,
    time_to_proto,
)
from headrace_server.rpc.wire.models import struct_of
from headrace_server.trainers.family import Family
from headrace_server.trainers.recipe import (
    AdamW,
    Device,
    Epochs,
    Placement,
    Schedule,
    Sgd,
    Sharing,
)
from headrace_server.training.draft import SpecDraft, StartRequest
from headrace_server.training.job import Job
from headrace_server.training.spec import TrainingSpec

_PRECISIONS = {tensor_pb2.Precision.Value(f"PRECISION_{precision.name}"): precision.value for precision in Precision}
_DEVICES = {
    spec_pb.Resources.DEVICE_UNSPECIFIED: Device.AUTO.value,
    spec_pb.Resources.DEVICE_CPU: Device.CPU.value,
    spec_pb.Resources.DEVICE_GPU: Device.GPU.value,
}
_SHARING = {
    spec_pb.Placement.MODE_UNSPECIFIED: Sharing.EXCLUSIVE.value,
    spec_pb.Placement.MODE_EXCLUSIVE: Sharing.EXCLUSIVE.value,
    spec_pb.Placement.MODE_YIELD: Sharing.YIELD.value,
}
_TASKS = {
    spec_pb.TabularTrainer.TASK_UNSPECIFIED: "auto",
    spec_pb.TabularTrainer.TASK_CLASSIFICATION: "classification",
    spec_pb.TabularTrainer.TASK_REGRESSION: "regression",
}
_OPTIMIZERS = {
    "adamw": (spec_pb.AdamW, ("learning_rate", "weight_decay")),
    "sgd": (spec_pb.Sgd, ("learning_rate", "momentum", "weight_decay")),
}
_SCHEDULES = {
    "constant": (spec_pb.ConstantSchedule, ("warmup_fraction",)),
    "cosine": (spec_pb.CosineSchedule, ("warmup_fraction", "final_fraction")),
    "linear": (spec_pb.LinearSchedule, ("warmup_fraction", "final_fraction")),
    "step_decay": (spec_pb.StepDecaySchedule, ("warmup_fraction", "factor", "num_drops")),
}
_WIDEST_INTEGER = 2**53
"""Up to here a double holds every integer."""


def start_request_from_proto(request: pb.StartTrainingRequest) -> StartRequest:
    """Read a request.  Raises InvalidSpec when there is no specification; everything else is admission's to judge."""
    if not request.HasField("spec"):
        raise InvalidSpec([Violation("spec", "is required")])
    return StartRequest(
        draft=draft_from_proto(request.spec),
        request_id=request.request_id,
        job_id=request.job_id,
        labels=dict(request.labels),
        validate_only=request.validate_only,
        body_digest=_digest(request),
    )


def draft_from_proto(spec: spec_pb.TrainingSpec) -> SpecDraft:
    """What was set of a specification, in the house's words, with the way back to the contract's fields."""
    trainer, parameters, trainer_paths = _trainer_from_proto(spec)
    recipe, recipe_paths = _recipe_from_proto(spec)
    return SpecDraft(
        dataset=spec.dataset,
        trainer=trainer,
        parameters=parameters,
        model=spec.model,
        recipe=recipe,
        priority=spec.resources.priority,
        is_preemptible=spec.resources.preemptible,
        num_ranks=spec.resources.ranks if spec.resources.HasField("ranks") else None,
        start_from=getattr(spec.start_from, source) if (source := spec.start_from.WhichOneof("source")) else "",
        max_restarts=spec.max_restarts if spec.HasField("max_restarts") else None,
        field_paths={
            "dataset": "spec.dataset",
            "model": "spec.model",
            "priority": "spec.resources.priority",
            "max_restarts": "spec.max_restarts",
            "num_ranks": "spec.resources.ranks",
            "start_from": f"spec.start_from.{source}" if source else "spec.start_from",
            **trainer_paths,
            **recipe_paths,
        },
    )


def job_to_proto(job: Job) -> job_pb.TrainingJob:
    """One job as it is now."""
    failure = job.failure
    return job_pb.TrainingJob(
        name=str(job.name),
        spec=spec_to_proto(job.spec),
        state=state_to_proto(job.state),
        state_message=job.state_message,
        latest_step=step_to_proto(job.latest_step) if job.latest_step else None,
        latest_sequence=job.latest_sequence,
        oldest_sequence=job.oldest_sequence,
        failure=failure_status(failure.reason, failure.message, failure.metadata) if failure else None,
        model_version=job.model_version,
        restarts=job.restarts,
        latest_checkpoint=checkpoint_to_proto(job.latest_checkpoint) if job.latest_checkpoint else None,
        create_time=time_to_proto(job.created_at),
        start_time=time_to_proto(job.started_at) if job.started_at else None,
        end_time=time_to_proto(job.ended_at) if job.ended_at else None,
        labels=job.labels,
        request_id=job.request_id,
    )


def spec_to_proto(spec: TrainingSpec) -> spec_pb.TrainingSpec:
    """A specification with every default filled in."""
    recipe = spec.recipe
    message = spec_pb.TrainingSpec(
        dataset=spec.dataset,
        model=spec.model,
        batch_size=recipe.batch_size,
        precision=tensor_pb2.Precision.Value(f"PRECISION_{recipe.precision.name}"),
        seed=recipe.seed,
        evaluation=spec_pb.Evaluation(
            holdout_fraction=recipe.evaluation.holdout_fraction,
            every_epochs=recipe.evaluation.every_epochs,
            metric=recipe.evaluation.metric,
        ),
        checkpoints=spec_pb.CheckpointPolicy(
            period=duration_to_proto(recipe.checkpoints.period_seconds),
            keep_last=recipe.checkpoints.keep_last,
            keep_best=recipe.checkpoints.keep_best,
        ),
        resources=spec_pb.Resources(
            device=key_of(_DEVICES, recipe.device.value),
            priority=spec.priority,
            cpu_threads=recipe.cpu_threads,
            preemptible=spec.is_preemptible,
            ranks=spec.num_ranks,
            placement=_placement_to_proto(recipe.placement),
        ),
        max_restarts=spec.max_restarts,
    )
    if isinstance(recipe.length, Epochs):
        message.epochs = recipe.length.count
    else:
        message.steps = recipe.length.count
    if recipe.early_stopping is not None:
        message.early_stopping.patience = recipe.early_stopping.patience
        message.early_stopping.min_delta = recipe.early_stopping.min_delta
    _set_union(message.optimizer, _OPTIMIZERS, recipe.optimizer)
    _set_union(message.schedule, _SCHEDULES, recipe.schedule)
    set_arithmetic(message, recipe)
    if spec.start_from is not None:
        source = "model" if spec.start_from.name.startswith("models/") else "training_job"
        setattr(message.start_from, source, spec.start_from.name)
        message.start_from.digest = spec.start_from.digest
    _set_trainer(message, spec)
    return message


def trainer_to_proto(family: Family) -> pb.Trainer:
    """One kind of training, with the schema of its parameters."""
    return pb.Trainer(
        name=family.name,
        title=family.title,
        parameters_schema=struct_of(family.parameters.model_json_schema()),
        dataset_formats=list(family.formats),
        is_plugin=family.is_plugin,
    )


# From a request.


def _digest(request: pb.StartTrainingRequest) -> str:
    body = pb.StartTrainingRequest()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()


def _trainer_from_proto(spec: spec_pb.TrainingSpec) -> tuple[str, dict[str, Any], dict[str, str]]:
    match spec.WhichOneof("trainer"):
        case "tabular":
            return "tabular", _tabular_from_proto(spec.tabular), {"parameters": "spec.tabular"}
        case "image_classification":
            parameters = _images_from_proto(spec.image_classification)
            return "image_classification", parameters, {"parameters": "spec.image_classification"}
        case "plugin":
            paths = {"trainer": "spec.plugin.name", "parameters": "spec.plugin.parameters"}
            return spec.plugin.name, _json_of(spec.plugin.parameters), paths
        case None:
            return "", {}, {"trainer": "spec.trainer", "parameters": "spec.trainer"}


def _tabular_from_proto(trainer: spec_pb.TabularTrainer) -> dict[str, Any]:
    parameters: dict[str, Any] = present(trainer, "dropout", "label_smoothing")
    if trainer.target:
        parameters["target"] = trainer.target
    if trainer.task != spec_pb.TabularTrainer.TASK_UNSPECIFIED:
        parameters["task"] = _TASKS.get(trainer.task, str(trainer.task))
    if trainer.features:
        parameters["features"] = list(trainer.features)
    if trainer.hidden_widths:
        parameters["hidden_widths"] = list(trainer.hidden_widths)
    return parameters


def _images_from_proto(trainer: spec_pb.ImageClassificationTrainer) -> dict[str, Any]:
    parameters: dict[str, Any] = present(trainer, "image_size", "width", "blocks_per_stage", "label_smoothing")
    if trainer.HasField("augmentation"):
        parameters["augmentation"] = {
            "flip": trainer.augmentation.flip,
            **present(trainer.augmentation, "shift_pixels", "cutout_pixels"),
        }
    if trainer.images:
        parameters["images"] = trainer.images
    if trainer.labels:
        parameters["labels"] = trainer.labels
    return parameters


def _recipe_from_proto(spec: spec_pb.TrainingSpec) -> tuple[dict[str, Any], dict[str, str]]:
    recipe: dict[str, Any] = present(spec, "batch_size", "seed")
    paths = {
        "recipe": "spec",
        "recipe.length": "spec.epochs",
        "recipe.checkpoints.period_seconds": "spec.checkpoints.period",
        "recipe.placement.max_block_seconds": "spec.resources.placement.max_block",
        "recipe.placement": "spec.resources.placement",
        "recipe.device": "spec.resources.device",
        "recipe.cpu_threads": "spec.resources.cpu_threads",
    }
    if length := spec.WhichOneof("length"):
        recipe["length"] = {"kind": length, "count": getattr(spec, length)}
        # A tagged union puts its tag into the path of a violation.
        paths |= dict.fromkeys(
            ("recipe.length", "recipe.length.count", f"recipe.length.{length}", f"recipe.length.{length}.count"),
            f"spec.{length}",
        )
    for union, kinds in (("optimizer", _OPTIMIZERS), ("schedule", _SCHEDULES)):
        if kind := getattr(spec, union).WhichOneof("kind"):
            recipe[union] = {"kind": kind, **present(getattr(getattr(spec, union), kind), *kinds[kind][1])}
            paths |= dict.fromkeys((f"recipe.{union}", f"recipe.{union}.{kind}"), f"spec.{union}.{kind}")
    if spec.precision != tensor_pb2.PRECISION_UNSPECIFIED:
        recipe["precision"] = _PRECISIONS.get(spec.precision, str(spec.precision))
    _read_policies(spec, recipe)
    read_arithmetic(spec, recipe)
    return recipe, paths


def _read_policies(spec: spec_pb.TrainingSpec, recipe: dict[str, Any]) -> None:
    evaluation = present(spec.evaluation, "holdout_fraction", "every_epochs")
    if spec.evaluation.metric:
        evaluation["metric"] = spec.evaluation.metric
    if evaluation:
        recipe["evaluation"] = evaluation
    if spec.HasField("early_stopping"):
        stopping = spec.early_stopping
        recipe["early_stopping"] = {"patience": stopping.patience, "min_delta": stopping.min_delta}
    checkpoints = present(spec.checkpoints, "keep_last", "keep_best")
    if spec.checkpoints.HasField("period"):
        checkpoints["period_seconds"] = duration_from_proto(spec.checkpoints.period)
    if checkpoints:
        recipe["checkpoints"] = checkpoints
    if spec.resources.HasField("placement"):
        recipe["placement"] = _placement_from_proto(spec.resources.placement)
    if spec.resources.device != spec_pb.Resources.DEVICE_UNSPECIFIED:
        recipe["device"] = _DEVICES.get(spec.resources.device, str(spec.resources.device))
    recipe |= present(spec.resources, "cpu_threads")


def _placement_from_proto(message: spec_pb.Placement) -> dict[str, Any]:
    placement: dict[str, Any] = {
        "mode": _SHARING.get(message.mode, str(message.mode)),
        **present(message, "min_share"),
    }
    if message.HasField("max_block"):
        placement["max_block_seconds"] = duration_from_proto(message.max_block)
    return placement


def _json_of(struct: Struct) -> dict[str, Any]:
    return {key: _plain(value) for key, value in struct.fields.items()}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _WIDEST_INTEGER else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _json_of(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None


# To a job.


def _set_trainer(message: spec_pb.TrainingSpec, spec: TrainingSpec) -> None:
    parameters: Mapping[str, Any] = json.loads(json.dumps(spec.parameters))  # enums and tuples become JSON
    match spec.trainer:
        case "tabular":
            task = key_of(_TASKS, parameters["task"])
            message.tabular.CopyFrom(spec_pb.TabularTrainer(**{**parameters, "task": task}))
        case "image_classification":
            message.image_classification.CopyFrom(spec_pb.ImageClassificationTrainer(**parameters))
        case _:
            message.plugin.name = spec.trainer
            message.plugin.parameters.CopyFrom(struct_of(parameters))


def _set_union(message: Any, kinds: Mapping[str, tuple[Any, tuple[str, ...]]], chosen: AdamW | Sgd | Schedule) -> None:
    """Set the member of a union of the contract that `chosen` is."""
    kind, fields = kinds[chosen.kind]
    getattr(message, chosen.kind).CopyFrom(kind(**{field: getattr(chosen, field) for field in fields}))


def _placement_to_proto(placement: Placement) -> spec_pb.Placement:
    return spec_pb.Placement(
        mode=spec_pb.Placement.Mode.Value(f"MODE_{placement.mode.name}"),
        max_block=duration_to_proto(placement.max_block_seconds),
        min_share=placement.min_share,
    )
