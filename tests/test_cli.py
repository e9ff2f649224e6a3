"""The command line as a user meets it: outputs, exit codes, one-sentence errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import cli
from export.bundle import DIGITS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "PIL", "rich", "pydantic", "sklearn")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def lddgan(monkeypatch, capsys, tmp_path):  # type: ignore[no-untyped-def]
    """Runs `lddgan ARGS` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lddgan", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


def refused(outcome: Outcome, *words: str, code: int = 2) -> None:
    """The command failed with `code` and one short error holding `words`."""
    assert outcome.code == code, outcome
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in errors[0]


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_every_command_explains_itself(lddgan) -> None:
    commands = (
        "presets",
        "doctor",
        "import",
        "train-autoencoder",
        "train",
        "export",
        "build",
        "verify",
        "sample",
        "serve",
        "bench",
    )
    for command in commands:
        outcome = lddgan(command, "--help")
        assert outcome.code == 0
        assert "Usage: lddgan" in outcome.out


def test_dataset_check_lists_what_is_bad(lddgan, tmp_path: Path) -> None:
    for name in ("good", "small"):
        Image.new("RGB", (32, 32) if name == "good" else (31, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.jpg").write_bytes(b"")
    outcome = lddgan("dataset", "check", tmp_path, "--dataset", "cifar10")
    cut, small, *table, last = outcome.out.splitlines()
    assert outcome.code == 1 and len(table) == 4
    assert cut == f"{tmp_path / 'cut.jpg'} is empty"
    assert small == f"{tmp_path / 'small.png'} is 31x40, smaller than 32x32"
    assert last == f"{tmp_path}: 3 images, 2 bad"
    for name in ("small.png", "cut.jpg"):
        (tmp_path / name).unlink()
    assert lddgan("dataset", "check", tmp_path, "--size", 32).code == 0
    refused(lddgan("dataset", "check", tmp_path / "none"), "none does not exist")


def test_the_three_forms_hold_the_same_images(lddgan, tiny_bundle) -> None:
    common = ("--bundle", tiny_bundle, "--engine", "ort", "--num", 5, "--seed", 3)
    for out, batch in (("a.npz", 5), ("folder", 2), ("grid.png", 3)):
        assert lddgan("sample", *common, "--batch", batch, "--out", out).code == 0
    images = np.load("a.npz")["images"].astype(int)
    names = [f"{index:06d}.png" for index in range(5)]
    assert sorted(os.listdir("folder")) == [*names, "sampling.json"]
    singles = np.stack([np.asarray(Image.open(Path("folder") / name)) for name in names])
    assert np.abs(singles - images).max() <= 1
    grid = np.asarray(Image.open("grid.png"))[2:66:2, 2:66:2]  # the first tile, enlarged twice
    assert np.abs(grid - images[0]).max() <= 1


def test_first_continues_a_set(lddgan, tiny_bundle) -> None:
    common = ("sample", "--bundle", tiny_bundle, "--seed", 1)
    lddgan(*common, "--num", 4, "--out", "all.npz")
    lddgan(*common, "--num", 2, "--first", 2, "--out", "rest.npz")
    whole, rest = (np.load(name)["images"].astype(int) for name in ("all.npz", "rest.npz"))
    assert np.abs(whole[2:] - rest).max() <= 1


def test_output_names_the_engine_and_warns_of_random_weights(lddgan, tiny_bundle) -> None:
    outcome = lddgan("sample", "--bundle", tiny_bundle, "--num", 1, "--out", "x.png")
    assert "ort fp32 on CPU" in outcome.out
    assert "images/s" in outcome.out
    assert "random weights" in outcome.err


def test_trt_says_why_it_cannot_run(lddgan, tiny_bundle) -> None:
    outcome = lddgan("sample", "--bundle", tiny_bundle, "--engine", "trt")
    refused(outcome, "trt", code=1)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--num", 0), ("num is 0",)),
        (("--num", -5), ("num is -5",)),
        (("--batch", 0), ("batch is 0",)),
        (("--seed", -1), ("seed is -1", "2^63-1")),
        (("--seed", 2**63), ("seed is 9223372036854775808",)),
        (("--first", 2**63 - 1, "--num", 2), ("2^63",)),
        (("--out", "x.jpg"), ("x.jpg", ".png")),
        (("--engine", "torch", "--device", "cpu", "--precision", "fp16"), ("fp16",)),
    ],
)
def test_bad_requests_to_sample(lddgan, tiny_bundle, args, words) -> None:
    refused(lddgan("sample", "--bundle", tiny_bundle, *args), *words)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("args", [("--seed", "abc"), ("--seed", "1.5"), ("--engine", "xyz")])
def test_what_is_no_number_or_choice_is_a_usage_error(lddgan, args) -> None:
    outcome = lddgan("sample", *args)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_a_folder_with_other_files_is_not_touched(lddgan, tiny_bundle) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    refused(lddgan("sample", "--bundle", tiny_bundle, "--out", "mine"), "mine", "other files")
    assert os.listdir("mine") == ["notes.txt"]


def test_unknown_data_set_names_the_known_ones(lddgan) -> None:
    refused(lddgan("export", "--dataset", "imagenet"), "imagenet", "cifar10, celeba_256, lsun")
    refused(lddgan("sample", "--dataset", "lsun"), "lddgan export --dataset lsun")


def test_a_changed_bundle_is_refused(lddgan, tiny_bundle) -> None:
    shutil.copytree(tiny_bundle, "bundle")
    graph = Path("bundle/decoder.fp32.onnx")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    refused(lddgan("sample", "--bundle", "bundle"), "decoder.fp32.onnx", "sha256")


def test_export_of_a_checkpoint_and_of_the_wrong_data_set(lddgan, tiny_model) -> None:
    from lddgan.checkpoint import save_checkpoint

    save_checkpoint("tiny.safetensors", tiny_model)
    refused(lddgan("export", "--dataset", "lsun", "--checkpoint", "tiny.safetensors"), "tiny model")
    refused(lddgan("export", "--checkpoint", "gone.safetensors"), "gone.safetensors")
    refused(lddgan("export"), "--dataset")
    outcome = lddgan("export", "--checkpoint", "tiny.safetensors", "--precision", "none")
    assert outcome.code == 0, outcome.err
    linked = Path("exports/tiny/model.safetensors")
    assert linked.samefile("tiny.safetensors")
    assert lddgan("sample", "--num", 1).err.startswith("using the bundle exports/tiny")


def test_bench_prints_a_row(lddgan, tiny_bundle) -> None:
    outcome = lddgan("bench", "--bundle", tiny_bundle, "--batch", 3, "--trials", 2, "--json")
    assert outcome.code == 0, outcome.err
    row, baseline = map(json.loads, outcome.out.splitlines())
    assert (row["batch"], baseline["engine"]) == (3, "torch")
    assert row["baseline_ms"] == baseline["ms"]["whole"]["p50"]
    assert lddgan("bench", "--bundle", tiny_bundle, "--batch", 2, "--trials", 2).code == 0
    assert lddgan("bench", "--bundle", tiny_bundle, "--batch", 0).code == 2


def test_doctor_and_presets_in_json(lddgan) -> None:
    engines = json.loads(lddgan("doctor", "--json").out)["engines"]
    assert any(one["engine"] == "ort" and one["why_not"] is None for one in engines)
    presets = {one["name"]: one for one in json.loads(lddgan("presets", "--json").out)}
    assert {"cifar10", "celeba_256", "lsun", "digits", "ddgan-lsun", "vit-tiny"} < presets.keys()
    assert presets["wddgan-lsun"]["autoencoder"]["bands"] == ["LL", "HL", "LH", "HH"]


def test_a_bundle_without_graphs_is_run_by_torch(lddgan, monkeypatch) -> None:
    weights = DIGITS / "model.safetensors"
    with monkeypatch.context() as without:
        for missing in ("onnx", "onnxscript", "onnxruntime"):
            without.setitem(sys.modules, missing, None)
        done = lddgan("export", "--checkpoint", weights, "--precision", "none", "--out", "bare")
    assert done.code == 0, done.err
    assert "published without graphs, for --engine torch and fused" in done.out
    assert {path.name for path in Path("bare").iterdir()} == {"manifest.json", weights.name}
    bundle = ("--bundle", "bare", "--device", "cpu")
    made = lddgan("sample", *bundle, "--num", 2, "--out", "two.npz")
    assert made.code == 0 and "torch fp32 on CPU" in made.out, made.err
    assert "bare holds no graphs: torch and fused run it" in made.err
    measured = lddgan("bench", *bundle, "--batch", 2, "--trials", 1, "--json").out
    row = json.loads(measured.splitlines()[0])
    assert row["engine"] == "torch" and "verification" not in row
    found = lddgan("verify", *bundle, "--num", 2, "--json")
    assert found.code == 0 and json.loads(found.out)["why_failed"] is None, found.err
    asked = lddgan("sample", "--bundle", "bare", "--engine", "ort")
    refused(asked, "holds a checkpoint without graphs, not fp32; run `lddgan export --checkpoint")


def test_random_weights_do_not_replace_a_trained_bundle(lddgan, tiny_model) -> None:
    from dataclasses import replace

    from export.exporter import refuse_loss
    from lddgan.errors import BadInput

    shutil.copytree(DIGITS, "trained")
    with pytest.raises(BadInput, match="trained holds a trained model"):
        refuse_loss(tiny_model, Path("trained"))
    refuse_loss(replace(tiny_model, provenance={}), Path("trained"))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_of_a_training(lddgan, seed) -> None:
    refused(lddgan("train-autoencoder", "--dataset", "digits", "--seed", seed), f"seed is {seed}")


# ---- TensorRT, where there is no GPU ----


@pytest.fixture
def _no_gpu(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")


@pytest.mark.usefixtures("_no_gpu")
def test_build_says_why_it_cannot_and_what_could(lddgan) -> None:
    outcome = lddgan("build", "--dataset", "digits", "--engine", "trt")
    refused(
        outcome,
        "TensorRT builds on the GPU that is to run the engine",
        "no NVIDIA GPU: no driver is installed here",
        "`lddgan build --engine trt-rtx` can build engines for GeForce RTX cards without one",
        code=1,
    )


@pytest.mark.skipif(find_spec("tensorrt_rtx") is not None, reason="tensorrt_rtx is installed")
@pytest.mark.usefixtures("_no_gpu")
def test_rtx_without_its_package_says_how_to_get_it(lddgan) -> None:
    outcome = lddgan("build", "--dataset", "digits", "--engine", "trt-rtx")
    refused(outcome, "tensorrt_rtx is not installed; pip install tensorrt-rtx", code=1)


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("command", ["sample", "bench", "verify"])
def test_an_engine_that_cannot_run_says_why(lddgan, command: str) -> None:
    outcome = lddgan(command, "--dataset", "digits", "--engine", "trt")
    refused(outcome, "trt on cuda: no NVIDIA GPU: no driver", "`lddgan doctor`", code=1)


@pytest.mark.parametrize("batch", ["1,2", "0,1,2", "1,2,128", "4,2,8", "x"])
def test_a_profile_that_cannot_be_is_refused(lddgan, batch: str) -> None:
    outcome = lddgan("build", "--dataset", "digits", "--batch", batch)
    refused(outcome, "is not MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX <= 127")


def test_help_of_build_names_the_defaults(lddgan) -> None:
    from engine.backends.trt.build import BuildOptions

    options = BuildOptions(precision="fp16")
    words = " ".join(lddgan("build", "--help").out.split())
    assert f"batches {options.profile}, level {options.level}" in words


def test_verify_passes_and_writes_json(lddgan, tiny_bundle) -> None:
    common = ("verify", "--bundle", tiny_bundle, "--engine", "ort", "--num", 3)
    outcome = lddgan(*common)
    assert outcome.code == 0 and outcome.out.endswith("passed\n")
    found = json.loads(lddgan(*common, "--json").out)
    assert (found["images"], found["why_failed"], found["noise_identical"]) == (3, None, True)


def test_images_of_a_file_are_verified(lddgan, tiny_bundle) -> None:
    common = ("--bundle", tiny_bundle, "--engine", "ort", "--device", "cpu")
    assert lddgan("sample", *common, "--num", 3, "--seed", 4, "--out", "three.npz").code == 0
    check = ("verify", "--bundle", tiny_bundle, "--images", "three.npz")
    done = lddgan(*check)
    assert done.code == 0 and "against torch fp32 on CPU" in done.out and "passed" in done.out
    by_ort = json.loads(lddgan(*check, "--engine", "ort", "--json").out)
    assert (by_ort["chain_levels"], by_ort["chain_psnr"]) == (0, "Infinity")
    refused(lddgan(*check, "--num", 3), "--images compares all images of the file")
    refused(lddgan("verify", "--images", "three.npz"), "three.npz was made of another model")


def test_a_graph_is_captured_by_tensorrt_only(lddgan, tiny_bundle) -> None:
    for command in ("bench", "sample", "verify"):
        outcome = lddgan(command, "--bundle", tiny_bundle, "--engine", "ort", "--no-cuda-graph")
        refused(outcome, "the ort engine takes no stream and captures no CUDA graph")


@pytest.mark.parametrize(("given", "used"), [(None, "PCI_BUS_ID"), ("FASTEST_FIRST",) * 2])
def test_gpus_are_numbered_as_nvidia_smi_does_unless_told(
    lddgan, monkeypatch, given: str | None, used: str
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", given)
    lddgan("presets")
    assert os.environ["CUDA_DEVICE_ORDER"] == used


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")]
)
def test_memory_that_runs_out_is_one_sentence(lddgan, monkeypatch, error: Exception) -> None:
    def full() -> None:
        raise error

    monkeypatch.setattr("engine.doctor.examine", full)
    refused(lddgan("doctor"), "memory ran out; ask for less at once", code=1)
