"""How the versions of a model are served: what its owner may change at any time."""

from pydantic import BaseModel, ConfigDict

from headrace_server.precision import PrecisionPolicy


class ServingOptions(BaseModel):
    """Options of one model.  Every field has a default, which is what a model has that nobody has changed."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer release may have stored more

    precision: PrecisionPolicy = PrecisionPolicy()
    is_pinned: bool = False
    """Whether a loaded version stays loaded, however long nobody asks for it."""
