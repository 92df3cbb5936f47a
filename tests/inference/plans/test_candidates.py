"""Which plans are worth measuring."""

from headrace_server.inference.plans.candidates import Means, candidates
from headrace_server.inference.plans.plan import Form
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision

BOTH = {ArtifactFormat.ONNX, ArtifactFormat.TORCH_EXPORT, ArtifactFormat.SAFETENSORS}
COMPILER = Means(can_compile=True)


def names(formats: set[ArtifactFormat], wanted: Precision, means: Means = COMPILER) -> list[str]:
    return [plan.name for plan in candidates(formats, wanted, means)]


def test_the_registered_program_comes_first_and_what_is_compiled_last() -> None:
    found = candidates(BOTH, Precision.AUTO, COMPILER)

    assert found[0].name == "onnxruntime-fp32"
    forms = [plan.form for plan in found if plan.precision is not Precision.FP32]
    assert forms == sorted(forms, key=lambda form: form is Form.COMPILED)
    assert len({plan.name for plan in found}) == len(found)


def test_fp32_means_the_registered_programs_and_nothing_made_of_them() -> None:
    assert names(BOTH, Precision.FP32) == ["onnxruntime-fp32", "torch-fp32"]
    assert names({ArtifactFormat.TORCH_EXPORT}, Precision.FP32) == ["torch-fp32"]


def test_a_number_format_is_tried_in_all_its_ways_beside_the_registered_program() -> None:
    assert names(BOTH, Precision.INT8) == [
        "onnxruntime-fp32", "torch-fp32", "onnxruntime-int8-dynamic", "onnxruntime-int8-static", "torch-int8-compiled",
    ]  # fmt: skip
    assert names({ArtifactFormat.ONNX}, Precision.BF16) == ["onnxruntime-fp32"]


def test_nothing_is_compiled_without_a_compiler() -> None:
    assert not any("compiled" in name for name in names(BOTH, Precision.AUTO, Means(can_compile=False)))


def test_gpus_add_plans_only_where_the_runtime_was_built_for_them() -> None:
    plain = names(BOTH, Precision.AUTO, Means(can_compile=True, has_gpu=True))
    full = names(BOTH, Precision.AUTO, Means(can_compile=True, has_gpu=True, providers=("CUDAExecutionProvider",)))

    assert "torch-bf16-cuda0" in plain
    assert [name for name in full if name not in plain] == ["onnxruntime-fp32-cuda0-cuda"]


def test_what_is_compiled_for_a_gpu_comes_last_too_and_in_all_formats() -> None:
    found = names(BOTH, Precision.AUTO, Means(can_compile=True, has_gpu=True))
    without = names(BOTH, Precision.AUTO, Means(can_compile=False, has_gpu=True))

    compiled = [name for name in found if name.endswith("-compiled-cuda0")]
    assert compiled == [
        "torch-fp32-compiled-cuda0", "torch-bf16-compiled-cuda0", "torch-bf16-norms32-compiled-cuda0",
        "torch-fp16-compiled-cuda0", "torch-fp16-norms32-compiled-cuda0",
    ]  # fmt: skip
    assert all("compiled" in name for name in found[found.index(compiled[0]) :])
    assert not any("compiled" in name for name in without)
