"""Writes tensors to a file in the format of safetensors, and works out its digest on the way.

The library itself copies every tensor while it holds the interpreter, and what it has written would have to be read
again for the digest: both cost the training that goes on meanwhile.  This goes over the bytes once, where they lie.

The format: eight bytes with the length of what follows, least significant first; a JSON object that gives each tensor
its type, shape and place; the tensors, one after the other.  https://github.com/huggingface/safetensors
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_PIECE_BYTES = 1 << 20  # what is hashed is written while it is still near


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write contiguous tensors that lie on the CPU; returns the size of the file, and its SHA-256 in hex.

    Raises OSError.  Lets go of the interpreter while bytes are hashed and written.
    """
    # The widest first, as the library has it: so all of them are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % _ALIGNMENT)
    contents = [memoryview(len(words).to_bytes(8, "little") + words), *(_bytes_of(tensors[name]) for name in names)]
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for rest in contents:
            while rest:
                piece = rest[:_PIECE_BYTES]
                written = file.write(piece)
                digest.update(piece[:written])
                rest = rest[written:]
        return file.tell(), digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    content: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return content
