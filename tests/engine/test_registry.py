"""Choosing an engine: the best that runs, or the causes; never another one in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime
import pytest

from engine import doctor, registry
from engine.backends import ort
from engine.registry import choose, find_engine, open_engine, survey
from lddgan.errors import BadInput, LddganError
from lddgan.presets import PRESETS, get_preset
from tests.needs import needs

ROOT = Path(__file__).parents[2]
KERNELS = "^fused on cuda: there are no kernels for generators of kind u-vit; `lddgan doctor`"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Sets why each thing is missing; None is "it is there"."""

    def set_causes(
        gpu=None, missing=(), ort_cuda=None, torch_cuda=None, trt="no TRT", fused="no Triton"
    ) -> None:
        causes = {
            ("trt", "cuda"): trt and f"{trt} (trt)",
            ("trt-rtx", "cuda"): trt and f"{trt} (trt-rtx)",
            ("fused", "cuda"): fused,
            ("ort", "cuda"): ort_cuda,
            ("torch", "cuda"): torch_cuda,
            ("torch-compile", "cuda"): torch_cuda,
        }
        for engine, package in (("openvino",) * 2, ("ort", "onnxruntime"), ("torch",) * 2):
            causes[engine, "cpu"] = f"{package} is gone" if package in missing else None
        monkeypatch.setattr(registry, "why_no_gpu", lambda: gpu)
        monkeypatch.setattr(
            registry,
            "find_engine",
            lambda name: replace(find_engine(name), why_not=lambda device: causes[name, device]),
        )

    return set_causes


def test_auto_takes_the_first_that_runs(machine) -> None:
    machine(trt=None)
    assert choose("auto", "auto") == ("trt", "cuda", "fp16")
    machine(fused=None)
    assert choose("auto", "auto") == ("fused", "cuda", "fp16")
    machine()
    assert choose("auto", "auto") == ("ort", "cuda", "fp32")
    machine(ort_cuda="CPU package")
    assert choose("auto", "auto") == ("torch", "cuda", "fp32")
    assert choose("auto", "auto", "fp16") == ("torch", "cuda", "fp16")
    machine(gpu="no GPU")
    assert choose("auto", "auto") == ("openvino", "cpu", "fp32")
    machine(gpu="no GPU", missing=("openvino",))
    assert choose("auto", "auto") == ("ort", "cpu", "fp32")
    machine(gpu="no GPU", missing=("openvino", "onnxruntime"))
    assert choose("auto", "auto") == ("torch", "cpu", "fp32")
    machine(ort_cuda="CPU package", missing=("onnxruntime",))
    assert choose("auto", "auto") == ("torch", "cuda", "fp32")


def test_the_default_precision_is_one_that_the_bundle_has(machine) -> None:
    machine(trt=None)
    assert choose("trt", "auto", None, ("fp32",)) == ("trt", "cuda", "fp32")
    assert choose("trt", "auto", None, ("fp32", "fp16")) == ("trt", "cuda", "fp16")
    assert choose("ort", "auto", None, ("fp32", "fp16")) == ("ort", "cuda", "fp32")
    assert choose("ort", "auto", None, ("fp16",)) == ("ort", "cuda", "fp16")
    assert choose("torch", "auto", None, ("fp16",)) == ("torch", "cuda", "fp32")
    assert choose("torch-compile", "auto", None, ("fp32",)) == ("torch-compile", "cuda", "fp16")
    machine(fused=None)
    assert choose("fused", "auto", None, ("fp32",)) == ("fused", "cuda", "fp32")
    assert choose("fused", "auto", "fp16", ("fp32",)) == ("fused", "cuda", "fp16")


def test_narrow_models_are_faster_with_onnx_runtime(machine) -> None:
    machine(gpu="no GPU")
    digits, lsun = get_preset("digits"), get_preset("lsun")
    assert choose("auto", "auto", preset=lsun) == ("openvino", "cpu", "fp32")
    assert choose("auto", "auto", preset=digits) == ("ort", "cpu", "fp32")
    assert choose("openvino", "auto", preset=digits) == ("openvino", "cpu", "fp32")
    machine(gpu="no GPU", missing=("onnxruntime",))
    assert choose("auto", "auto", preset=digits) == ("openvino", "cpu", "fp32")
    machine(trt=None)
    assert choose("auto", "auto", preset=digits) == ("trt", "cuda", "fp16")


@pytest.mark.parametrize("name", ["lsun", "ddgan-lsun", "wddgan-lsun", "vit-tiny"])
def test_a_model_that_fused_has_no_kernels_for_is_passed_over(machine, name: str) -> None:
    machine(fused=None)
    takes, preset = not name.startswith("vit"), PRESETS[name]
    assert choose("auto", "auto", preset=preset).engine == ("fused" if takes else "ort")
    assert doctor.examine().auto[name] == f"{'fused' if takes else 'ort'} on cuda"
    if takes:
        assert choose("fused", "auto", preset=preset) == ("fused", "cuda", "fp16")
    else:
        with pytest.raises(LddganError, match=KERNELS):
            choose("fused", "auto", preset=preset)
    machine(gpu="no GPU")
    with pytest.raises(LddganError, match="fused on cuda: no GPU" if takes else KERNELS):
        choose("auto", "auto", "bf16", preset=preset)


def test_bf16_is_for_the_fused_engine_and_needs_no_graph(machine) -> None:
    machine(trt=None, fused=None)
    assert choose("auto", "auto", "bf16", ("fp32",)) == ("fused", "cuda", "bf16")
    for engine, device in [("trt", "auto"), ("ort", "auto"), ("torch", "cuda"), ("auto", "cpu")]:
        with pytest.raises(BadInput, match=r"^bf16 runs with --engine fused on --device cuda only"):
            choose(engine, device, "bf16")
    machine(trt=None, fused="no Triton")
    with pytest.raises(LddganError, match=r"^fused on cuda: no Triton"):
        choose("auto", "auto", "bf16")


def test_auto_passes_over_engines_the_bundle_has_no_graphs_for(machine) -> None:
    machine(trt=None)
    assert choose("auto", "auto", None, ("fp32",)) == ("trt", "cuda", "fp32")
    assert choose("auto", "auto", "fp16", ("fp32",)) == ("torch", "cuda", "fp16")
    machine(gpu="no GPU")
    with pytest.raises(
        LddganError,
        match=r"^fused on cuda, torch on cuda, torch-compile on cuda: no GPU; `",
    ):
        choose("auto", "auto", "fp16", ("fp32",))
    with pytest.raises(LddganError, match="nothing runs fp16 on cpu, the bundle holds fp32"):
        choose("auto", "cpu", "fp16", ("fp32",))


def test_an_engine_or_device_by_name_is_never_another(machine) -> None:
    machine()
    assert choose("torch", "auto", "fp32")[:2] == ("torch", "cuda")
    assert choose("auto", "cpu", "fp32")[:2] == ("openvino", "cpu")
    assert choose("ort", "cpu", "fp32")[:2] == ("ort", "cpu")
    machine(gpu="no GPU")
    assert choose("torch", "auto", "fp32")[:2] == ("torch", "cpu")
    with pytest.raises(LddganError, match="ort on cuda: no GPU"):
        choose("ort", "cuda", "fp32")
    machine(missing=("onnxruntime",), ort_cuda="onnxruntime is gone")
    with pytest.raises(LddganError, match="ort on cuda, ort on cpu: onnxruntime is gone"):
        choose("ort", "auto", "fp32")
    with pytest.raises(LddganError, match="the trt engine does not run on cpu"):
        choose("trt", "cpu", "fp32")


def test_nothing_that_runs_lists_every_cause(machine) -> None:
    machine(gpu="no GPU", missing=("torch", "openvino", "onnxruntime"))
    with pytest.raises(LddganError) as caught:
        choose("auto", "auto", "fp32")
    assert str(caught.value) == (
        "trt on cuda, trt-rtx on cuda, fused on cuda, ort on cuda, torch on cuda, "
        "torch-compile on cuda: no GPU; openvino on cpu: openvino is gone; "
        "ort on cpu: onnxruntime is gone; torch on cpu: torch is gone; "
        "`lddgan doctor` says what runs here"
    )


@pytest.mark.parametrize(
    ("causes", "said"),
    [({"gpu": "no GPU here"}, "no GPU here"), ({"trt": "not installed"}, "not installed")],
)
def test_trt_says_why_it_cannot_run(machine, tiny_bundle: Path, causes: dict, said: str) -> None:
    machine(**causes)
    with pytest.raises(LddganError, match=f"trt on cuda: {said}") as caught:
        open_engine(tiny_bundle, "trt")
    assert not isinstance(caught.value, BadInput)


def test_survey_has_every_engine_once_best_first(machine) -> None:
    machine(gpu="no GPU")
    found = list(survey())
    assert [candidate[:2] for candidate in found] == [
        ("trt", "cuda"),
        ("trt-rtx", "cuda"),
        ("fused", "cuda"),
        ("ort", "cuda"),
        ("torch", "cuda"),
        ("torch-compile", "cuda"),
        ("openvino", "cpu"),
        ("ort", "cpu"),
        ("torch", "cpu"),
    ]
    assert [c.why_not for c in found] == [*["no GPU"] * 6, None, None, None]


def test_unknown_names_are_refused(tiny_bundle: Path) -> None:
    for engine in ("onnx", "ORT"):
        with pytest.raises(BadInput, match=r"no engine '.*'; --engine is auto or trt, .*, torch"):
            open_engine(tiny_bundle, engine)
    for device in ("gpu", "cuda:0"):
        with pytest.raises(BadInput, match=r"device is .*, and is one of auto, cpu, cuda"):
            open_engine(tiny_bundle, "ort", device=device)


def test_torch_on_a_cpu_is_the_fp32_baseline_only(tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match=r"^fp16 runs with .* or torch or .*, and .*cpu only$"):
        open_engine(tiny_bundle, "torch", "fp16", "cpu")


def test_precision_that_the_bundle_lacks_is_refused(tiny_vq_bundle: Path) -> None:
    with pytest.raises(BadInput, match="holds fp32, not fp16"):
        open_engine(tiny_vq_bundle, "ort", "fp16", "cpu")


def test_streams_and_graphs_are_for_tensorrt(tiny_bundle: Path) -> None:
    for options in ({"stream": object()}, {"cuda_graph": False}):
        with pytest.raises(BadInput, match="the ort engine takes no stream and captures no CUDA"):
            open_engine(tiny_bundle, "ort", device="cpu", **options)


def test_description_says_what_runs(tiny_bundle: Path) -> None:
    ort = open_engine(tiny_bundle, "ort", "fp16", "cpu")
    assert ort.description == f"ort fp16 on CPU (ONNX Runtime {onnxruntime.__version__})"
    baseline = open_engine(tiny_bundle, "torch", device="cpu")
    assert baseline.description.startswith("torch fp32 on CPU (")
    assert ort.random_weights and baseline.random_weights


# ---- libraries that are not asked for, or broken ----


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a package that raises as it is imported in the place of the real one."""

    def put(package: str, source: str) -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(source)
        monkeypatch.delitem(sys.modules, package, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return put


@needs("openvino")
@pytest.mark.parametrize(
    "source", ["raise OSError('libcudnn.so.9: cannot\\nopen')", "raise ImportError('no symbol')"]
)
def test_a_library_that_cannot_be_loaded_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, broken, source: str
) -> None:
    monkeypatch.setattr(registry, "why_no_gpu", lambda: "no GPU")
    broken("torch", source)
    assert choose("auto", "auto")[:2] == ("openvino", "cpu")
    with pytest.raises(LddganError, match="torch on cpu: torch is installed but cannot be") as said:
        choose("torch", "cpu")
    assert "\n" not in str(said.value) and "install it again" in str(said.value)
    assert len(list(survey())) == 9


def test_onnxruntime_that_lost_parts_is_one_sentence(broken) -> None:
    broken("onnxruntime", "")
    with pytest.raises(LddganError, match="ort on cpu: parts of the installed onnxruntime are"):
        choose("ort", "cpu")
    assert "--force-reinstall --no-deps onnxruntime-gpu" in str(ort.why_not("cuda"))


def test_a_choice_looks_at_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(registry, "why_no_gpu", lambda: asked.append("gpu"))
    monkeypatch.setattr(
        registry,
        "find_engine",
        lambda name: replace(
            find_engine(name), why_not=lambda device: asked.append((name, device))
        ),
    )
    assert choose("ort", "cpu")[:2] == ("ort", "cpu")
    assert asked == [("ort", "cpu")]
    asked.clear()
    assert choose("auto", "auto")[:2] == ("trt", "cuda")
    assert asked == ["gpu", ("trt", "cuda")]


# ---- ONNX Runtime that leaves the GPU in silence ----


@pytest.fixture
def session_class(monkeypatch: pytest.MonkeyPatch):
    """Puts a class in the place of InferenceSession; preload_dlls complains as the real one."""

    def put(kind: type) -> None:
        fake = types.SimpleNamespace(
            InferenceSession=kind,
            SessionOptions=onnxruntime.SessionOptions,
            capi=onnxruntime.capi,
            preload_dlls=lambda: print("Failed to load libcublas.so.13"),
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)

    return put


class FallsBack:
    asked: ClassVar[list[Any]] = []

    def __init__(self, path, options, providers, enable_fallback) -> None:
        self.asked.append((*providers, enable_fallback))

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_session_that_fell_back_to_the_cpu_is_refused(session_class, tmp_path, capsys) -> None:
    session_class(FallsBack)
    with pytest.raises(LddganError, match="CUDAExecutionProvider: it could not load its CUDA lib"):
        ort.open_session(tmp_path / "x.onnx", "cuda", "fp32")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Failed to load libcublas.so.13\n")
    ort.open_session(tmp_path / "x.onnx", "cpu", "fp32")
    assert capsys.readouterr().err == ""
    cuda = {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"}
    assert FallsBack.asked == [
        (("CUDAExecutionProvider", cuda), False),
        (("CPUExecutionProvider", {}), False),
    ]


def test_tf32_is_for_fp16_to_use() -> None:
    assert "use_tf32" not in ort.provider_options("cuda", "fp16")
    assert ort.provider_options("cuda", "fp32")["use_tf32"] == "0"


def test_a_provider_that_fails_is_no_bad_file(session_class, tmp_path: Path) -> None:
    class Fails:
        def __init__(self, *_, **__) -> None:
            raise RuntimeError("CUDA failure 35: the driver is insufficient\nat cuda_call.cc")

    session_class(Fails)
    with pytest.raises(
        LddganError, match=r"CUDAExecutionProvider: CUDA failure 35.*; install a"
    ) as said:
        ort.open_session(tmp_path / "x.onnx", "cuda", "fp32")
    assert not isinstance(said.value, BadInput) and "\n" not in str(said.value)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="onnxruntime-gpu is installed",
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cpu_package_asked_for_cuda_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(LddganError, match="could not start its CUDAExecutionProvider"):
        ort.open_session(tiny_bundle / "decoder.fp32.onnx", "cuda", "fp32")


def test_cpu_packages_on_a_gpu_machine_say_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert str(ort.why_not("cuda")).endswith(
        "pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu"
    )
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPU"]
    )
    assert ort.why_not("cuda") is None


@needs("openvino")
def test_choosing_without_a_gpu_imports_what_is_chosen_only(tmp_path: Path) -> None:
    program = (
        "import sys, engine.registry as s; s.choose('auto', 'auto'); "
        "print(sorted({'torch', 'tensorrt', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['openvino']\n", done.stderr
