from datetime import timedelta

import grpc
import pytest

import headrace
from headrace import Client, HeadraceError, Violation
from headrace.status import from_status
from tests.doubles.refusal import Refusal
from tests.doubles.scripted_server import ScriptedServer

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (Code.INVALID_ARGUMENT, "INVALID_SPEC", headrace.InvalidSpec),
        (Code.INVALID_ARGUMENT, "TOO_LARGE", headrace.TooLarge),
        (Code.NOT_FOUND, "DATASET_NOT_FOUND", headrace.DatasetNotFound),
        (Code.ALREADY_EXISTS, "NAME_TAKEN", headrace.NameTaken),
        (Code.FAILED_PRECONDITION, "IN_USE", headrace.InUse),
        (Code.OUT_OF_RANGE, "CURSOR_AHEAD", headrace.CursorAhead),
        (Code.RESOURCE_EXHAUSTED, "STORAGE_FULL", headrace.StorageFull),
        (Code.NOT_FOUND, "CHECKPOINT_NOT_FOUND", headrace.CheckpointNotFound),
        (Code.UNAVAILABLE, "MODEL_LOADING", headrace.ModelLoading),
        (Code.UNAVAILABLE, "NO_CHECKPOINT_YET", headrace.NoCheckpointYet),
        (Code.DEADLINE_EXCEEDED, "EXPIRED_IN_QUEUE", headrace.ExpiredInQueue),
        (Code.INTERNAL, "MODEL_FAILED", headrace.ModelFailed),
        (Code.INTERNAL, "INTERNAL", headrace.ServerFault),
        # A newer server's reason, and none at all.
        (Code.FAILED_PRECONDITION, "INVENTED_LATER", headrace.WrongState),
        (Code.UNAUTHENTICATED, "", headrace.Denied),
        (Code.PERMISSION_DENIED, "", headrace.Denied),
        (Code.DATA_LOSS, "", headrace.ServerFault),
        # A reason under a code that it does not belong to is not believed.
        (Code.INTERNAL, "QUEUE_FULL", headrace.ServerFault),
    ],
)
def test_a_status_becomes_the_type_of_its_reason_else_of_its_code(
    code: Code, reason: str, kind: type[HeadraceError]
) -> None:
    error = from_status(Refusal(code, "no", reason).status())

    assert type(error) is kind
    assert (error.code, error.reason, str(error)) == (code, reason, "no")


def test_all_that_came_with_a_status_is_at_hand() -> None:
    refusal = Refusal(
        Code.INVALID_ARGUMENT,
        "two fields are wrong",
        "INVALID_SPEC",
        {"violations": "2"},
        {"spec.epochs": "must be at least 1", "spec.model": "is missing"},
        timedelta(seconds=1.5),
    )

    error = from_status(refusal.status(), request_id="r-1")

    assert error.violations == (Violation("spec.epochs", "must be at least 1"), Violation("spec.model", "is missing"))
    assert error.metadata == {"violations": "2"}
    assert error.retry_after == timedelta(seconds=1.5)
    assert error.request_id == "r-1"


async def test_a_failed_call_carries_its_details_and_the_id_that_finds_it(
    client: Client, server: ScriptedServer
) -> None:
    with pytest.raises(headrace.JobNotFound, match="does not exist") as caught:
        await client.get_training_job("nobody")

    assert caught.value.metadata == {"name": "trainingJobs/nobody"}
    assert caught.value.request_id == "r-17"


async def test_details_that_cannot_be_read_leave_the_code_and_the_message(
    client: Client, server: ScriptedServer
) -> None:
    class Garbled(Refusal):
        async def send(self, context: object) -> None:  # type: ignore[override]
            await context.abort(self.code, self.message, (("grpc-status-details-bin", b"\xff\xff"),))  # type: ignore[attr-defined]

    server.training.refusals = [Garbled(Code.NOT_FOUND, "not here")]

    with pytest.raises(headrace.NotFound, match="not here") as caught:
        await client.get_training_job("j1")

    assert caught.value.reason == ""


async def test_a_server_of_something_else_is_told_apart(client: Client, server: ScriptedServer) -> None:
    server.training.refusals = [Refusal(Code.UNIMPLEMENTED, "Method not found!")]

    with pytest.raises(headrace.ServerFault, match="is it a Headrace server"):
        await client.get_training_job("j1")


async def test_nobody_there_is_unavailable() -> None:
    async with Client("127.0.0.1:1", timeout_seconds=60) as client:
        with pytest.raises(headrace.Unavailable):
            await client.get_training_job("j1")


async def test_an_expired_deadline_is_a_timeout_error_too(server: ScriptedServer) -> None:
    server.inference.delay_seconds = 30
    async with Client(server.target) as client:
        with pytest.raises(TimeoutError) as caught:
            await client.predict("digits", [[1.0, 2.0, 3.0]], timeout=0.1)

    assert isinstance(caught.value, headrace.DeadlineExceeded)


async def test_a_closed_client_says_so(server: ScriptedServer) -> None:
    client = Client(server.target)
    await client.list_models()
    await client.close()
    await client.close()

    for call in (client.list_models, client.list_trainers, client.health):
        with pytest.raises(RuntimeError, match="closed"):
            await call()
