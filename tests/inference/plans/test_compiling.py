"""What it takes to compile a plan, for the host and for a GPU."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from headrace_server.inference.plans import compiling
from headrace_server.inference.plans.compiling import CannotCompile, CompileRequest, compile_apart, missing_means
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.trying import try_plan
from headrace_server.precision import Precision
from tests.inference.plans.programs import signature, torch_sources
from tests.inference.plans.test_trying import bench

ON_CPU = Plan(runtime=Runtime.TORCH, precision=Precision.BF16, form=Form.COMPILED)
ON_GPU = ON_CPU.model_copy(update={"device": "cuda:0"})


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a compiler and the headers of CUDA."""
    tools, home = tmp_path / "bin", tmp_path / "cuda"
    for file in (tools / "g++", home / "include/cuda.h"):
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    return {"PATH": str(tools), "CUDA_HOME": str(home)}


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, as far as can be seen."""
    monkeypatch.setattr(compiling, "find_spec", lambda name: ModuleSpec(name, None))


@pytest.mark.usefixtures("triton")
def test_a_machine_with_all_of_it_lacks_nothing(machine: dict[str, str]) -> None:
    assert missing_means(ON_GPU, machine) == missing_means(ON_CPU, machine) == ""


@pytest.mark.usefixtures("triton")
def test_without_a_compiler_or_the_headers_of_cuda_it_says_which(machine: dict[str, str], tmp_path: Path) -> None:
    assert missing_means(ON_CPU, machine | {"CXX": "clang++"}) == "a C++ compiler, and there is no clang++"
    assert missing_means(ON_CPU, machine | {"CUDA_HOME": str(tmp_path / "gone")}) == ""
    assert "the headers of CUDA, and there is no" in missing_means(ON_GPU, machine | {"CUDA_HOME": str(tmp_path)})


@pytest.mark.usefixtures("triton")
def test_the_headers_are_looked_for_beside_nvcc_where_nobody_says_where_they_are(
    machine: dict[str, str], tmp_path: Path
) -> None:
    del machine["CUDA_HOME"]
    without = missing_means(ON_GPU, machine | {"PATH": f"{tmp_path / 'bin'}"})
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)

    assert "/usr/local/cuda/include/cuda.h" in without or Path("/usr/local/cuda/include/cuda.h").exists()
    assert missing_means(ON_GPU, machine | {"PATH": f"{tmp_path / 'bin'}:{nvcc.parent}"}) == ""


def test_a_plan_for_a_gpu_that_cannot_be_compiled_here_is_refused_with_the_reason_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    monkeypatch.setattr(compiling, "find_spec", lambda _: None)
    on = bench(torch_sources(nn.Linear(4, 3), tmp_path), signature(4, 3), tmp_path)

    trial = try_plan(ON_GPU, on)

    assert trial.problem == "CannotCompile: compiling it for cuda:0 needs Triton, which is not installed"
    with pytest.raises(CannotCompile):
        compile_apart(
            CompileRequest(
                plan=ON_GPU, source=tmp_path, signature=signature(4, 3), shapes={}, target=tmp_path / "made.pt2"
            ),
            1,
        )
