"""Train, watch and predict over one gRPC contract.

    import headrace

    async with headrace.Client("127.0.0.1:50051") as client:
        run = await client.start_training(
            dataset="flowers", model="flowers", trainer=headrace.TabularTrainer(target="species"), epochs=20
        )
        job = await run.wait()
        prediction = await client.predict("flowers", {"petal_length": lengths, "petal_width": widths})

Names are loaded when they are first used: importing this package, as programs that only want its generated stubs do,
costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # fmt: off
    # isort: off
    from headrace.blocking import BlockingClient as BlockingClient, BlockingRun as BlockingRun
    from headrace.channel import tls_credentials as tls_credentials
    from headrace.client import Client as Client
    from headrace.datasets.v1.dataset_pb2 import Dataset as Dataset, DatasetVersion as DatasetVersion
    from headrace.ensembles import chain as chain, mean as mean, vote as vote
    from headrace.errors import (
        BuffersFull as BuffersFull, CheckpointNotFound as CheckpointNotFound,
        Conflict as Conflict, CursorAhead as CursorAhead, CursorExpired as CursorExpired,
        DatasetNotFound as DatasetNotFound, DeadlineExceeded as DeadlineExceeded, Denied as Denied,
        DeviceOutOfMemory as DeviceOutOfMemory, DigestMismatch as DigestMismatch, ExpiredInQueue as ExpiredInQueue,
        HeadraceError as HeadraceError, IllegalTransition as IllegalTransition, InUse as InUse, Invalid as Invalid,
        InvalidDataset as InvalidDataset, InvalidModel as InvalidModel, InvalidName as InvalidName,
        InvalidPageToken as InvalidPageToken, InvalidSpec as InvalidSpec, InvalidTensor as InvalidTensor,
        JobNotFound as JobNotFound, ModelFailed as ModelFailed, ModelLoading as ModelLoading,
        ModelNotFound as ModelNotFound, ModelNotLoaded as ModelNotLoaded, NameTaken as NameTaken,
        NoCheckpointYet as NoCheckpointYet, NoPermit as NoPermit,
        NotFound as NotFound, OutOfRange as OutOfRange, Overloaded as Overloaded, QueueFull as QueueFull,
        RequestIdReused as RequestIdReused, ServerDraining as ServerDraining, ServerFault as ServerFault,
        StorageFull as StorageFull, StoreAway as StoreAway, TimedOut as TimedOut, TooLarge as TooLarge,
        TooManyCalls as TooManyCalls, TrainingCancelled as TrainingCancelled,
        TrainingEnded as TrainingEnded, TrainingFailed as TrainingFailed, Unavailable as Unavailable,
        Unsupported as Unsupported, WrongState as WrongState,
    )
    from headrace.evidence import Violation as Violation
    from headrace.events import Event as Event
    from headrace.health_calls import Health as Health
    from headrace.models.v1.ensemble_pb2 import Ensemble as Ensemble
    from headrace.models.v1.model_pb2 import Model as Model, ModelVersion as ModelVersion
    from headrace.prediction import (
        MemberAnswer as MemberAnswer, Prediction as Prediction, Provenance as Provenance, Staleness as Staleness,
        StreamedPrediction as StreamedPrediction, Timing as Timing,
    )
    from headrace.resume import Interruption as Interruption
    from headrace.retry import Retry as Retry
    from headrace.run import TrainingRun as TrainingRun
    from headrace.spec import plugin as plugin, training_spec as training_spec
    from headrace.training.v1.training_event_pb2 import (
        EvaluationCompleted as EvaluationCompleted, LogLine as LogLine, ModelRegistered as ModelRegistered,
        PhaseChanged as PhaseChanged, ProfileRecorded as ProfileRecorded, StateChanged as StateChanged,
        WarningRaised as WarningRaised,
    )
    from headrace.training.v1.training_job_pb2 import (
        CheckpointSaved as CheckpointSaved, StepCompleted as StepCompleted, TrainingJob as TrainingJob,
    )
    from headrace.training.v1.training_spec_pb2 import (
        AdamW as AdamW, Augmentation as Augmentation, ConstantSchedule as ConstantSchedule,
        CosineSchedule as CosineSchedule, EarlyStopping as EarlyStopping, Evaluation as Evaluation,
        ImageClassificationTrainer as ImageClassificationTrainer, LinearSchedule as LinearSchedule,
        MovingAverage as MovingAverage, Numerics as Numerics, Placement as Placement,
        PluginTrainer as PluginTrainer, Sgd as Sgd, StepDecaySchedule as StepDecaySchedule,
        TabularTrainer as TabularTrainer, TrainingSpec as TrainingSpec,
    )
    # isort: on
    # fmt: on

_HOMES = {
    "headrace.blocking": ("BlockingClient", "BlockingRun"),
    "headrace.channel": ("tls_credentials",),
    "headrace.client": ("Client",),
    "headrace.datasets.v1.dataset_pb2": ("Dataset", "DatasetVersion"),
    "headrace.ensembles": ("chain", "mean", "vote"),
    "headrace.errors": (
        "BuffersFull", "CheckpointNotFound",
        "Conflict", "CursorAhead", "CursorExpired", "DatasetNotFound", "DeadlineExceeded", "Denied",
        "DeviceOutOfMemory", "DigestMismatch", "ExpiredInQueue", "HeadraceError", "IllegalTransition", "InUse",
        "Invalid", "InvalidDataset", "InvalidModel", "InvalidName", "InvalidPageToken", "InvalidSpec", "InvalidTensor",
        "JobNotFound", "ModelFailed", "ModelLoading", "ModelNotFound", "ModelNotLoaded", "NameTaken",
        "NoCheckpointYet", "NoPermit",
        "NotFound", "OutOfRange", "Overloaded", "QueueFull", "RequestIdReused", "ServerDraining", "ServerFault",
        "StorageFull", "StoreAway", "TimedOut", "TooLarge", "TooManyCalls", "TrainingCancelled",
        "TrainingEnded", "TrainingFailed", "Unavailable", "Unsupported", "WrongState",
    ),
    "headrace.evidence": ("Violation",),
    "headrace.events": ("Event",),
    "headrace.health_calls": ("Health",),
    "headrace.models.v1.ensemble_pb2": ("Ensemble",),
    "headrace.models.v1.model_pb2": ("Model", "ModelVersion"),
    "headrace.prediction": ("MemberAnswer", "Prediction", "Provenance", "Staleness", "StreamedPrediction", "Timing"),
    "headrace.resume": ("Interruption",),
    "headrace.retry": ("Retry",),
    "headrace.run": ("TrainingRun",),
    "headrace.spec": ("plugin", "training_spec"),
    "headrace.training.v1.training_event_pb2": (
        "EvaluationCompleted", "LogLine", "ModelRegistered", "PhaseChanged", "ProfileRecorded", "StateChanged",
        "WarningRaised",
    ),
    "headrace.training.v1.training_job_pb2": ("CheckpointSaved", "StepCompleted", "TrainingJob"),
    "headrace.training.v1.training_spec_pb2": (
        "AdamW", "Augmentation", "ConstantSchedule", "CosineSchedule", "EarlyStopping", "Evaluation",
        "ImageClassificationTrainer", "LinearSchedule", "MovingAverage", "Numerics", "Placement", "PluginTrainer",
        "Sgd", "StepDecaySchedule", "TabularTrainer", "TrainingSpec",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # to a type checker, a name that is not above is a mistake

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
