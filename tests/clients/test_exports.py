"""Freezes the public surface: taking a name away, or adding one, is a decision that shows up here."""

import ast
import subprocess
import sys
from pathlib import Path

import headrace
from headrace.error.v1.error_reason_pb2 import ErrorReason
from headrace.errors import HeadraceError

PUBLIC = """
AdamW Augmentation BlockingClient BlockingRun BuffersFull CheckpointNotFound CheckpointSaved Client Conflict
ConstantSchedule CosineSchedule CursorAhead CursorExpired Dataset DatasetNotFound DatasetVersion DeadlineExceeded Denied
DeviceOutOfMemory DigestMismatch EarlyStopping Ensemble Evaluation EvaluationCompleted Event ExpiredInQueue
HeadraceError Health IllegalTransition ImageClassificationTrainer InUse Interruption Invalid InvalidDataset
InvalidModel InvalidName InvalidPageToken InvalidSpec InvalidTensor JobNotFound LinearSchedule LogLine MemberAnswer
Model ModelFailed ModelLoading ModelNotFound ModelNotLoaded ModelRegistered ModelVersion MovingAverage NameTaken
NoCheckpointYet NoPermit NotFound Numerics OutOfRange Overloaded PhaseChanged Placement PluginTrainer Prediction
ProfileRecorded Provenance QueueFull RequestIdReused Retry ServerDraining ServerFault Sgd Staleness StateChanged
StepCompleted StepDecaySchedule StorageFull StoreAway StreamedPrediction TabularTrainer TimedOut Timing TooLarge
TooManyCalls TrainingCancelled TrainingEnded TrainingFailed TrainingJob TrainingRun TrainingSpec Unavailable Unsupported
Violation WarningRaised WrongState chain mean plugin tls_credentials training_spec vote
"""
NOT_OF_CALLS = {"UNSPECIFIED", "INTERNAL", "WORKER_FENCED", "TRAINER_FAILED", "WORKER_LOST", "STORE_LOST"}


def test_the_public_surface_is_this() -> None:
    assert dir(headrace) == sorted(PUBLIC.split())
    for name in PUBLIC.split():
        assert getattr(headrace, name).__name__ == name


def test_what_type_checkers_see_is_what_programs_get() -> None:
    tree = ast.parse(Path(headrace.__file__).read_text(encoding="utf-8"))
    blocks = (node for node in tree.body if isinstance(node, ast.If))
    typed = next(block for block in blocks if getattr(block.test, "id", "") == "TYPE_CHECKING")
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name, alias.asname) for node in imports for alias in node.names}

    assert seen == {(module, name, name) for module, names in headrace._HOMES.items() for name in names}


def test_importing_the_package_or_its_stubs_loads_no_client_and_no_terminal() -> None:
    program = """
import sys
import headrace
import headrace.training.v1.training_service_pb2
assert not {"numpy", "rich", "typer", "headrace.client"} & set(sys.modules), sys.modules
headrace.Client
assert "numpy" in sys.modules
assert not {"rich", "typer", "headrace_server"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)


def test_every_reason_of_the_contract_has_a_type() -> None:
    names = [value.name for value in ErrorReason.DESCRIPTOR.values]
    reasons = {name.removeprefix("ERROR_REASON_") for name in names} - NOT_OF_CALLS

    assert {kind.reason for kind in _descendants(HeadraceError) if kind.reason} == reasons


def _descendants(kind: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [one for child in kind.__subclasses__() for one in (child, *_descendants(child))]
