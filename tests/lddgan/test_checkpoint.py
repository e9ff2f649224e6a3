"""Our checkpoints: what is saved comes back bit for bit, what is damaged is refused."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from lddgan import checkpoint
from lddgan.checkpoint import (
    Model,
    build_model,
    load_checkpoint,
    random_model,
    random_tensor,
    save_checkpoint,
)
from lddgan.errors import BadInput, LddganError
from lddgan.files import sha256_of_file
from lddgan.presets import get_preset
from tests.published_files import network_state, same_state, tiny_preset
from tests.reference.weights import value

ROOT = Path(__file__).parents[2]
PROVENANCE = {"source": "a test", "notes": ["ü", "\N{SNOWMAN}"], "left_out": {"loss.": 3}}


def tiny_model() -> Model:
    preset = tiny_preset()
    states = (network_state(preset, part) for part in ("generator", "autoencoder"))
    return build_model(preset, *states, PROVENANCE)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture
def path(model: Model, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model.safetensors", model)


def assert_same(found: Model, expected: Model) -> None:
    assert found.preset == expected.preset
    assert found.provenance == expected.provenance
    assert same_state(found.generator, expected.generator.state_dict())
    assert same_state(found.autoencoder, expected.autoencoder.state_dict())


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, torch.Tensor]], None]) -> None:
    """Save a checkpoint again with its metadata or tensors changed."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)


# ---- round trip ----


def test_round_trip_is_bit_exact(model: Model, path: Path) -> None:
    again = load_checkpoint(path)
    assert_same(again, model)
    assert not again.generator.training
    assert not any(p.requires_grad for p in again.generator.parameters())
    assert load_checkpoint(str(path)).preset == model.preset


@torch.no_grad()
def test_loaded_model_computes_the_same(model: Model, path: Path) -> None:
    again = load_checkpoint(path)
    torch.manual_seed(0)
    x, z = torch.randn(2, *model.preset.latent_shape), torch.randn(2, model.preset.generator.nz)
    t = torch.tensor([1, 3])
    assert torch.equal(again.generator(x, t, z), model.generator(x, t, z))
    assert torch.equal(again.decode(x), model.decode(x))
    image = torch.rand(1, *model.preset.image_shape)
    assert torch.equal(again.encode(image), model.encode(image))
    assert float(again.decode(100 * x).abs().max()) <= 1


def test_a_checkpoint_is_deterministic_up_to_its_header_order(
    model: Model, path: Path, tmp_path: Path
) -> None:
    other = save_checkpoint(tmp_path / "other.safetensors", model)
    assert other.stat().st_size == path.stat().st_size
    assert_same(load_checkpoint(other), load_checkpoint(path))


def test_folders_are_made_and_nothing_is_left_behind(model: Model, tmp_path: Path) -> None:
    target = save_checkpoint(tmp_path / "a" / "b c" / "ü.safetensors", model)
    assert [p.name for p in target.parent.iterdir()] == ["ü.safetensors"]
    assert_same(load_checkpoint(target), model)


def test_scale_factor_is_applied(model: Model) -> None:
    scaled = Model(tiny_preset(scale_factor=7.0), model.generator, model.autoencoder)
    x = torch.randn(1, *model.preset.latent_shape)
    assert torch.equal(scaled.decode(x), model.decode(7 * x))
    image = torch.rand(1, *model.preset.image_shape)
    assert torch.allclose(scaled.encode(image), model.encode(image) / 7)


# ---- random weights ----


def test_random_weights_follow_the_rule_of_the_recorded_cases() -> None:
    for name, shape in (
        ("all_modules.3.Conv_0.weight", (8, 4, 3, 3)),
        ("all_modules.3.GroupNorm_0.style.weight", (8, 5)),
        ("all_modules.3.GroupNorm_0.style.bias", (8,)),
        ("all_modules.5.NIN_0.W", (6, 6)),
        ("all_modules.5.GroupNorm_0.weight", (6,)),
        ("quantize.embedding.weight", (9, 3)),
        ("encoder.conv_in.bias", (9,)),
    ):
        assert (random_tensor(name, shape) == value(name, shape)).all()


def test_random_models_say_so() -> None:
    random = random_model(tiny_preset())
    assert random.has_random_weights
    assert_same(random_model(tiny_preset()), random)
    assert not tiny_model().has_random_weights


# ---- files that are wrong ----


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.9999])
def test_cut_files_are_refused(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput, match=r"model\.safetensors .* is not a whole safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize("tail", [b"\0", b"x" * 1000])
def test_trailing_bytes_are_refused(path: Path, tail: bytes) -> None:
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        load_checkpoint(path)


def test_a_flipped_bit_of_a_weight_is_noticed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="has changed since it was written"):
        load_checkpoint(path)


def test_unreadable_by_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=r"cannot read .*: Permission denied"):
        load_checkpoint(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for name in ("nothing.safetensors", "."):
        with pytest.raises(BadInput, match="does not exist or is not a file"):
            load_checkpoint(tmp_path / name)


def test_a_renamed_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {trace}",)

    torch.save({"generator.x": Bomb()}, tmp_path / "renamed.safetensors")
    with pytest.raises(BadInput, match=r"is not an lddgan checkpoint.*need `lddgan import`"):
        load_checkpoint(tmp_path / "renamed.safetensors")
    assert not trace.exists()


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9])
def test_absurd_header_lengths_are_refused(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        load_checkpoint(path)


def test_other_safetensors_files_are_refused(path: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="is not an lddgan checkpoint"):
        load_checkpoint(tmp_path / "other.safetensors")
    rewrite(path, lambda metadata, _: metadata.update(format="lddgan-checkpoint-2"))
    with pytest.raises(BadInput, match="is not an lddgan checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "preset", ["", "{}", "[1]", '{"name": "x"}', get_preset("lsun").model_dump_json()[:-9]]
)
def test_unreadable_presets_are_refused(path: Path, model: Model, preset: str) -> None:
    unreadable = SimpleNamespace(model_dump_json=lambda: preset)
    save_checkpoint(path, dataclasses.replace(model, preset=unreadable))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"carries no readable preset: .*$"):
        load_checkpoint(path)


def test_every_entry_of_the_metadata_is_needed(path: Path) -> None:
    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        entries = list(file.metadata())
    for entry in entries:
        path.write_bytes(content)
        rewrite(path, lambda metadata, _, entry=entry: metadata.pop(entry))
        with pytest.raises(BadInput):
            load_checkpoint(path)


def test_the_preset_must_fit_the_tensors(path: Path, model: Model) -> None:
    save_checkpoint(path, dataclasses.replace(model, preset=get_preset("digits")))
    with pytest.raises(BadInput, match=r"the generator has \d+ tensors"):
        load_checkpoint(path)


def resaved(path: Path, part: str, change: Callable[[dict], None]) -> None:
    """A file whose sha256 is right and whose tensors are not."""
    broken = tiny_model()
    network = getattr(broken, part)
    state = dict(network.state_dict())
    change(state)
    network.state_dict = lambda: state
    save_checkpoint(path, broken)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "generator",
            lambda s: s.pop("all_modules.0.weight"),
            "the generator has 1 tensors missing: all_modules.0.weight",
        ),
        (
            "autoencoder",
            lambda s: [s.pop(k) for k in list(s)[:7]],
            "the autoencoder has 7 tensors missing: encoder.conv_in.weight, .* and 2 more",
        ),
        (
            "generator",
            lambda s: s.update(extra=torch.zeros(1)),
            "the generator has 1 tensors unexpected: extra",
        ),
        (
            "generator",
            lambda s: s.update({"all_modules.0.bias": torch.zeros(3)}),
            r"the generator has 1 tensors misshapen: all_modules.0.bias is \[3\], not \[64\]",
        ),
        *(
            (
                "autoencoder",
                lambda s, bad=bad: s.update({"decoder.conv_out.bias": torch.tensor([0, bad, 0])}),
                "the autoencoder has 1 tensors with NaN or Inf: decoder.conv_out.bias",
            )
            for bad in (torch.nan, torch.inf)
        ),
    ],
)
def test_wrong_tensors_are_named(
    tmp_path: Path, part: str, change: Callable[[dict], None], message: str
) -> None:
    resaved(tmp_path / "broken.safetensors", part, change)
    with pytest.raises(BadInput, match=message):
        load_checkpoint(tmp_path / "broken.safetensors")


# ---- bytes changed at random ----


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Model, Path]:
    model = tiny_model()
    path = save_checkpoint(tmp_path_factory.mktemp("fuzz") / "m.safetensors", model)
    return path.read_bytes(), model, path


@settings(deadline=None, derandomize=True, database=None, max_examples=120)
@given(data=st.data())
def test_changed_bytes_give_bad_input_or_the_same_model(
    data: st.DataObject, original: tuple[bytes, Model, Path]
) -> None:
    content, model, path = bytearray(original[0]), original[1], original[2]
    header = 8 + int.from_bytes(content[:8], "little")
    end = header if data.draw(st.integers(0, 3)) else len(content) - 1  # mostly in the header
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(content)
    try:
        found = load_checkpoint(path)
    except BadInput:
        return
    assert_same(found, model)


def replaced(path: Path, old: bytes, new: bytes) -> None:
    """Change one place of a file without changing its length."""
    content = path.read_bytes()
    assert old in content
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'\\"steps\\":4', b'\\"steps\\":3'),
        (b'\\"scale_factor\\":1.0', b'\\"scale_factor\\":9.0'),
        (b"a test", b"A TEST"),
        (b'"dtype":"F32"', b'"dtype":"I32"'),
        (b'"shape":[64,16]', b'"shape":[16,64]'),
    ],
    ids=["steps", "scale factor", "provenance", "dtype", "shape"],
)
def test_a_change_in_the_header_is_noticed(path: Path, old: bytes, new: bytes) -> None:
    replaced(path, old, new)
    with pytest.raises(BadInput):
        load_checkpoint(path)


def test_tensors_of_neither_network_are_refused(path: Path) -> None:
    def add(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
        tensors["spare.weight"] = torch.zeros(1)
        del metadata["sha256"]
        metadata["sha256"] = checkpoint.sha256_of_content(metadata, tensors)

    rewrite(path, add)
    with pytest.raises(BadInput, match=r"a tensor of neither network: spare\.weight"):
        load_checkpoint(path)


# ---- disks that do not take it ----

LIMITED = """
    import resource, signal, sys
    from lddgan.checkpoint import load_checkpoint, save_checkpoint
    from lddgan.errors import BadInput, LddganError

    model = load_checkpoint(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (0, 1000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save_checkpoint(sys.argv[1], model)
        except LddganError as error:
            print(type(error).__name__, error)
"""


def test_a_full_disk_leaves_the_previous_file(path: Path) -> None:
    before = sha256_of_file(path)
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 3 * f"LddganError cannot write {path}: File too large\n"
    assert sha256_of_file(path) == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_target_that_cannot_be_written(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(LddganError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "m.safetensors", model)
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(LddganError, match="cannot write"):
        save_checkpoint(tmp_path / "m.safetensors", model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.safetensors"]


def test_provenance_must_be_plain_data(model: Model, path: Path) -> None:
    before = sha256_of_file(path)
    odd = Model(model.preset, model.generator, model.autoencoder, {"when": object()})
    with pytest.raises(TypeError):
        save_checkpoint(path, odd)
    assert sha256_of_file(path) == before
    assert json.loads(json.dumps(PROVENANCE)) == load_checkpoint(path).provenance
