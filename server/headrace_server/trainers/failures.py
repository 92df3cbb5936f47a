"""Why a training cannot go on, as types.  They end a trainer process with a Failed report and never reach a caller.

What is wrong with a request or a data set is told with the types of `errors` instead.
"""

from pathlib import Path
from typing import ClassVar

from headrace_server.errors import HeadraceError


class TrainingFailure(HeadraceError):
    """A training cannot go on, and trying again would end in the same way."""

    reason: ClassVar[str] = "TRAINER_FAILED"


class Diverged(TrainingFailure):
    """The loss or the weights are no longer finite."""

    def __init__(self, what: str, step: int, last_finite_loss: float | None, learning_rate: float) -> None:
        before = "" if last_finite_loss is None else f"; the last finite loss was {last_finite_loss:.6g}"
        super().__init__(
            f"{what} at step {step}{before}; the learning rate was {learning_rate:.6g}: try a lower one",
            step=step,
            learning_rate=learning_rate,
        )


class CheckpointDamaged(TrainingFailure):
    """A checkpoint folder is not what its writer left, or belongs to another training."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"the checkpoint {folder.name} cannot be used: {problem}", folder=folder.name)


class ExportDiffers(TrainingFailure):
    """An exported program does not compute what the trained network computes."""

    def __init__(self, path: str, output: str, difference: float, tolerance: float) -> None:
        super().__init__(
            f"{path} differs from the trained network by {difference:.3g} in {output!r} (tolerance {tolerance:.3g})",
            path=path,
            output=output,
        )


class BatchTooLarge(TrainingFailure):
    """The memory does not hold the rows that are to be computed at once; found before the first step."""

    def __init__(self, device: str, rows: int, fits: int) -> None:
        if fits:
            advice = f"{fits} would fit: ask for split_to_fit, for more micro_batches, or for a smaller batch_size"
        else:
            advice = "not even one would fit: try a smaller network"
        super().__init__(
            f"{rows} rows at once do not fit into the memory of {device}; {advice}", device=device, rows=rows, fits=fits
        )


class DataTooLarge(TrainingFailure):
    """Neither the memory nor the local disk holds the rows of a training."""

    def __init__(self, num_bytes: int, problem: str) -> None:
        super().__init__(
            f"the rows take {num_bytes:,} bytes, for which there is neither memory nor room on the disk ({problem})",
            bytes=num_bytes,
        )


class OutOfMemory(TrainingFailure):
    """The device, or the machine, has no memory left for a training step."""

    def __init__(self, device: str, batch_size: int, problem: str) -> None:
        super().__init__(
            f"{device} is out of memory with a batch size of {batch_size}; try a smaller batch or network ({problem})",
            device=device,
            batch_size=batch_size,
        )
