"""Reads a model that lies on the server's own disk: one .onnx or .pt2 file, or a folder that a training has exported.

    model.onnx      an ONNX program, with the files beside it that hold its weights, if any
    program.pt2     a torch.export program
    calibration.safetensors   optional: rows to judge plans with; see `calibration.py`
    export.json     optional: signature, metrics and lineage, as a training writes them
    signature.json  optional: the signature alone, to add class names or to refuse NaN

At least one program must be there.  Everything here blocks: call it on a thread.  The operator names these paths, so
torch programs are taken as they are.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace_server.errors import InvalidModel
from headrace_server.models import onnx_signature, torch_signature
from headrace_server.models.calibration import CALIBRATION_FILE
from headrace_server.models.version import ArtifactFormat, Lineage
from headrace_server.tensors import Signature

ONNX_FILE = "model.onnx"
TORCH_FILE = "program.pt2"
MOST_DESCRIPTION_BYTES = 16 << 20

DescriptionT = TypeVar("DescriptionT", bound=BaseModel)


class Manifest(BaseModel):
    """The part of `export.json` that a version keeps."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    signature: Signature
    metrics: dict[str, float] = {}
    lineage: Lineage = Lineage()


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """One file of a model."""

    source: Path
    path: str
    """Its name in the version."""
    format: ArtifactFormat
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """The files of a model, and a digest of all of them; nothing is checked yet."""

    files: tuple[OfferedFile, ...]
    manifest: Manifest | None
    signature: Signature | None
    """From `signature.json`."""
    digest: str


def survey(path: Path) -> Offer:
    """Find the files of a model.  Raises InvalidModel when there is none."""
    if path.is_dir():
        onnx_path, torch_path = path / ONNX_FILE, path / TORCH_FILE
        manifest = _read_description(path / "export.json", Manifest)
        signature = _read_description(path / "signature.json", Signature)
    else:
        onnx_path, torch_path = (path, path / "-") if path.suffix == ".onnx" else (path / "-", path)
        manifest = signature = None
        if path.suffix not in {".onnx", ".pt2"} or not path.is_file():
            raise InvalidModel(f"{path} is neither an .onnx or .pt2 file nor a folder")
    files = []
    if onnx_path.is_file():
        files.append(_offer(onnx_path, ONNX_FILE, ArtifactFormat.ONNX))
        for name in onnx_signature.companions_of(onnx_path):
            onnx_signature.check_companion(onnx_path.parent, name)
            files.append(_offer(onnx_path.parent / name, name, ArtifactFormat.OTHER))
    if torch_path.is_file():
        files.append(_offer(torch_path, TORCH_FILE, ArtifactFormat.TORCH_EXPORT))
    if path.is_dir() and (path / CALIBRATION_FILE).is_file() and files:
        files.append(_offer(path / CALIBRATION_FILE, CALIBRATION_FILE, ArtifactFormat.CALIBRATION))
    if not files:
        raise InvalidModel(f"{path} holds neither {ONNX_FILE} nor {TORCH_FILE}")
    if len({file.path for file in files}) < len(files):
        raise InvalidModel(f"{path}: the weights of {ONNX_FILE} are in a file of a reserved name")
    described = [value.model_dump_json() if value is not None else "" for value in (manifest, signature)]
    content = json.dumps([[(file.path, file.digest) for file in files], described])
    return Offer(tuple(files), manifest, signature, f"sha256:{hashlib.sha256(content.encode()).hexdigest()}")


def read_signature(path: Path, format: ArtifactFormat) -> Signature:  # noqa: A002 - the contract's word
    """Check one program by itself, and return what it accepts and returns.  Raises InvalidModel."""
    if format is ArtifactFormat.ONNX:
        return onnx_signature.read_signature(path, may_have_companions=False)
    return torch_signature.read_signature(path)


def signature_of(offer: Offer) -> Signature:
    """Check every program of an offer; return the signature that it states, or else the one its first program has.

    Raises InvalidModel when a program cannot be run, or has other inputs or outputs than is stated.
    """
    stated = offer.signature or (offer.manifest.signature if offer.manifest is not None else None)
    for file in offer.files:
        if file.format is ArtifactFormat.ONNX:
            own = onnx_signature.read_signature(file.source, may_have_companions=True)
        elif file.format is ArtifactFormat.TORCH_EXPORT:
            own = torch_signature.read_signature(file.source)
        else:
            continue
        stated = stated or own
        _compare(stated, own, file.path)
    assert stated is not None
    return stated


def _compare(stated: Signature, own: Signature, path: str) -> None:
    for what, wanted, found in (("input", stated.inputs, own.inputs), ("output", stated.outputs, own.outputs)):
        if len(wanted) != len(found):
            raise InvalidModel(f"{path} has {len(found)} {what}s, the stated signature {len(wanted)}")
        by_name = {spec.name: spec for spec in found}
        agree = {spec.name for spec in wanted} == set(by_name)
        if not agree and path == ONNX_FILE:
            raise InvalidModel(f"{path} names its {what}s {', '.join(by_name)}, the stated signature does not")
        for place, spec in enumerate(wanted):
            other = by_name[spec.name] if agree else found[place]
            if spec.data_type != other.data_type or not _may_be(spec.shape, other.shape):
                raise InvalidModel(
                    f"{path}: {what} {spec.name!r} is {other.data_type} {list(other.shape)}, "
                    f"stated is {spec.data_type} {list(spec.shape)}"
                )


def _may_be(stated: tuple[int, ...], own: tuple[int, ...]) -> bool:
    return len(stated) == len(own) and all(
        have in (-1, want) or want == -1 for want, have in zip(stated, own, strict=True)
    )


def _offer(source: Path, path: str, format: ArtifactFormat) -> OfferedFile:  # noqa: A002 - the contract's word
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    except OSError as error:
        raise InvalidModel(f"{source} cannot be read: {error.strerror}") from error
    return OfferedFile(source, path, format, f"sha256:{digest}", size_bytes)


def _read_description(path: Path, kind: type[DescriptionT]) -> DescriptionT | None:
    try:
        if path.stat().st_size > MOST_DESCRIPTION_BYTES:
            raise InvalidModel(f"{path} is too large for a description")
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidModel(f"{path.name}: {where}: {first['msg']}") from error
