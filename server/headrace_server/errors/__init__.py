"""What can go wrong, as types.  Knows no transport: `rpc/status.py` holds the one table from here to gRPC.

    HeadraceError
    ├─ Invalid        the request can never succeed      InvalidSpec, InvalidTensor, InvalidName, InvalidDataset,
    │                                                    InvalidModel, InvalidPageToken, TooLarge
    ├─ NotFound                                          JobNotFound, DatasetNotFound, ModelNotFound,
    │                                                    CheckpointNotFound
    ├─ Conflict       it clashes with what exists        RequestIdReused, NameTaken
    ├─ WrongState     not now, given the state           IllegalTransition, ModelNotLoaded, InUse, Unsupported
    ├─ OutOfRange     the cursor points outside history  CursorExpired, CursorAhead
    ├─ Overloaded     try again later                    QueueFull, NoPermit, TooManyCalls, DeviceOutOfMemory,
    │                                                    StorageFull
    ├─ Unavailable    try again elsewhere or soon        ModelLoading, NoCheckpointYet, Draining
    ├─ Expired        the time for it is over            ExpiredInQueue, TimedOut
    ├─ Fenced         a newer worker has the job         WorkerFenced
    ├─ Broken         the model failed on good input     ModelFailed
    └─ CannotStart    never reaches a caller             bad settings, a port in use, a database from a newer release

Anything else that is raised is our own fault and reaches callers as INTERNAL with an id.
"""

from headrace_server.errors.broken import (
    Broken as Broken,
)
from headrace_server.errors.broken import (
    CannotStart as CannotStart,
)
from headrace_server.errors.broken import (
    ModelFailed as ModelFailed,
)
from headrace_server.errors.error import (
    HeadraceError as HeadraceError,
)
from headrace_server.errors.error import (
    Violation as Violation,
)
from headrace_server.errors.error import (
    of_member as of_member,
)
from headrace_server.errors.invalid import (
    Invalid as Invalid,
)
from headrace_server.errors.invalid import (
    InvalidDataset as InvalidDataset,
)
from headrace_server.errors.invalid import (
    InvalidModel as InvalidModel,
)
from headrace_server.errors.invalid import (
    InvalidName as InvalidName,
)
from headrace_server.errors.invalid import (
    InvalidPageToken as InvalidPageToken,
)
from headrace_server.errors.invalid import (
    InvalidSpec as InvalidSpec,
)
from headrace_server.errors.invalid import (
    InvalidTensor as InvalidTensor,
)
from headrace_server.errors.invalid import (
    TooLarge as TooLarge,
)
from headrace_server.errors.later import (
    DeviceOutOfMemory as DeviceOutOfMemory,
)
from headrace_server.errors.later import (
    Draining as Draining,
)
from headrace_server.errors.later import (
    Expired as Expired,
)
from headrace_server.errors.later import (
    ExpiredInQueue as ExpiredInQueue,
)
from headrace_server.errors.later import (
    ModelLoading as ModelLoading,
)
from headrace_server.errors.later import (
    NoCheckpointYet as NoCheckpointYet,
)
from headrace_server.errors.later import (
    NoPermit as NoPermit,
)
from headrace_server.errors.later import (
    Overloaded as Overloaded,
)
from headrace_server.errors.later import (
    QueueFull as QueueFull,
)
from headrace_server.errors.later import (
    StorageFull as StorageFull,
)
from headrace_server.errors.later import (
    TimedOut as TimedOut,
)
from headrace_server.errors.later import (
    TooManyCalls as TooManyCalls,
)
from headrace_server.errors.later import (
    Unavailable as Unavailable,
)
from headrace_server.errors.state import (
    CheckpointNotFound as CheckpointNotFound,
)
from headrace_server.errors.state import (
    Conflict as Conflict,
)
from headrace_server.errors.state import (
    CursorAhead as CursorAhead,
)
from headrace_server.errors.state import (
    CursorExpired as CursorExpired,
)
from headrace_server.errors.state import (
    DatasetNotFound as DatasetNotFound,
)
from headrace_server.errors.state import (
    Fenced as Fenced,
)
from headrace_server.errors.state import (
    IllegalTransition as IllegalTransition,
)
from headrace_server.errors.state import (
    InUse as InUse,
)
from headrace_server.errors.state import (
    JobNotFound as JobNotFound,
)
from headrace_server.errors.state import (
    ModelNotFound as ModelNotFound,
)
from headrace_server.errors.state import (
    ModelNotLoaded as ModelNotLoaded,
)
from headrace_server.errors.state import (
    NameTaken as NameTaken,
)
from headrace_server.errors.state import (
    NotFound as NotFound,
)
from headrace_server.errors.state import (
    OutOfRange as OutOfRange,
)
from headrace_server.errors.state import (
    RequestIdReused as RequestIdReused,
)
from headrace_server.errors.state import (
    Unsupported as Unsupported,
)
from headrace_server.errors.state import (
    WorkerFenced as WorkerFenced,
)
from headrace_server.errors.state import (
    WrongState as WrongState,
)
