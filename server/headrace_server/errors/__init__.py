"""What can go wrong, as types.  Knows no transport: `rpc/status.py` holds the one table from here to gRPC.

    HeadraceError
    ├─ Invalid        the request can never succeed      InvalidSpec, InvalidTensor, InvalidName, InvalidDataset,
    │                                                    InvalidModel, InvalidPageToken, TooLarge
    ├─ NotFound                                          JobNotFound, DatasetNotFound, ModelNotFound,
    │                                                    CheckpointNotFound
    ├─ Conflict       it clashes with what exists        RequestIdReused, NameTaken
    ├─ WrongState     not now, given the state           IllegalTransition, ModelNotLoaded, InUse, Unsupported
    ├─ OutOfRange     the cursor points outside history  CursorExpired, CursorAhead
    ├─ Overloaded     try again later                    QueueFull, NoPermit, TooManyCalls, BuffersFull,
    │                                                    DeviceOutOfMemory, StorageFull
    ├─ Unavailable    try again elsewhere or soon        ModelLoading, NoCheckpointYet, StoreAway, Draining
    ├─ Expired        the time for it is over            ExpiredInQueue, TimedOut
    ├─ Fenced         a newer worker has the job         WorkerFenced
    ├─ Broken         the model failed on good input     ModelFailed
    └─ CannotStart    never reaches a caller             bad settings, a port in use, a database from a newer release

Anything else that is raised is our own fault and reaches callers as INTERNAL with an id.
"""

from headrace_server.errors.broken import (
    Broken as Broken,
    CannotStart as CannotStart,
    ModelFailed as ModelFailed,
)
from headrace_server.errors.error import (
    HeadraceError as HeadraceError,
    Violation as Violation,
    of_member as of_member,
)
from headrace_server.errors.invalid import (
    Invalid as Invalid,
    InvalidDataset as InvalidDataset,
    InvalidModel as InvalidModel,
    InvalidName as InvalidName,
    InvalidPageToken as InvalidPageToken,
    InvalidSpec as InvalidSpec,
    InvalidTensor as InvalidTensor,
    TooLarge as TooLarge,
)
from headrace_server.errors.later import (
    BuffersFull as BuffersFull,
    DeviceOutOfMemory as DeviceOutOfMemory,
    Draining as Draining,
    Expired as Expired,
    ExpiredInQueue as ExpiredInQueue,
    ModelLoading as ModelLoading,
    NoCheckpointYet as NoCheckpointYet,
    NoPermit as NoPermit,
    Overloaded as Overloaded,
    QueueFull as QueueFull,
    StorageFull as StorageFull,
    StoreAway as StoreAway,
    TimedOut as TimedOut,
    TooManyCalls as TooManyCalls,
    Unavailable as Unavailable,
)
from headrace_server.errors.state import (
    CheckpointNotFound as CheckpointNotFound,
    Conflict as Conflict,
    CursorAhead as CursorAhead,
    CursorExpired as CursorExpired,
    DatasetNotFound as DatasetNotFound,
    Fenced as Fenced,
    IllegalTransition as IllegalTransition,
    InUse as InUse,
    JobNotFound as JobNotFound,
    ModelNotFound as ModelNotFound,
    ModelNotLoaded as ModelNotLoaded,
    NameTaken as NameTaken,
    NotFound as NotFound,
    OutOfRange as OutOfRange,
    RequestIdReused as RequestIdReused,
    Unsupported as Unsupported,
    WorkerFenced as WorkerFenced,
    WrongState as WrongState,
)
