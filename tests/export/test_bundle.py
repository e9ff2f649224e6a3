"""A bundle is whole or refused: every fault of what is read, and of how it is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.registry import open_engine
from export import bundle as bundles
from export.bundle import find_bundle, open_bundle, publishing
from export.exporter import place_checkpoint
from lddgan.checkpoint import Model, load_checkpoint, save_checkpoint
from lddgan.errors import BadInput, LddganError
from lddgan.files import sha256_of_file

ROOT = Path(__file__).parents[2]
GRAPH = "generator.fp32.onnx"


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def one_sentence(error: BaseException) -> str:
    message = str(error)
    assert message and len(message) < 500
    assert "\n" not in message and "Traceback" not in message
    return message


# ---- reading ----


def test_whole_bundle_opens_and_gives_its_files(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.has_random_weights
    assert bundle.preset.name == "tiny"
    assert bundle.graph("decoder", "fp16") == tiny_bundle / "decoder.fp16.onnx"
    assert load_checkpoint(bundle.file("model.safetensors")).preset == bundle.preset


OLD_MANIFEST = "345cef9951d60f8383dce7a493ddc39dd9a17a134774ce25b7ae5578eec104e6"


def test_bundle_of_an_earlier_version_opens_and_samples() -> None:
    """The shipped digits were written before the folders were rearranged."""
    assert sha256_of_file(bundles.DIGITS / "manifest.json") == OLD_MANIFEST, "it is a new one"
    bundle = open_bundle(bundles.DIGITS)
    for name in bundle.manifest.files:
        assert bundle.file(name).is_file()  # its sha256 is right
    images = open_engine(bundles.DIGITS, "ort", device="cpu").sample(2, seed=0)
    assert images.shape == (2, 32, 32, 3) and images.std() > 10


def test_agreement_of_equal_images_can_be_read_again(tiny_vq_bundle: Path) -> None:
    manifest = open_bundle(tiny_vq_bundle).manifest
    agreement = manifest.verification["fp32"]
    equal = agreement.model_copy(update={"decoder_psnr": float("inf"), "chain_psnr": float("inf")})
    again = manifest.model_copy(update={"verification": {"fp32": equal}})
    assert type(manifest).model_validate_json(again.model_dump_json()) == again


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "newer schema": lambda m: m.update(schema_version=2),
    "no schema": lambda m: m.pop("schema_version"),
    "unknown field": lambda m: m.update(extra=1),
    "unknown field inside": lambda m: m["preset"]["generator"].update(extra=1),
    "parent folder": lambda m: m["files"].update({"../x": m["files"][GRAPH]}),
    "absolute path": lambda m: m["files"].update({"/etc/passwd": m["files"][GRAPH]}),
    "hidden file": lambda m: m["files"].update({".x.onnx": m["files"][GRAPH]}),
    "sub folder": lambda m: m["files"].update({"a/b.onnx": m["files"][GRAPH]}),
    "no digest": lambda m: m["files"][GRAPH].update(sha256="0" * 63),
    "wrong batch": lambda m: m["graphs"]["generator"]["inputs"][0].update(shape=[2, 4, 8, 8]),
    "other latent": lambda m: m["preset"].update(latent_channels=3),
    "inconsistent preset": lambda m: m["preset"].update(image_size=64),
    "steps": lambda m: m["preset"].update(steps=9),
    "unknown precision": lambda m: m["verification"].update(int4=m["verification"]["fp32"]),
    "no codec levels": lambda m: m["preset"]["autoencoder"].update(ch_mult=[]),
}


@pytest.mark.parametrize("case", EDITS)
def test_edited_manifest_is_refused(copy: Path, case: str) -> None:
    open_bundle(copy)
    edit(copy, EDITS[case])
    with pytest.raises(BadInput) as caught:
        open_bundle(copy)
    message = one_sentence(caught.value)
    assert str(copy / "manifest.json") in message and "export" in message


@pytest.mark.parametrize(
    "data", [b"", b"{", b"<!doctype html><html>", b"\x00\xff" * 50, b"[]", b"null", b"[" * 10_000]
)
def test_manifest_that_is_no_manifest_is_refused(copy: Path, data: bytes) -> None:
    (copy / "manifest.json").write_bytes(data)
    with pytest.raises(BadInput) as caught:
        open_bundle(copy)
    assert "manifest.json is not a manifest" in one_sentence(caught.value)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_manifest_is_refused_or_means_the_same(
    tiny_bundle: Path, tmp_path: Path, data: st.DataObject
) -> None:
    original = (tiny_bundle / "manifest.json").read_bytes()
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        if data.draw(st.booleans()):
            mutated[at] = data.draw(st.integers(0, 255))
        else:
            del mutated[at : at + data.draw(st.integers(1, 40))]
    (tmp_path / "manifest.json").write_bytes(mutated)
    try:
        manifest = open_bundle(tmp_path).manifest
    except BadInput as error:
        one_sentence(error)
        return
    # A digit of a figure or a name may change and still be a manifest; what names files may not.
    assert all("/" not in name and not name.startswith(".") for name in manifest.files)
    assert manifest.graphs == bundles.graph_specs(manifest.preset)
    assert type(manifest).model_validate_json(manifest.model_dump_json()) == manifest


def test_folder_that_is_no_bundle_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    cases = [(copy, "no manifest.json"), (copy / GRAPH, "no bundle"), (tmp_path / "x", "no b")]
    for folder, cause in cases:
        with pytest.raises(BadInput, match=cause) as caught:
            open_bundle(folder)
        assert str(folder) in one_sentence(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap_precision(path: Path) -> None:
    shutil.copyfile(path.with_name(GRAPH.replace("fp32", "fp16")), path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "is missing"),
    "truncated": (truncate, "bytes, its manifest says"),
    "empty": (lambda path: path.write_bytes(b""), "has 0 bytes"),
    "bit flipped": (flip_a_bit, "sha256 differs"),
    "other precision": (swap_precision, "bytes, its manifest says"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_file_is_refused_and_the_others_are_not(copy: Path, case: str) -> None:
    damage, cause = DAMAGES[case]
    damage(copy / GRAPH)
    bundle = open_bundle(copy)
    with pytest.raises(BadInput, match=cause) as caught:
        bundle.graph("generator", "fp32")
    assert str(copy / GRAPH) in one_sentence(caught.value)
    bundle.graph("decoder", "fp32")


def test_precision_that_was_not_exported_is_named(tiny_vq_bundle: Path) -> None:
    with pytest.raises(BadInput, match="holds fp32, not fp16") as caught:
        open_bundle(tiny_vq_bundle).graph("decoder", "fp16")
    assert "--precision both" in one_sentence(caught.value)


# ---- which bundle ----


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes exports/NAME with a manifest of an age, in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, age: int) -> None:
        folder = Path("exports") / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        os.utime(folder / "manifest.json", (10**9 - age, 10**9 - age))

    return make


def test_newest_bundle_is_found_and_unfinished_ones_are_not(exports) -> None:
    assert find_bundle(None) == bundles.EMOJI
    exports("old", 20)
    exports("new", 10)
    exports(".new.abc123", 0)  # left by a kill during publishing
    (Path("exports") / "empty").mkdir()
    assert find_bundle(None) == Path("exports/new")


def test_data_set_is_found_by_name(exports) -> None:
    exports("lsun", 0)
    exports("digits", 0)
    assert find_bundle("lsun") == Path("exports/lsun")
    assert find_bundle("digits") == bundles.DIGITS  # always the shipped one
    with pytest.raises(BadInput, match=r"exports/cifar10; run `lddgan export --dataset cifar10`"):
        find_bundle("cifar10")


# ---- writing ----


def test_new_folder_appears_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "new"
    with publishing(target) as temporary:
        (temporary / "manifest.json").write_text("{}")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert content(target) == {"manifest.json": b"{}"}
    assert target.stat().st_mode & 0o777 == 0o755
    assert list(target.parent.iterdir()) == [target]


def test_bundle_is_replaced_as_a_whole(copy: Path) -> None:
    (copy / "engines").mkdir()
    (copy / "engines" / "old.plan").write_text("stale")
    with publishing(copy) as temporary:
        (temporary / "manifest.json").write_text("{}")
    assert content(copy) == {"manifest.json": b"{}"}
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, LddganError])
def test_failing_body_leaves_the_old_bundle(copy: Path, error: type[BaseException]) -> None:
    before = content(copy)

    def stop(temporary: Path) -> None:
        (temporary / "manifest.json").write_text("new")
        raise error("stopped")

    with pytest.raises(error), publishing(copy) as temporary:
        stop(temporary)
    assert content(copy) == before
    assert list(copy.parent.iterdir()) == [copy]


def test_full_disk_is_one_sentence_and_leaves_the_old_bundle(copy: Path) -> None:
    before = content(copy)
    with pytest.raises(LddganError, match="No space left on device"), publishing(copy):
        raise OSError(28, os.strerror(28))
    assert content(copy) == before
    assert list(copy.parent.iterdir()) == [copy]


def test_failing_rename_puts_the_old_bundle_back(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename, calls = content(copy), os.replace, []

    def fail_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:  # the new folder; the first call has moved the old one away
            raise OSError(5, os.strerror(5))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(LddganError, match="Input/output error"), publishing(copy) as temporary:
        (temporary / "manifest.json").write_text("new")
    assert content(copy) == before
    assert list(copy.parent.iterdir()) == [copy]


FOREIGN = {
    "a file": lambda folder: folder.write_text("mine"),
    "other files": lambda folder: (folder.mkdir(), (folder / "notes.txt").write_text("mine")),
    "a training run": lambda folder: (
        folder.mkdir(),
        (folder / "model.safetensors").write_text("mine"),
    ),
    "another manifest.json": lambda folder: (
        folder.mkdir(),
        (folder / "manifest.json").write_text("{}"),
        (folder / "index.html").write_text("mine"),
    ),
    "a link": lambda folder: folder.symlink_to(folder.parent),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "place" / "out"
    folder.parent.mkdir()
    FOREIGN[case](folder)
    before = content(folder.parent)
    with pytest.raises(BadInput) as caught, publishing(folder):
        pytest.fail("nothing may be made")
    assert str(folder) in one_sentence(caught.value)
    assert content(folder.parent) == before
    assert os.path.lexists(folder)


def test_parent_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LddganError, match="cannot write"), publishing(tmp_path / "file" / "out"):
        pytest.fail("nothing may be made")


KILLED = """
import sys, time
from pathlib import Path
from export.bundle import publishing
with publishing(Path(sys.argv[1])) as temporary:
    (temporary / "generator.fp32.onnx").write_bytes(b"half")
    (temporary / "manifest.json").write_text("{}")
    print("in the middle", flush=True)
    time.sleep(60)
"""


def test_kill_during_publishing_leaves_the_old_bundle_whole(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny_bundle, Path("exports") / "tiny"))
    before = content(folder)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert child.stdout.readline() == "in the middle\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    assert content(folder) == before
    bundle = open_bundle(find_bundle(None))
    assert bundle.folder == folder
    for name in bundle.manifest.files:
        bundle.file(name)
    with publishing(folder) as temporary:  # and the next one goes through
        (temporary / "manifest.json").write_text("{}")
    assert content(folder) == {"manifest.json": b"{}"}


# ---- the checkpoint inside ----


def test_linked_checkpoint_is_a_file_of_the_bundle(tiny_model: Model, tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "blobs" / "a.safetensors", tiny_model)
    link = tmp_path / "snapshots" / "model.safetensors"
    link.parent.mkdir()
    link.symlink_to(Path("..") / "blobs" / "a.safetensors")  # as a download cache has it
    target = tmp_path / "bundle" / "deep" / "model.safetensors"
    target.parent.mkdir(parents=True)
    place_checkpoint(tiny_model, link, target)
    assert not target.is_symlink()
    assert target.read_bytes() == source.read_bytes()
    assert target.samefile(source)
