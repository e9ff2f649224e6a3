"""Published files that are refused: wrong tensors, other files, code."""

import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lddgan.checkpoint import save_checkpoint
from lddgan.errors import BadInput
from lddgan.published.reader import fit, import_published, plain_floats
from lddgan.published.shapes import Part
from tests import published_files as files
from tests.published_files import Tiny, tiny_preset

# ---- tensors that are wrong ----


def test_missing_tensors_are_named(tiny: Tiny) -> None:
    names = [name for name in tiny.state if name.endswith("Conv_1.weight")]
    state = {name: tensor for name, tensor in tiny.state.items() if name not in names}
    tiny.refuses_generator(state, f"{len(names)} tensors missing", names[0], names[4])
    del tiny.state["all_modules.0.weight"]
    tiny.refuses_generator(tiny.state, "1 tensors missing: all_modules.0.weight")


def test_tensors_of_every_kind_are_needed(tiny: Tiny) -> None:
    path = Path("cut.pth")
    parts: dict[Part, files.State] = {"generator": tiny.state, "autoencoder": tiny.autoencoder}
    for part, whole in parts.items():
        for name in list(whole)[::7]:
            state = {k: torch.zeros(()).expand(v.shape) for k, v in whole.items() if k != name}
            with pytest.raises(BadInput, match=f"cut.pth .*{re.escape(name)}"):
                plain_floats(fit(tiny.preset, state, part, path), state, part, path)


def test_extra_tensors_are_named(tiny: Tiny) -> None:
    extra = {f"all_modules.5.extra_{i}": torch.zeros(1) for i in range(7)}
    tiny.refuses_generator(tiny.state | extra, "7 tensors unexpected", "extra_4 and 2 more")
    path = files.kl_file(
        tiny.folder / "a.ckpt", tiny.autoencoder | {"lossy.weight": torch.zeros(1)}
    )
    tiny.refuses("1 tensors unexpected: lossy.weight", autoencoder=path)
    state = files.prefixed("first_stage_model.", tiny.autoencoder) | {
        "adapter.weight": torch.zeros(1)
    }
    path = files.lightning_file(tiny.folder / "a.ckpt", state)
    tiny.refuses("unknown purpose: adapter.weight", autoencoder=path)


def test_misshapen_tensors_are_named(tiny: Tiny) -> None:
    for name in ("all_modules.1.weight", "all_modules.2.weight", "z_transform.1.weight"):
        wrong = tiny.state | {name: torch.zeros(3, 3, 3)}
        tiny.refuses_generator(wrong, f"1 tensors misshapen: {name} is [3, 3, 3]")
    wrong = tiny.state | {"all_modules.0.bias": torch.zeros(3)}
    tiny.refuses_generator(wrong, "all_modules.0.bias is [3], not [64]")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_named(tiny: Tiny, bad: float) -> None:
    tiny.state["all_modules.4.Conv_0.weight"][0, 0, 0, 0] = bad
    tiny.refuses_generator(tiny.state, "1 tensors with NaN or Inf: all_modules.4.Conv_0.weight")
    too_large = tiny.state | {"z_transform.1.bias": torch.full((24,), 1e300, dtype=torch.float64)}
    tiny.refuses_generator(too_large, "NaN or Inf")


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(64, dtype=torch.int64),
        torch.zeros(64, dtype=torch.complex64),
        torch.zeros(64).to_sparse(),
        torch.zeros(64, device="meta"),
    ],
    ids=["integer", "complex", "sparse", "meta"],
)
def test_tensors_that_are_no_plain_floats_are_named(tiny: Tiny, odd: torch.Tensor) -> None:
    tiny.refuses_generator(tiny.state | {"all_modules.0.bias": odd}, "all_modules.0.bias")


# ---- files that are something else ----


def test_files_given_for_each_other(tiny: Tiny) -> None:
    tiny.refuses("the autoencoder, given as the generator", "swapped", generator=tiny.ckpt)
    tiny.refuses("the generator, given as the autoencoder", "swapped", autoencoder=tiny.netg)
    content = files.content_file(tiny.folder / "content.pth", tiny.state, tiny.state)
    tiny.refuses("the generator, given as the autoencoder", autoencoder=content)
    netd = files.netg_file(tiny.folder / "netD.pth", {"start_conv.weight": torch.zeros(1)})
    tiny.refuses("netD.pth holds no generator: its tensors are start_conv.weight", generator=netd)
    tiny.refuses("unknown data set 'lsum'", dataset="lsum")


def test_files_that_hold_no_state_dict(tiny: Tiny) -> None:
    path = tiny.folder / "x.pth"
    for content, fragment in (
        (torch.zeros(3), "holds a Tensor"),
        ({}, "no tensors"),
        ({"state_dict": 3}, "no state dict: not tensors: state_dict"),
        ({"model": {"w": torch.zeros(1)}, "epoch": 3}, "holds no generator: its tensors are w"),
        ({3: torch.zeros(1)}, "not tensors: 3"),
        ({"fc.\n\x1b[31m": torch.zeros(1)}, r"its tensors are fc.\n\x1b[31m"),
        ({"fc.weight": torch.zeros(1)}, "holds no generator: its tensors are fc.weight"),
    ):
        torch.save(content, path)
        tiny.refuses("x.pth", fragment, generator=path)


def test_missing_empty_and_foreign_files(tiny: Tiny) -> None:
    path = tiny.folder / "x.pth"
    tiny.refuses("x.pth does not exist or is not a file", generator=path)
    tiny.refuses("is not a file", generator=tiny.folder)
    for data, fragment in (
        (b"", "empty (0 bytes): download it again"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page, not a checkpoint: download it again"),
        (b"\xef\xbb\xbf<HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (os.urandom(5000), "no checkpoint"),
        (b"PK\x03\x04 but nothing else", "damaged, cut"),
        (b"just words\n" * 20, "no checkpoint"),
        (b"\x80", "no checkpoint"),
        (b"\x80\x02h\x65.", "end or break off where torch expects more; download"),  # KeyError: 101
    ):
        path.write_bytes(data)
        tiny.refuses("x.pth", fragment, generator=path)


def test_archives_are_to_be_unpacked(tiny: Tiny) -> None:
    path = tiny.folder / "celeba.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tiny.ckpt, "model.ckpt")
    tiny.refuses("zip archive of model.ckpt: unpack it", autoencoder=path)
    with tarfile.open(tiny.folder / "a.tar", "w") as archive:
        archive.add(tiny.ckpt, "model.ckpt")
    tiny.refuses("tar", "unpack it", autoencoder=tiny.folder / "a.tar")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_is_no_checkpoint(tiny: Tiny) -> None:
    path = tiny.folder / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    tiny.refuses("TorchScript", generator=path)


def test_our_own_checkpoint_needs_no_import(tiny: Tiny) -> None:
    path = save_checkpoint(tiny.folder / "m.safetensors", tiny.load())
    tiny.refuses("already", "needs no import", generator=path)
    renamed = path.rename(tiny.folder / "netG.pth")
    tiny.refuses("already", generator=renamed)


def test_unreadable_by_permission(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    tiny.refuses("cannot read", "netG_1.pth: Permission denied")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_cut_files(tiny: Tiny, share: float) -> None:
    data = tiny.netg.read_bytes()
    tiny.netg.write_bytes(data[: int(len(data) * share)])
    tiny.refuses("netG_1.pth", "damaged, cut")
    torch.save(tiny.state, tiny.netg, _use_new_zipfile_serialization=False)
    data = tiny.netg.read_bytes()
    tiny.netg.write_bytes(data[: int(len(data) * share)])
    tiny.refuses("netG_1.pth", "damaged, cut")


def test_memory_that_runs_out_is_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", Mock(side_effect=MemoryError))
    tiny.refuses("netG_1.pth", "needs more memory than there is, or is damaged")


# ---- files that want to run something ----


class Bomb:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Evaluated(Bomb):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').system({self.command!r})",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4", "pickle 5"])
@pytest.mark.parametrize(("bomb", "name"), [(Bomb, "system"), (Evaluated, "eval")])
def test_code_in_a_file_is_refused_and_never_run(
    tiny: Tiny, kind: str, bomb: type[Bomb], name: str
) -> None:
    trace = tiny.folder / "trace"
    state = tiny.state | {"all_modules.99.weight": bomb(f"touch {trace}")}
    path = tiny.folder / "bomb.pth"
    if kind.startswith("pickle"):
        path.write_bytes(
            pickle.dumps({"state_dict": state["all_modules.99.weight"]}, int(kind[-1]))
        )
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    # torch reads protocol 2 alone, and names nothing of the others
    is_read = kind in ("zip", "legacy", "pickle 2")
    said = ("asks to run", name, "nothing was run") if is_read else ("no checkpoint",)
    tiny.refuses("bomb.pth", *said, generator=path)
    tiny.refuses("bomb.pth", *said, autoencoder=path)
    assert not trace.exists()


def test_allowed_names_run_nothing(tiny: Tiny) -> None:
    """Every name on the list, called with anything and given any state, is inert."""
    from lddgan.published.pickles import Inert, allowed_globals

    for stand_in, name in allowed_globals():  # type: ignore[misc]
        built = stand_in() if name == "argparse.Namespace" else stand_in("rm -rf /", 3, [])
        assert isinstance(built, Inert) or not vars(built), name
    with files.foreign_classes("some.package.Config") as foreign:
        torch.save({"state_dict": tiny.state, "config": foreign["Config"]()}, tiny.netg)
    tiny.refuses("'some.package.Config'", "refused")


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(data=st.data())
def test_changed_bytes_give_a_model_or_bad_input(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "netG.pth"
    whole = {"module.all_modules.0.weight": torch.zeros(3), "x": np.float64(2)}
    torch.save(whole, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with pytest.raises(BadInput):
        import_published(tiny_preset(), path, path)
