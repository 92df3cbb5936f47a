"""Writes the Python stubs of every contract: `python protos/generate.py [--into FOLDER]`.

Public packages go to the client distribution, internal ones to the server.  The folder of a proto file is its package
and its Python package at once, so the imports in generated code are right as they are.
"""

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
REPOSITORY = PROTOS.parent
DESTINATIONS = {"headrace": Path("clients/python"), "headrace_server": Path("server")}


def generate(into: Path) -> None:
    """Write all stubs below `into`, which is laid out like the repository.  Raises SystemExit when protoc refuses."""
    for package, destination in DESTINATIONS.items():
        out = into / destination
        out.mkdir(parents=True, exist_ok=True)
        sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / package).rglob("*.proto"))
        services = [source for source in sources if "\nservice " in (PROTOS / source).read_text(encoding="utf-8")]
        _protoc(sources, f"--python_out={out}", f"--mypy_out=quiet:{out}")
        _protoc(services, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}")
        for folder in sorted({(out / source).parent for source in sources}):
            for level in (folder, folder.parent):
                (level / "__init__.py").touch()


def _protoc(sources: list[str], *outputs: str) -> None:
    includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    if protoc.main(["protoc", *includes, *plugins, *outputs, *sources]) != 0:
        raise SystemExit("protoc refused the contracts; its message stands above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=REPOSITORY, help="write there instead of the repository")
    generate(parser.parse_args().into.resolve())
