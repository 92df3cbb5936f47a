"""Resource names (AIP-122): how they are written, read and refused.

trainingJobs/{job}            trainingJobs/{job}@latest                     trainingJobs/{job}@best
                              trainingJobs/{job}@step:{0, 1, 2, …}
datasets/{dataset}            datasets/{dataset}/versions/{16 hexadecimal digits}
models/{model}                models/{model}/versions/{1, 2, 3, …}          models/{model}@{alias}
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from headrace_server.errors import InvalidName

ID_RULE = "lower-case letters, digits and hyphens, at most 63, beginning and ending with a letter or digit"
_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_IS_ID = re.compile(_ID)
_JOB = re.compile(rf"trainingJobs/({_ID})")
_DATASET = re.compile(rf"datasets/({_ID})(?:/versions/([0-9a-f]{{16}}))?")
_SNAPSHOT = re.compile(rf"(trainingJobs/{_ID})@(?:(latest|best)|step:(0|[1-9][0-9]{{0,11}}))")
_MODEL = re.compile(rf"models/({_ID})(?:/versions/([1-9][0-9]{{0,8}})|@({_ID}))?")


def is_id(text: str) -> bool:
    """Whether `text` may be the last part of a name."""
    return _IS_ID.fullmatch(text) is not None


def new_job_id() -> str:
    """A job id that sorts by time and that nobody guesses twice: date, time and 32 random bits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class JobName:
    """`trainingJobs/{job}`."""

    job: str

    @classmethod
    def parse(cls, text: str, field: str = "name") -> "JobName":
        """Read a name.  Raises InvalidName, which blames `field`."""
        if not (match := _JOB.fullmatch(text)):
            raise InvalidName(text, "trainingJobs/{job}", field)
        return cls(match[1])

    def __str__(self) -> str:
        return f"trainingJobs/{self.job}"


@dataclass(frozen=True, slots=True)
class DatasetName:
    """`datasets/{dataset}`, or one version of it."""

    dataset: str
    version: str | None = None
    """16 hexadecimal digits; None for the data set as a whole, or its newest version where one is needed."""

    @classmethod
    def parse(cls, text: str, field: str = "name") -> "DatasetName":
        """Read a name.  Raises InvalidName, which blames `field`."""
        if not (match := _DATASET.fullmatch(text)):
            raise InvalidName(text, "datasets/{dataset} or datasets/{dataset}/versions/{version}", field)
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"datasets/{self.dataset}" + (f"/versions/{self.version}" if self.version else "")


@dataclass(frozen=True, slots=True)
class ModelName:
    """`models/{model}`, one version of it, or whatever an alias points to.  At most one of the last two is set."""

    model: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str, field: str = "name") -> "ModelName":
        """Read a name.  Raises InvalidName, which blames `field`."""
        if not (match := _MODEL.fullmatch(text)):
            raise InvalidName(
                text, "models/{model}, models/{model}@{alias} or models/{model}/versions/{version}", field
            )
        return cls(match[1], int(match[2]) if match[2] else None, match[3])

    def __str__(self) -> str:
        if self.version is not None:
            return f"models/{self.model}/versions/{self.version}"
        return f"models/{self.model}@{self.alias}" if self.alias else f"models/{self.model}"


@dataclass(frozen=True, slots=True)
class SnapshotName(ModelName):
    """The network of a job as one of its checkpoints has it: the newest, the best, or that of one step.

    A job is to its checkpoints what a model is to its versions: `model` is `trainingJobs/{job}`, which no model is
    called, `version` the step, and `alias` "latest" or "best".
    """

    @classmethod
    def parse(cls, text: str, field: str = "name") -> "SnapshotName":
        """Read a name.  Raises InvalidName, which blames `field`."""
        if not (match := _SNAPSHOT.fullmatch(text)):
            expected = "trainingJobs/{job}@latest, trainingJobs/{job}@best or trainingJobs/{job}@step:{step}"
            raise InvalidName(text, expected, field)
        return cls(match[1], int(match[3]) if match[3] else None, match[2])

    @property
    def job(self) -> JobName:
        """Whose checkpoint it is."""
        return JobName(self.model.partition("/")[2])

    def __str__(self) -> str:
        return f"{self.model}@{self.alias}" if self.alias else f"{self.model}@step:{self.version}"


def parse_predictable(text: str, field: str = "name") -> ModelName:
    """Read the name of what can answer predictions: a model's or a checkpoint's.  Raises InvalidName."""
    return (SnapshotName if text.startswith("trainingJobs/") else ModelName).parse(text, field)
