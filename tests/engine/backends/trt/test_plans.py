"""The plan store: what is found, what is refused, what is left on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.backends.trt.build import BuildOptions
from engine.backends.trt.key import GpuIdentity
from engine.backends.trt.plans import RECORD, choose, find
from export.bundle import DIGITS, open_bundle, store_folder
from export.graphs import graph_specs
from lddgan.errors import BadInput, LddganError
from lddgan.files import sweep
from tests.engine.backends.trt.conftest import make_bundle
from tests.engine.backends.trt.scripted import BOTH, STRONG, WEAK, Script, expected_plan
from tests.engine.backends.trt.store import OPTIONS, OTHER_GPU, Store, flip, sized

NAMES = ["decoder.plan", "generator.plan", "plan.json"]


def right_plan(store: Store, which: str) -> bytes:
    """What the scripted builder makes of a graph with the default profile."""
    shapes = {
        tensor.name: [(batch, *tensor.shape[1:]) for batch in (1, 16, 100)]
        for tensor in store.script.specs[which].inputs
        if tensor.shape[0] == "B"
    }
    return expected_plan(store.bundle.folder / f"{which}.fp16.onnx", shapes)


def test_plans_are_built_once(store: Store) -> None:
    built = store.ensure()
    again = store.ensure()
    assert store.script.builds == ["generator", "decoder"]
    assert built.folder == again.folder
    assert sorted(path.name for path in built.folder.iterdir()) == NAMES
    for which in ("generator", "decoder"):
        assert again.read(which) == right_plan(store, which)


@pytest.mark.parametrize(
    ("name", "half"), [("digits", [True, True]), ("wddgan-cifar10", [True, False])]
)
def test_where_types_are_weak_a_decoder_without_weights_is_fp32(
    tmp_path: Path, name: str, half: list[bool]
) -> None:
    bundle = make_bundle(tmp_path / name, name=name)
    store = Store(bundle, Script(graph_specs(bundle.preset)))
    plans = store.ensure(version=WEAK)
    asked = [call[1].set.get("FP16", False) for call in store.script.calls if call[0] == "config"]
    assert store.script.builds == ["generator", "decoder"] and asked == half
    assert plans.key.precision == "fp16" and "FP16" in plans.key.flags


def test_the_record_tells_what_was_built(store: Store) -> None:
    folder = store.ensure().folder
    record = json.loads((folder / "plan.json").read_text())
    assert record["schema_version"] == 1
    assert record["key"]["version"] == BOTH
    assert record["key"]["gpu"] == ["NVIDIA H200", "9.0"]
    assert record["key"]["flags"][:2] == ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
    for which in ("generator", "decoder"):
        content = (folder / f"{which}.plan").read_bytes()
        assert record["plans"][which] == {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        onnx = store.bundle.folder / f"{which}.fp16.onnx"
        assert record["key"]["graphs"][which] == hashlib.sha256(onnx.read_bytes()).hexdigest()


def test_a_readable_name(store: Store) -> None:
    name = store.ensure().folder.name
    assert name.startswith("trt-10.16.1.11-nvidia-h200-fp16-b1-16-100-l3-")


def test_a_portable_plan(store: Store) -> None:
    assert "-portable-fp16-" in store.ensure(gpu=None).folder.name


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": OTHER_GPU},
        {"gpu": GpuIdentity("NVIDIA H200", "9.1")},
        {"version": STRONG},
        {"options": sized(1, 16, 101)},
        {"options": BuildOptions(precision="fp16", level=4)},
    ],
)
def test_a_plan_of_another_key_is_another_plan(store: Store, other: dict[str, object]) -> None:
    first = store.ensure()
    second = store.ensure(**other)  # type: ignore[arg-type]
    assert first.folder != second.folder
    assert store.script.builds == ["generator", "decoder"] * 2
    assert find(store.folder, first.key, store.lines.append) is not None


def test_a_bundle_exported_again_has_other_plans(tmp_path: Path, store: Store) -> None:
    old = store.ensure()
    other = Store(make_bundle(tmp_path / "again", b"another graph"), store.script)
    shutil.copytree(store.folder, other.folder)
    assert other.ensure().folder.name != old.folder.name


def truncate(folder: Path) -> None:
    path = folder / "generator.plan"
    path.write_bytes(path.read_bytes()[:-1])


def swap(folder: Path) -> None:
    shutil.copy(folder / "decoder.plan", folder / "generator.plan")


def edit(folder: Path) -> None:
    record = json.loads((folder / "plan.json").read_text())
    record["key"]["level"] = 5
    (folder / "plan.json").write_text(json.dumps(record))


def forget(folder: Path) -> None:
    record = json.loads((folder / "plan.json").read_text())
    del record["plans"]["decoder"]
    (folder / "plan.json").write_text(json.dumps(record))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "generator.plan has "),
    "flipped": (flip, "decoder.plan is not the plan that was built (sha256 differs)"),
    "swapped": (swap, "generator.plan "),
    "missing": (lambda folder: (folder / "decoder.plan").unlink(), "decoder.plan: No such file"),
    "edited": (edit, "its key is another"),
    "half": (forget, "it lists generator"),
    "no record": (lambda folder: (folder / "plan.json").unlink(), "No such file or directory"),
    "no json": (lambda folder: (folder / "plan.json").write_text("{"), "Invalid JSON"),
    "newer": (
        lambda folder: (folder / "plan.json").write_text('{"schema_version": 2}'),
        "schema_version: Input should be 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_plan_is_said_and_built_again(store: Store, damage: str) -> None:
    broken = store.ensure().folder
    harm, words = DAMAGES[damage]
    harm(broken)
    assert find(store.folder, store.key(), store.lines.append) is None
    assert store.said(words), store.lines
    assert choose(store.folder, store.key(), [16], lambda _: None) is None
    mended = store.ensure()
    assert mended.folder == broken
    assert sorted(path.name for path in broken.iterdir()) == NAMES
    for which in ("generator", "decoder"):
        assert mended.read(which) == right_plan(store, which)
    assert store.temporary() == []


def test_what_changes_after_the_check_is_not_handed_out(store: Store) -> None:
    plans = store.ensure()
    flip(plans.folder)
    with pytest.raises(LddganError, match=r"decoder.plan changed since it was checked"):
        plans.read("decoder")
    (plans.folder / "decoder.plan").unlink()
    with pytest.raises(LddganError, match=r"cannot read .*decoder.plan: No such file"):
        plans.read("decoder")


def test_a_failed_build_leaves_what_was_there(store: Store) -> None:
    before = store.ensure()
    content = {path.name: path.read_bytes() for path in before.folder.iterdir()}
    store.script.failures["decoder"] = "no kernel"
    with pytest.raises(LddganError, match="could not build the plan: no kernel"):
        store.ensure(rebuild=True)
    assert {path.name: path.read_bytes() for path in before.folder.iterdir()} == content
    assert store.temporary() == []
    store.script.failures.clear()
    assert store.ensure().folder == before.folder
    assert store.script.builds == ["generator", "decoder"] * 2


def test_a_failed_second_graph_leaves_the_timing_cache_alone(store: Store) -> None:
    store.script.failures["decoder"] = "no kernel"
    with pytest.raises(LddganError):
        store.ensure()
    (cache,) = store.visible()
    assert cache == "timing-trt-10.16.1.11-nvidia-h200.cache"
    content = (store.folder / cache).read_bytes()
    assert content == hashlib.sha256(b"generator").hexdigest().encode() + b"generator"


def test_rebuilding_builds_again_in_the_same_place(store: Store) -> None:
    first = store.ensure()
    first.tuning.add(16, 4)
    second = store.ensure(rebuild=True)
    assert first.folder == second.folder
    assert store.script.builds == ["generator", "decoder"] * 2
    assert second.tuning.read() == {}


def test_the_timing_cache_goes_from_build_to_build(store: Store) -> None:
    store.ensure()
    store.ensure(sized(1, 2, 3))
    cache = store.folder / "timing-trt-10.16.1.11-nvidia-h200.cache"
    assert cache.read_bytes()[64:] == b"generatordecoder" * 2


def test_a_damaged_timing_cache_is_said_and_begun_anew(store: Store) -> None:
    store.ensure()
    cache = store.folder / "timing-trt-10.16.1.11-nvidia-h200.cache"
    cache.write_bytes(cache.read_bytes() + b"x")
    store.ensure(rebuild=True)
    assert store.said(f"{cache} is left aside: it is damaged")
    assert cache.read_bytes()[64:] == b"generatordecoder"


def test_every_user_can_read_what_one_has_built(store: Store) -> None:
    before = os.umask(0o022)
    try:
        folder = store.ensure().folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_plans_are_kept_where_a_timing_cache_cannot_be(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes | None) -> None:
        raise LddganError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("engine.backends.trt.plans.save_timing_cache", refuse)
    assert sorted(path.name for path in store.ensure().folder.iterdir()) == NAMES
    assert store.said("the timing cache is not kept: cannot write ")


def test_every_user_can_take_the_lock(store: Store) -> None:
    modes: list[int] = []

    def look() -> None:
        modes.extend(path.stat().st_mode & 0o777 for path in store.folder.glob(".*.lock"))

    store.script.during = look
    before = os.umask(0o077)
    try:
        store.ensure()
    finally:
        os.umask(before)
    assert set(modes) == {0o666}


def leave(store: Store, folder: Path) -> Path:
    """Move plans to where a builder that is killed between its two renamings leaves them."""
    return folder.rename(store.folder / f".{folder.name}.0123abcd.tmp")


@pytest.mark.parametrize("options", [OPTIONS, sized(1, 2, 3)])
def test_plans_that_a_killed_builder_moved_away_come_back(
    store: Store, options: BuildOptions
) -> None:
    folder = store.ensure(sized(1, 2, 3)).folder
    leave(store, folder)
    store.ensure(options)
    assert find(store.folder, store.key(sized(1, 2, 3)), store.lines.append) is not None
    assert store.script.builds == ["generator", "decoder"] * (2 if options == OPTIONS else 1)
    assert store.temporary() == []


def test_a_builders_half_folder_or_second_one_is_removed(store: Store) -> None:
    folder = store.ensure().folder
    content = (folder / "decoder.plan").read_bytes()
    shutil.copytree(folder, store.folder / f".{folder.name}.0123abcd.tmp")
    sweep(store.folder, RECORD)
    assert store.temporary() == [] and (folder / "decoder.plan").read_bytes() == content
    (leave(store, folder) / RECORD).unlink()
    sweep(store.folder, RECORD)
    assert store.temporary() == [] and not folder.exists()


def test_a_lock_that_cannot_be_opened_is_said(store: Store) -> None:
    name = store.key().folder_name
    (store.folder / f".{name}.lock").mkdir(parents=True)
    with pytest.raises(LddganError, match=rf"cannot write .*{name}.lock: Is a directory"):
        store.ensure()
    assert store.script.builds == []


def test_a_store_that_cannot_be_written_is_said(store: Store) -> None:
    store.folder.write_text("not a folder")
    with pytest.raises(LddganError, match=r"cannot write .*engines"):
        store.ensure()


def test_ctrl_c_leaves_nothing_behind(store: Store) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), 2)

    store.script.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        store.ensure()
    assert store.visible() == [] and store.temporary() == []


def test_a_precision_that_was_not_exported(store: Store) -> None:
    with pytest.raises(BadInput, match="holds fp16, not fp32; run `lddgan export"):
        store.ensure(BuildOptions(precision="fp32"))


def test_an_installed_package_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = open_bundle(DIGITS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store_folder(shipped) == tmp_path / "cache" / "lddgan" / "digits" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_folder(shipped) == tmp_path / ".cache" / "lddgan" / "digits" / "engines"
