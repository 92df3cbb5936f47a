"""How the versions of a model are served: what its owner may change at any time."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from headrace_server.precision import PrecisionPolicy

MOST_LANES = 64


class ResponseCaching(BaseModel):
    """Whether answers may be given again."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    is_enabled: bool = False
    max_age_seconds: float | None = Field(None, gt=0)
    """How old an answer may be; None: any age, as the weights are part of what it is kept under."""


class LaneSharing(StrEnum):
    """Whose threads run a model."""

    AUTO = "auto"
    """The server's choice."""
    OWN = "own"
    """Its own."""
    SHARED = "shared"
    """Those that all models of a device share."""


class ServingOptions(BaseModel):
    """Options of one model.  Every field has a default, which is what a model has that nobody has changed."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer release may have stored more

    cache: ResponseCaching = ResponseCaching()
    precision: PrecisionPolicy = PrecisionPolicy()
    is_pinned: bool = False
    """Whether a loaded version stays loaded, however long nobody asks for it."""
    num_lanes: int | None = Field(None, ge=1, le=MOST_LANES)
    """Threads that run one version at the same time, from its next load on; None: the server's choice."""
    lane_sharing: LaneSharing = LaneSharing.AUTO
    """From the next load on; a model with a number of lanes has them for itself unless it says that it shares."""
