"""Small contents of data sets in every format, as bytes."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image


def csv(*rows: str) -> bytes:
    """Lines of text."""
    return "".join(f"{row}\n" for row in rows).encode()


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    """A table."""
    target = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(dict(columns)), target, **options)
    return target.getvalue()


def npz(**arrays: Any) -> bytes:
    """Named arrays, compressed."""
    target = io.BytesIO()
    np.savez_compressed(target, **arrays)
    return target.getvalue()


def png(shade: int = 0, width: int = 8, height: int = 6) -> bytes:
    """An image of one grey."""
    target = io.BytesIO()
    Image.new("L", (width, height), shade).save(target, "PNG")
    return target.getvalue()


def archive(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as packed:
        for name, content in entries.items():
            packed.writestr(zipfile.ZipInfo(name), content, compression)
    return target.getvalue()


def two_classes() -> dict[str, bytes]:
    """Four images in two folders."""
    return {"cat/1.png": png(10), "cat/2.png": png(20), "dog/1.png": png(30), "dog/2.png": png(40)}
