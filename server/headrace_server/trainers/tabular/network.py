"""The network over columns, and the program that serves it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TabularNetwork(nn.Module):
    """Embeds categories, joins them with standardised numbers, and applies a multi-layer perceptron.

    `num_categories` holds the number of categories of each category column, 0 (anything else) included.
    """

    def __init__(
        self,
        num_numbers: int,
        num_categories: Sequence[int],
        hidden_widths: Sequence[int],
        dropout: float,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.num_categories = tuple(num_categories)
        widths = [embedding_width(count) for count in num_categories]
        self.embeddings = nn.ModuleList(
            nn.Embedding(count, width) for count, width in zip(num_categories, widths, strict=True)
        )
        layers: list[nn.Module] = []
        width = num_numbers + sum(widths)
        for hidden in hidden_widths:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Standardised numbers [B, N] and codes [B, K] to scores before softmax [B, C], or a number [B, 1]."""
        if not self.embeddings:
            return self._answer(numbers)
        parts = [embedding(codes[:, column]) for column, embedding in enumerate(self.embeddings)]
        return self._answer(torch.cat([numbers, *parts], dim=1))

    def _answer(self, joined: Tensor) -> Tensor:
        answer: Tensor = self.layers(joined)
        return answer


class TabularProgram(nn.Module):
    """Takes one raw column for each feature, and answers in the caller's terms.

    Number columns are float32 [B]; category columns are int64 [B], where numbers that are not known count as 0.
    """

    def __init__(
        self, network: TabularNetwork, is_number: Sequence[bool], scale: "Scale", target: "Scale | None"
    ) -> None:
        super().__init__()
        self.network, self.scale, self.target = network, scale, target
        self._is_number = tuple(is_number)
        self._num_categories = network.num_categories

    def forward(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """(scores [B, C], label [B]) for classes, or (value [B],) for a number."""
        numbers = [column for column, is_number in zip(columns, self._is_number, strict=True) if is_number]
        codes = [column for column, is_number in zip(columns, self._is_number, strict=True) if not is_number]
        none = columns[0].new_zeros(columns[0].shape[0], 0)
        joined_numbers = torch.stack(numbers, dim=1) if numbers else none.float()
        known = [
            torch.where((code >= 0) & (code < count), code, 0)
            for code, count in zip(codes, self._num_categories, strict=True)
        ]
        joined_codes = torch.stack(known, dim=1) if known else none.long()
        answer = self.network(self.scale.standardise(joined_numbers), joined_codes)
        if self.target is not None:
            return (self.target.restore(answer)[:, 0],)
        scores = torch.softmax(answer, dim=1)
        return scores, scores.argmax(dim=1)


class Scale(nn.Module):
    """Moves columns to mean 0 and deviation 1, and back.  Columns that never vary become 0."""

    mean: Tensor
    deviation: Tensor
    inverse: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.register_buffer("inverse", torch.where(deviation > 0, 1 / deviation, 0))

    @classmethod
    def of(cls, rows: Tensor) -> "Scale":
        """The scale of these rows [B, N], computed in float64."""
        exact = rows.double()
        mean = exact.mean(dim=0)
        deviation = (exact - mean).square().mean(dim=0).sqrt()
        # Rounding may leave a little deviation in a column that never varies.
        deviation = torch.where(rows.amax(dim=0) > rows.amin(dim=0), deviation, 0)
        return cls(mean.float(), deviation.float())

    def standardise(self, rows: Tensor) -> Tensor:
        """Raw to standardised."""
        return (rows - self.mean) * self.inverse

    def restore(self, rows: Tensor) -> Tensor:
        """Standardised to raw."""
        return rows * self.deviation + self.mean


def embedding_width(num_categories: int) -> int:
    """How many numbers stand for a category: about 1.6 n^0.56, the rule of fast.ai, at most 64."""
    return min(64, math.ceil(1.6 * math.pow(num_categories, 0.56)))
