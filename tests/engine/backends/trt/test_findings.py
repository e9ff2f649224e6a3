"""Which of several plans is taken, and what is kept beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.backends.trt.plans import choose, options_before
from engine.verification import LatentError, Verification, refuse
from lddgan.errors import LddganError
from tests.engine.backends.trt.conftest import AGREEMENT
from tests.engine.backends.trt.scripted import STRONG
from tests.engine.backends.trt.store import OPTIONS, OTHER_GPU, Store, flip, sized


@pytest.mark.parametrize(
    ("batch", "best"),
    [(1, "1,1,1"), (2, "1,16,100"), (16, "1,16,100"), (90, "1,100,127"), (127, "1,100,127")],
)
def test_the_plan_tuned_nearest_to_a_batch_is_chosen(store: Store, batch: int, best: str) -> None:
    for options in (sized(1, 1, 1), OPTIONS, sized(1, 100, 127)):
        store.ensure(options)
    chosen = choose(store.folder, store.key(), [batch], store.lines.append)
    assert chosen is not None and str(chosen.key.profile) == best


def test_of_equal_profiles_the_higher_level_is_chosen(store: Store) -> None:
    for level in (3, 5, 4):
        store.ensure(sized(1, 16, 100, level))
    chosen = choose(store.folder, store.key(), [7], store.lines.append)
    assert chosen is not None and chosen.key.level == 5


def test_a_broken_better_plan_is_passed_over(store: Store) -> None:
    store.ensure()
    flip(store.ensure(sized(1, 16, 100, level=5)).folder)
    chosen = choose(store.folder, store.key(), [16], store.lines.append)
    assert chosen is not None and chosen.key.level == 3
    assert store.said("sha256 differs")


@pytest.mark.parametrize(
    "content", ["{", "", '{"schema_version": 2}'], ids=["half", "empty", "newer"]
)
def test_a_record_that_cannot_be_read_is_said(store: Store, content: str) -> None:
    folder = store.ensure(sized(1, 100, 100)).folder
    (folder / "plan.json").write_text(content)
    store.ensure()
    chosen = choose(store.folder, store.key(), [100], store.lines.append)
    assert chosen is not None and str(chosen.key.profile) == "1,16,100"
    assert store.said(f"{folder} is left aside, its plan.json cannot be used: ")


def test_plans_in_the_folder_of_others_are_said(store: Store) -> None:
    moved = store.ensure().folder.rename(store.folder / "moved")
    assert choose(store.folder, store.key(), [None], store.lines.append) is None
    assert store.lines[-1] == f"{moved} is left aside: its key is another"


def test_the_first_batch_that_a_plan_takes_counts(store: Store) -> None:
    for options in (OPTIONS, sized(127, 127, 127), sized(1, 90, 126)):
        store.ensure(options)
    for batches, best in (([127, 100], "127,127,127"), ([100, 16], "1,90,126"), ([5, 127], "1,16")):
        chosen = choose(store.folder, store.key(), batches, store.lines.append)
        assert chosen is not None and str(chosen.key.profile).startswith(best)


def test_the_sizes_of_plans_that_cannot_be_used_are_known(store: Store) -> None:
    key = store.key()
    assert options_before(store.folder, key, [100]) is None
    flip(store.ensure(sized(1, 100, 100, level=5)).folder)
    store.ensure(sized(1, 4, 8), gpu=OTHER_GPU, version=STRONG)
    for batch, sizes in ((100, sized(1, 100, 100, 5)), (3, sized(1, 4, 8)), (101, None)):
        assert options_before(store.folder, key, [batch]) == sizes
    for other in ({"engine": "trt-rtx"}, {"precision": "fp32"}):
        assert options_before(store.folder, key.model_copy(update=other), [100]) is None


def test_no_plan_holds_the_batch(store: Store) -> None:
    store.ensure()
    assert choose(store.folder, store.key(), [101], store.lines.append) is None
    assert choose(store.folder, store.key(), [None], store.lines.append) is not None
    assert choose(store.folder, store.key(gpu=OTHER_GPU), [None], store.lines.append) is None


PASSED = Verification(
    **AGREEMENT.model_dump(exclude={"batches", "fp16_largest", "fp16_psnr"}),
    images=1,
    seed=0,
    engine="trt",
    precision="fp16",
    where="a GPU",
    reference="PyTorch",
    date="2026-11-30",
    calls=(),
    decoder_mean=0.0,
    latents=LatentError(largest=0.0, mean=0.0),
    over_1=0.0,
    over_2=0.0,
    finite=True,
    noise_identical=True,
    drawn_levels=0,
    why_failed=None,
)


def test_findings_are_kept_with_the_plans(store: Store) -> None:
    plans = store.ensure()
    assert plans.verification() is None
    plans.save_verification(PASSED)
    plans.tuning.add(100, 20)
    plans.tuning.add(16, 8)
    found = store.ensure()
    assert found.verification() == PASSED
    assert found.tuning.read() == {100: 20, 16: 8}


def test_a_verification_of_nan_is_kept_and_refused(store: Store) -> None:
    inf = float("inf")
    broken = {"latents": LatentError(largest=inf, mean=inf), "finite": False, "why_failed": "NaN"}
    store.ensure().save_verification(PASSED.model_copy(update=broken))
    found = store.ensure().verification()
    assert found is not None and found.latents.largest == inf
    with pytest.raises(LddganError, match="does not make PyTorch's images: NaN"):
        refuse(found)


def test_what_cannot_be_kept_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise LddganError(f"cannot write {path}: Permission denied")

    plans = store.ensure()
    for module in ("engine.backends.trt.plans", "engine.tuning"):
        monkeypatch.setattr(f"{module}.atomic_write", refuse)
    plans.tuning.add(100, 20)
    assert store.lines[-1].startswith("the tuning is not kept: cannot write ")
    plans.save_verification(PASSED)
    assert store.lines[-1].startswith("the verification is not kept: cannot write ")
    assert plans.verification() is None


def test_findings_about_other_plans_are_left_aside(store: Store) -> None:
    small, large = store.ensure(), store.ensure(sized(1, 2, 3))
    small.save_verification(PASSED)
    small.tuning.add(16, 8)
    for name in ("verification.json", "tuning.json"):
        shutil.copy(small.folder / name, large.folder / name)
    again = store.ensure(sized(1, 2, 3))
    assert again.verification() is None
    assert again.tuning.read() == {}
    assert store.said("it is of other plans")


@pytest.mark.parametrize("content", ["{", "[]", '{"chunks": {"16": 0}}'])
def test_findings_that_do_not_parse_are_left_aside(store: Store, content: str) -> None:
    folder = store.ensure().folder
    for name in ("verification.json", "tuning.json"):
        (folder / name).write_text(content)
    plans = store.ensure()
    assert plans.verification() is None and plans.tuning.read() == {}
    assert store.said(f"{folder / 'tuning.json'} is left aside: ")
    assert store.said(f"{folder / 'verification.json'} is left aside: ")
