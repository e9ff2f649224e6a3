"""The generator's training: gradients, one step, resumption, and that it trains."""

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
from lddgan.data.digits import digits
from lddgan.data.images import InMemory
from lddgan.data.order import Order
from lddgan.errors import BadInput, LddganError, OutOfMemory, Stopped
from lddgan.networks import discriminator, generator, layers
from lddgan.pictures import grid
from lddgan.training.generator import (
    Draws,
    Gan,
    discriminator_losses,
    draw,
    generator_losses,
    train_generator,
)
from lddgan.training.latents import StoredLatents, latents_of
from lddgan.training.run_folder import MODEL_FILE, load_unfinished
from lddgan.training.settings import Settings
from lddgan.training.state import Keeper, rate_at
from tests.lddgan.training.support import ALONE, first_stage_of, tiny_preset

LN2 = math.log(2)
STATE = "generator.state.pt"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny():
    return tiny_preset()


@pytest.fixture(scope="module")
def stage(tiny):
    """A random autoencoder whose latents are about within [-1,1]."""
    return first_stage_of(tiny)


@pytest.fixture(scope="module")
def latents(stage):
    return latents_of(stage.autoencoder, digits()[:24], "cpu")


def settings(out, **changes):
    return Settings(**{"out": Path(out), "device": "cpu", "log": quiet} | changes)


def quiet(line: str) -> None:
    pass


def new_gan(preset, **changes):
    return Gan(preset, settings(".", **changes), ALONE)


class Interrupted(Exception):
    """Stands for a power cut."""


def test_cosine_rate():
    assert rate_at(0.7, 1e-3, None) == 1e-3
    assert rate_at(0.0, 1e-3, 1e-5) == pytest.approx(1e-3)
    assert rate_at(0.5, 1e-3, 1e-5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate_at(1.0, 1e-3, 1e-5) == pytest.approx(1e-5)


# One step of the GAN.


@pytest.fixture
def gan64(tiny, monkeypatch):
    """Networks wholly in float64 with every weight moved, so that nothing starts at zero."""
    monkeypatch.setattr(layers.GroupNorm, "forward", torch.nn.GroupNorm.forward)
    monkeypatch.setattr(generator, "attention", attention64)
    monkeypatch.setattr(discriminator, "sinusoid", lambda t, w: layers.sinusoid(t, w).double())
    torch.manual_seed(0)
    gan = new_gan(tiny)
    for network in (gan.generator, gan.discriminator):
        network.double()
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return gan


def attention64(q, k, v):
    return (q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)).softmax(dim=-1) @ v


def slope(function, parameter, direction, h=1e-7):
    """Central difference along a direction of one parameter; h small, for LeakyReLU has kinks."""
    start = parameter.data.clone()
    parameter.data = start + h * direction
    above = function()
    parameter.data = start - h * direction
    below = function()
    parameter.data = start
    return (above - below) / (2 * h)


def draws64(preset, batch):
    """Draws in float64, the same at every call."""
    torch.manual_seed(1)
    drawn = draw(preset, batch, torch.device("cpu"))
    return Draws(drawn.t, *(tensor.double() for tensor in drawn[1:]))


@pytest.mark.parametrize("which", ["discriminator", "generator"])
@pytest.mark.parametrize("delta", [1.0, None])
def test_gradients_agree_with_finite_differences(gan64, which, delta):
    gan64.cfg = gan64.cfg.model_copy(update={"delta": delta})
    x_0 = torch.rand(4, 4, 8, 8, dtype=torch.float64) - 0.5

    def loss():
        draws = draws64(gan64.preset, 4)
        if which == "discriminator":
            losses = discriminator_losses(gan64, x_0, draws, with_r1=True)
        else:
            losses = generator_losses(gan64, x_0, draws, progress=0.3)
        return torch.stack(list(losses.values())).sum()

    network = getattr(gan64, which)
    network.zero_grad()
    loss().backward()
    for parameter in list(network.parameters())[::7]:
        direction = torch.randn_like(parameter)
        expected = float((parameter.grad * direction).sum())
        found = float(slope(lambda: loss().detach(), parameter, direction))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_step_moves_each_network_by_its_own_loss_only(tiny):
    torch.manual_seed(0)
    gan = new_gan(tiny)
    x_0, draws = torch.zeros(8, 4, 8, 8), draw(tiny, 8, torch.device("cpu"))
    discriminator_losses(gan, x_0, draws, with_r1=True)["d"].backward()
    assert all(p.grad is None for p in gan.generator.parameters())
    gan.step(x_0, step=0, progress=0.0)
    gan.discriminator.zero_grad()
    gan.discriminator.requires_grad_(False)
    generator_losses(gan, x_0, draws, progress=0.0)["g"].backward()
    assert all(p.grad is None for p in gan.discriminator.parameters())


def test_r1_is_lazy(tiny):
    gan = new_gan(tiny)
    x_0 = torch.zeros(8, 4, 8, 8)
    with_r1 = ["r1" in gan.step(x_0, step, progress=0.0) for step in range(4)]
    assert with_r1 == [True, False, True, False]


@pytest.mark.parametrize(
    ("reconstruction", "delta", "expected"),
    [(False, None, None), (True, None, 1.0), (True, 2.0, 1 / (1 + math.exp(-1.0)))],
)
def test_the_losses_of_table_6(tiny, reconstruction, delta, expected):
    changes = {"reconstruction": reconstruction, "delta": delta}
    preset = tiny.model_copy(update={"training": tiny.training.model_copy(update=changes)})
    torch.manual_seed(0)
    gan, x_0 = new_gan(preset), torch.rand(8, 4, 8, 8)
    draws = draw(preset, 8, torch.device("cpu"))
    losses = generator_losses(gan, x_0, draws, progress=0.25)
    assert list(losses) == ["g"] + ["l1"] * reconstruction
    if reconstruction:
        _, predicted = gan_module.denoise(
            gan, gan_module.forward_pair(preset, x_0, *draws[:3])[1], draws
        )
        unweighted = (x_0 - predicted).abs().mean().item()
        assert losses["l1"].item() == pytest.approx(expected * unweighted, rel=1e-6)


def test_the_average_follows_the_weights(tiny):
    torch.manual_seed(0)
    gan = new_gan(tiny)
    x_0, decay = torch.rand(8, 4, 8, 8), tiny.training.ema_decay
    gan.step(x_0, 0, 0.0)
    weight, average = (n.all_modules[2].weight for n in (gan.generator, gan.ema.module))
    assert torch.equal(weight, average)
    first = weight.detach().clone()
    gan.step(x_0, 1, 0.0)
    assert not torch.equal(weight, first)
    torch.testing.assert_close(average.detach(), decay * first + (1 - decay) * weight.detach())


def test_latents_are_divided_by_the_scale_factor_and_clamped(tiny, monkeypatch):
    gan = new_gan(tiny.model_copy(update={"scale_factor": 0.5}))
    seen = []
    monkeypatch.setattr(gan, "_parts_of", lambda x_0: seen.append(x_0) or iter(()))
    monkeypatch.setattr(gan, "_descend", lambda *parts: seen.append(parts[-1]) or {})
    moments = torch.cat([torch.randn(8, 4, 8, 8), torch.full((8, 4, 8, 8), LN2)], dim=1)
    torch.manual_seed(7)
    gan.step(moments, 0, 0.0)
    torch.manual_seed(7)
    expected = (moments[:, :4] + math.sqrt(2) * torch.randn(8, 4, 8, 8)) / 0.5
    torch.testing.assert_close(seen[0], expected.clamp(-1, 1))
    assert seen[0].abs().max() == 1


def after_steps(preset, **changes):
    """The weights and losses after two steps from the same seed."""
    torch.manual_seed(0)
    gan, x_0 = new_gan(preset, **changes), torch.rand(8, 4, 8, 8)
    losses = [gan.step(x_0[gan.rows], step, 0.0) for step in range(2)]
    return gan, losses


def weights_of(gan):
    """A layer of each network and one of the average."""
    return (
        gan.generator.all_modules[2].weight,
        gan.discriminator.start_conv.weight,
        gan.ema.module.all_modules[2].weight,
    )


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"channels_last": True}])
def test_parts_of_a_batch_and_layouts_make_the_same_step(tiny, changes):
    plain, losses = after_steps(tiny)
    other, others = after_steps(tiny, **changes)
    for a, b in zip(losses, others, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    for a, b in zip(weights_of(plain), weights_of(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_bf16_stays_near_fp32(tiny):
    (_, losses), (gan, others) = after_steps(tiny), after_steps(tiny, bf16=True)
    for a, b in zip(losses, others, strict=True):
        assert b == pytest.approx(a, rel=0.03, abs=0.01)
        assert b != a
    assert all(p.dtype == torch.float32 for p in gan.generator.parameters())


def test_a_batch_that_cannot_be_cut_into_whole_groups_is_refused(tiny):
    with pytest.raises(BadInput, match="a batch of 8 cannot be cut into 4 parts"):
        new_gan(tiny, accumulate=4)


# Whole runs.


def run(tiny, stage, latents, out, **changes):
    return train_generator(tiny, stage, latents, settings(out, **changes))


def equal_models(a, b):
    for name in ("generator", "autoencoder"):
        one, other = getattr(a, name).state_dict(), getattr(b, name).state_dict()
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_resumed_equals_uninterrupted_bit_for_bit(tiny, stage, latents, tmp_path, monkeypatch):
    whole = run(tiny, stage, latents, tmp_path / "whole", seed=1)
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
            run(tiny, stage, latents, out, seed=1, resume=resume)
        assert not (out / MODEL_FILE).exists()
    resumed = run(tiny, stage, latents, out, seed=1, resume=True)
    assert next(steps) == 8  # 6 steps and the two that were cut: none was made twice
    equal_models(whole, resumed)
    kept = {p.name for p in out.iterdir()}
    assert kept >= {MODEL_FILE, "autoencoder.safetensors", "generator.losses.png"}
    assert STATE not in kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_rest_is_the_same(tiny, stage, latents, tmp_path, number):
    whole = run(tiny, stage, latents, tmp_path / "whole")
    out, sent, before = tmp_path / "cut", [], signal.getsignal(number)

    def send(self, line):
        if not sent:
            sent.append(signal.raise_signal(number))

    gan_step = Gan.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gan, "step", lambda *a: (send(None, ""), gan_step(*a))[1])
        with pytest.raises(Stopped, match="stopped after step 1 of 6; go on with --resume") as stop:
            run(tiny, stage, latents, out)
    assert stop.value.signal == number
    assert signal.getsignal(number) is before
    seen = load_unfinished(out / STATE)
    assert seen.provenance["steps"] == 1 and seen.preset == tiny
    equal_models(whole, run(tiny, stage, latents, out, resume=True))


def test_the_result_is_a_checkpoint_with_its_provenance(tiny, stage, latents, tmp_path):
    command = ["lddgan", "train", "--seed", "2"]
    before = torch.get_rng_state()
    model = run(tiny, stage, latents, tmp_path, seed=2, epochs=1, command=command, source="scans")
    assert torch.equal(torch.get_rng_state(), before)
    read = load_checkpoint(tmp_path / MODEL_FILE)
    equal_models(read, model)
    assert read.preset == tiny
    found = read.provenance
    assert (found["command"], found["seed"], found["steps"]) == ("lddgan train --seed 2", 2, 3)
    assert (found["data"], found["images"]) == ("scans", 24)
    assert found["torch"] == torch.__version__ and found["seconds"] >= 0


def test_images_are_encoded_as_they_are_read(tiny, stage, latents, tmp_path):
    stored = run(tiny, stage, latents, tmp_path / "stored", steps=2)
    read = run(tiny, stage, InMemory(digits()[:24]), tmp_path / "read", steps=2)
    a, b = stored.generator.all_modules[2].weight, read.generator.all_modules[2].weight
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_grid_shows_the_average_so_far(tiny, stage, latents, tmp_path):
    model = run(tiny, stage, latents, tmp_path, steps=1)
    picture = np.asarray(Image.open(tmp_path / "samples" / "generator-0000001.png"))
    expected = gan_module.grid_images(tiny, model.generator, stage)
    assert expected.shape == (16, 32, 32, 3) and expected.std() > 0
    assert np.array_equal(picture, grid(expected))


def test_nan_stops_with_step_batch_and_last_good_state(tiny, stage, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step

    def poisoned(real, fake):
        poisoned.calls += 1
        return (real * (math.nan if poisoned.calls == 5 else 1.0)).sum()

    poisoned.calls = 0
    monkeypatch.setattr(gan_module, "discriminator_loss", poisoned)
    order = Order(24, 8, 0, flip=False).at(4)[0].tolist()
    listed = ", ".join(map(str, order))
    with pytest.raises(LddganError) as failed:
        run(tiny, stage, latents, tmp_path)
    assert str(failed.value) == (
        f"training the generator failed: its loss d is nan at step 4, batch 1 of epoch 1 (images "
        f"{listed}); lower the learning rate or check the images; the last good state is "
        f"{tmp_path / STATE}, after step 4"
    )


def test_a_gradient_that_is_nan_stops_before_it_changes_a_weight(
    tiny, stage, latents, tmp_path, monkeypatch
):
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step
    loss, calls = gan_module.generator_loss, iter(range(100))

    def poisoned(fake):
        if next(calls) == 2:
            fake.register_hook(lambda gradient: gradient * math.nan)
        return loss(fake)

    monkeypatch.setattr(gan_module, "generator_loss", poisoned)
    with pytest.raises(LddganError, match=r"its gradient is nan at step 2, .*, after step 2$"):
        run(tiny, stage, latents, tmp_path)
    kept = torch.load(tmp_path / STATE, weights_only=True)
    assert kept["step"] == 2
    assert all(weight.isfinite().all() for weight in kept["parts"]["generator"].values())


def test_a_gpu_that_is_full_is_one_sentence(tiny, stage, latents, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(Gan, "step", full)
    with pytest.raises(OutOfMemory, match=r"^the GPU has too little memory .*; --accumulate 2 "):
        run(tiny, stage, latents, tmp_path)


def test_no_step_makes_no_generator(tiny, stage, latents, tmp_path):
    with pytest.raises(BadInput, match="no step at all makes no generator"):
        run(tiny, stage, latents, tmp_path, steps=0)
    assert not (tmp_path / MODEL_FILE).exists()


def test_a_state_is_neither_overwritten_nor_mixed_up(tiny, stage, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(Keeper, "is_due", True)  # after every step
    gan_step = Gan.step

    def stop_second(gan, moments, number, progress):
        if number == 1:
            raise Interrupted
        return gan_step(gan, moments, number, progress)

    monkeypatch.setattr(Gan, "step", stop_second)
    with pytest.raises(BadInput, match="does not exist: there is nothing to resume"):
        run(tiny, stage, latents, tmp_path, resume=True)
    with pytest.raises(Interrupted):
        run(tiny, stage, latents, tmp_path)
    with pytest.raises(BadInput, match="unfinished run; go on with --resume"):
        run(tiny, stage, latents, tmp_path)
    with pytest.raises(BadInput, match="a run with another seed; repeat"):
        run(tiny, stage, latents, tmp_path, resume=True, seed=1)
    with pytest.raises(BadInput, match="a run with another number of steps"):
        run(tiny, stage, latents, tmp_path, resume=True, epochs=1)
    others = StoredLatents(latents.values[:, ::-1])
    with pytest.raises(BadInput, match="a run with another set of images; repeat"):
        run(tiny, stage, others, tmp_path, resume=True)
    with pytest.raises(BadInput, match="a run with another precision"):
        run(tiny, stage, latents, tmp_path, resume=True, bf16=True)
    wider = tiny.model_copy(update={"beta_max": 7.0})
    with pytest.raises(BadInput, match="a run with another preset"):
        run(wider, stage, latents, tmp_path, resume=True)
    other = first_stage_of(tiny)
    other.autoencoder.decoder.conv_out.bias.data += 1
    with pytest.raises(BadInput, match="a run with another autoencoder"):
        run(tiny, other, latents, tmp_path, resume=True)
    Path(tmp_path / STATE).write_bytes(b"cut short")
    with pytest.raises(BadInput, match="not a readable training state"):
        run(tiny, stage, latents, tmp_path, resume=True)


def test_another_autoencoder_in_the_folder_is_not_replaced(tiny, stage, latents, tmp_path):
    other = first_stage_of(tiny)
    other.autoencoder.decoder.conv_out.bias.data += 1
    save_checkpoint(tmp_path / "autoencoder.safetensors", other)
    with pytest.raises(BadInput, match="another autoencoder than the one given"):
        run(tiny, stage, latents, tmp_path)


def test_a_finished_run_is_not_resumed(tiny, stage, latents, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(b"finished")
    with pytest.raises(BadInput, match="nothing to resume"):
        run(tiny, stage, latents, tmp_path, resume=True)


def test_what_cannot_be_trained_is_refused(tiny, stage, latents, tmp_path):
    few = latents_of(stage.autoencoder, digits()[:7], "cpu")
    with pytest.raises(BadInput, match="7 images are too few: one batch takes 8"):
        run(tiny, stage, few, tmp_path)
    for changes, said in (
        ({"epochs": 0}, "at least 1"),
        ({"epochs": 1, "steps": 1}, "not both"),
        ({"steps": -1}, "cannot be negative"),
        ({"seed": -1}, "seed is -1"),
        ({"accumulate": 0}, "accumulate is 0"),
    ):
        with pytest.raises(BadInput, match=said):
            settings(tmp_path, **changes)


def test_a_full_disk_ends_the_run_and_keeps_the_last_state(
    tiny, stage, latents, tmp_path, monkeypatch
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
        run(tiny, stage, latents, tmp_path)
    assert load_unfinished(tmp_path / STATE).provenance["steps"] == 2
    assert not list(tmp_path.glob(f".{STATE}.*"))


def test_plain_lines_say_losses_rate_and_time_left(tiny, stage, latents, tmp_path):
    lines = []
    run(tiny, stage, latents, tmp_path, epochs=1, log=lines.append)
    assert lines[-1].startswith("generator: 3/3 steps  d ")
    assert all("steps/s" in line and "left" in line for line in lines)
