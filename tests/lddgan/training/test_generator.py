"""Whole trainings of a generator: resumption, what stops one, what one leaves."""

import errno
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lddgan.training.generator as gan_module
from lddgan.checkpoint import load_checkpoint, save_checkpoint
from lddgan.data.feed import Order
from lddgan.data.images import InMemory, digits
from lddgan.errors import BadInput, LddganError, OutOfMemory, Stopped
from lddgan.pictures import grid
from lddgan.training.generator import Gan, train_generator
from lddgan.training.latents import StoredLatents, latents_of
from lddgan.training.run_folder import MODEL_FILE, load_model
from lddgan.training.state import Keeper
from tests.lddgan.training.support import random_autoencoder, settings, tiny_preset

STATE = "generator.state.pt"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny():
    return tiny_preset()


@pytest.fixture(scope="module")
def trained(tiny):
    """A random autoencoder whose latents are about within [-1,1]."""
    return random_autoencoder(tiny)


@pytest.fixture(scope="module")
def latents(trained):
    return latents_of(trained.autoencoder, digits()[:24])


class Interrupted(Exception):
    """Stands for a power cut."""


def run(tiny, trained, latents, out, **changes):
    return train_generator(tiny, trained, latents, settings(out, **changes))


def equal_models(a, b):
    for name in ("generator", "autoencoder"):
        one, other = getattr(a, name).state_dict(), getattr(b, name).state_dict()
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_resumed_equals_uninterrupted_bit_for_bit(tiny, trained, latents, tmp_path, monkeypatch):
    whole = run(tiny, trained, latents, tmp_path / "whole", seed=1)
    out = tmp_path / "cut"
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step
    steps = iter(range(100))
    gan_step = Gan.step

    def cut(*arguments):
        if next(steps) in (2, 4):
            raise Interrupted
        return gan_step(*arguments)

    monkeypatch.setattr(Gan, "step", cut)
    for resume in (False, True):
        with pytest.raises(Interrupted):
            run(tiny, trained, latents, out, seed=1, resume=resume)
        assert not (out / MODEL_FILE).exists()
    resumed = run(tiny, trained, latents, out, seed=1, resume=True)
    assert next(steps) == 8  # 6 steps and the two that were cut: none was made twice
    equal_models(whole, resumed)
    kept = {p.name for p in out.iterdir()}
    assert kept >= {MODEL_FILE, "autoencoder.safetensors", "generator.losses.png", STATE}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_rest_is_the_same(tiny, trained, latents, tmp_path, number):
    whole = run(tiny, trained, latents, tmp_path / "whole")
    out, sent, before = tmp_path / "cut", [], signal.getsignal(number)

    def send(self, line):
        if not sent:
            sent.append(signal.raise_signal(number))

    gan_step = Gan.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gan, "step", lambda *a: (send(None, ""), gan_step(*a))[1])
        with pytest.raises(Stopped, match="stopped after step 1 of 6; go on with --resume") as stop:
            run(tiny, trained, latents, out)
    assert stop.value.signal == number
    assert signal.getsignal(number) is before
    seen = load_model(out / STATE)
    assert seen.provenance["steps"] == 1 and seen.preset == tiny
    equal_models(whole, run(tiny, trained, latents, out, resume=True))


def test_the_result_is_a_checkpoint_with_its_provenance(tiny, trained, latents, tmp_path):
    command = ["lddgan", "train", "--seed", "2"]
    before = torch.get_rng_state()
    model = run(tiny, trained, latents, tmp_path, seed=2, epochs=1, command=command, source="scans")
    assert torch.equal(torch.get_rng_state(), before)
    read = load_checkpoint(tmp_path / MODEL_FILE)
    equal_models(read, model)
    assert read.preset == tiny
    found = read.provenance
    assert (found["command"], found["seed"], found["steps"]) == ("lddgan train --seed 2", 2, 3)
    assert (found["data"], found["images"]) == ("scans", 24)
    assert found["torch"] == torch.__version__ and found["seconds"] >= 0


def test_images_are_encoded_as_they_are_read(tiny, trained, latents, tmp_path):
    stored = run(tiny, trained, latents, tmp_path / "stored", steps=2)
    read = run(tiny, trained, InMemory(digits()[:24]), tmp_path / "read", steps=2)
    a, b = stored.generator.all_modules[2].weight, read.generator.all_modules[2].weight
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_grid_shows_the_average_so_far(tiny, trained, latents, tmp_path):
    model = run(tiny, trained, latents, tmp_path, steps=1)
    picture = np.asarray(Image.open(tmp_path / "samples" / "generator-0000001.png"))
    expected = gan_module.grid_images(tiny, model.generator, trained)
    assert expected.shape == (16, 32, 32, 3) and expected.std() > 0
    assert np.array_equal(picture, grid(expected))


def test_nan_stops_with_step_batch_and_last_good_state(
    tiny, trained, latents, tmp_path, monkeypatch
):
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step

    def poisoned(real, fake):
        poisoned.calls += 1
        return (real * (math.nan if poisoned.calls == 5 else 1.0)).sum()

    poisoned.calls = 0
    monkeypatch.setattr(gan_module, "discriminator_loss", poisoned)
    order = Order(24, 8, 0, flip=False).at(4)[0].tolist()
    listed = ", ".join(map(str, order))
    with pytest.raises(LddganError) as failed:
        run(tiny, trained, latents, tmp_path)
    assert str(failed.value) == (
        f"training the generator failed: its loss d is nan at step 4, batch 1 of epoch 1 (images "
        f"{listed}); lower the learning rate or check the images; the last good state is "
        f"{tmp_path / STATE}, after step 4"
    )


def test_a_gradient_that_is_nan_stops_before_it_changes_a_weight(
    tiny, trained, latents, tmp_path, monkeypatch
):
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step
    loss, calls = gan_module.generator_loss, iter(range(100))

    def poisoned(fake):
        if next(calls) == 2:
            fake.register_hook(lambda gradient: gradient * math.nan)
        return loss(fake)

    monkeypatch.setattr(gan_module, "generator_loss", poisoned)
    with pytest.raises(LddganError, match=r"its gradient is nan at step 2, .*, after step 2$"):
        run(tiny, trained, latents, tmp_path)
    kept = torch.load(tmp_path / STATE, weights_only=True)
    assert kept["step"] == 2
    assert all(weight.isfinite().all() for weight in kept["parts"]["generator"].values())


def test_gpu_out_of_memory_is_one_sentence(tiny, trained, latents, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(Gan, "step", full)
    with pytest.raises(OutOfMemory, match=r"^the GPU has too little memory .*; --accumulate 2 "):
        run(tiny, trained, latents, tmp_path)


def test_no_step_makes_no_generator(tiny, trained, latents, tmp_path):
    with pytest.raises(BadInput, match="no step at all makes no generator"):
        run(tiny, trained, latents, tmp_path, steps=0)
    assert not (tmp_path / MODEL_FILE).exists()


def test_a_state_is_neither_overwritten_nor_mixed_up(tiny, trained, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step
    gan_step = Gan.step

    def stop_second(gan, moments, number, progress):
        if number == 1:
            raise Interrupted
        return gan_step(gan, moments, number, progress)

    monkeypatch.setattr(Gan, "step", stop_second)
    with pytest.raises(BadInput, match="does not exist: there is nothing to resume"):
        run(tiny, trained, latents, tmp_path, resume=True)
    with pytest.raises(Interrupted):
        run(tiny, trained, latents, tmp_path)
    with pytest.raises(BadInput, match="unfinished run; go on with --resume"):
        run(tiny, trained, latents, tmp_path)
    with pytest.raises(BadInput, match="a run with another seed: 1, it was 0; repeat"):
        run(tiny, trained, latents, tmp_path, resume=True, seed=1)
    others = StoredLatents(latents.values[::-1])
    with pytest.raises(BadInput, match="a run with another set of images; repeat"):
        run(tiny, trained, others, tmp_path, resume=True)
    with pytest.raises(BadInput, match="another precision: bfloat16, it was float32;"):
        run(tiny, trained, latents, tmp_path, resume=True, bf16=True)
    wider = tiny.model_copy(update={"beta_max": 7.0})
    with pytest.raises(BadInput, match=r"a run with another beta_max: 7\.0, it was 6\.0;"):
        run(wider, trained, latents, tmp_path, resume=True)
    other = random_autoencoder(tiny)
    other.autoencoder.decoder.conv_out.bias.data += 1
    with pytest.raises(BadInput, match="a run with another autoencoder"):
        run(tiny, other, latents, tmp_path, resume=True)
    Path(tmp_path / STATE).write_bytes(b"cut short")
    with pytest.raises(BadInput, match="not a readable training state"):
        run(tiny, trained, latents, tmp_path, resume=True)


def test_another_autoencoder_in_the_folder_is_not_replaced(tiny, trained, latents, tmp_path):
    other = random_autoencoder(tiny)
    other.autoencoder.decoder.conv_out.bias.data += 1
    save_checkpoint(tmp_path / "autoencoder.safetensors", other)
    with pytest.raises(BadInput, match="another autoencoder than the one given"):
        run(tiny, trained, latents, tmp_path)


def test_bad_settings_are_refused(tiny, trained, latents, tmp_path):
    few = latents_of(trained.autoencoder, digits()[:7])
    with pytest.raises(BadInput, match="7 images are too few: one batch takes 8"):
        run(tiny, trained, few, tmp_path)
    for changes, said in (
        ({"epochs": 1, "steps": 1}, "not both"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(BadInput, match=said):
            settings(tmp_path, **changes)


def test_a_full_disk_ends_the_run_and_keeps_the_last_state(
    tiny, trained, latents, tmp_path, monkeypatch
):
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step
    replace, saved = os.replace, []

    def full(source, target):
        if str(target).endswith(STATE):
            saved.append(target)
            if len(saved) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LddganError, match=r"cannot write .*generator\.state\.pt: No space left"):
        run(tiny, trained, latents, tmp_path)
    assert load_model(tmp_path / STATE).provenance["steps"] == 2
    assert not list(tmp_path.glob(f".{STATE}.*"))


def test_plain_lines_show_losses_rate_and_time_left(tiny, trained, latents, tmp_path):
    lines = []
    run(tiny, trained, latents, tmp_path, epochs=1, log=lines.append)
    assert lines[-1].startswith("generator: 3/3 steps  d ")
    assert all("steps/s" in line and "left" in line for line in lines)


@pytest.mark.parametrize("where", ["__init__", "step"])
def test_cpu_out_of_memory_is_one_sentence(tiny, trained, latents, tmp_path, monkeypatch, where):
    def full(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(Gan, where, full)
    with pytest.raises(OutOfMemory, match=r"^the CPU has too little memory .*; --accumulate 2 "):
        run(tiny, trained, latents, tmp_path)
