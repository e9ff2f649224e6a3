"""Runs that go on: to other totals, from finished states, from other weights; and snapshots."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

import lddgan.training.generator as gan_module
from export.bundle import open_bundle
from export.exporter import export_bundle, model_to_export
from lddgan.checkpoint import load_autoencoder, load_checkpoint, save_checkpoint, sha256_of_content
from lddgan.data.images import InMemory, digits
from lddgan.errors import BadInput
from lddgan.preset import with_values
from lddgan.training.autoencoder import train_autoencoder
from lddgan.training.generator import Gan, train_generator
from lddgan.training.latents import latents_of
from lddgan.training.log import TrainingLog
from lddgan.training.run_folder import AUTOENCODER_FILE, MODEL_FILE, load_generator, load_model
from tests.lddgan.runs import equal
from tests.lddgan.training.support import ALONE, random_autoencoder, settings, tiny_preset

STATE = "generator.state.pt"
TINY = with_values(tiny_preset(), {"generator.ch_mult": [1], "steps": 2})

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def no_pictures():
    """Nothing is drawn, which takes longer than the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "finish", lambda log: None)
        patch.setattr(TrainingLog, "add_picture", lambda log, step, images: None)
        patch.setattr(gan_module, "grid_images", lambda *given: None)
        yield


@pytest.fixture(scope="module")
def trained():
    return random_autoencoder(TINY)


@pytest.fixture(scope="module")
def latents(trained):
    return latents_of(trained.autoencoder, digits()[:24])


@pytest.fixture
def run(trained, latents, tmp_path):
    """Trains the tiny generator in tmp_path / "run"."""

    def train(preset=TINY, start=None, **changes):
        given = settings(tmp_path / "run", **changes)
        return train_generator(preset, trained, latents, given, start=start)

    return train


@pytest.fixture(scope="module")
def finished(no_pictures, trained, latents, tmp_path_factory):
    """The folder of a run that is finished after 3 steps, with a snapshot every 2."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train_generator(TINY, trained, latents, settings(out, steps=3, keep_every=2))
    return out


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it where `run` trains."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def seen(monkeypatch):
    """The (number, progress) of every step, with the average after it."""
    steps, step = [], Gan.step

    def note(gan, moments, number, progress):
        losses = step(gan, moments, number, progress)
        average = {k: v.clone() for k, v in gan.ema.module.state_dict().items()}
        steps.append((number, progress, average))
        return losses

    monkeypatch.setattr(Gan, "step", note)
    return steps


def of_state(folder):
    return torch.load(folder / STATE, weights_only=True)


def rewrite_state(folder, **changes):
    state = of_state(folder)
    torch.save(state | changes, folder / STATE)


# ---- other totals ----


def test_finished_run_goes_on_to_a_larger_total(run, folder, seen) -> None:
    state = of_state(folder)
    del state["run"]["generator to begin with"]  # as former versions wrote it
    torch.save(state, folder / STATE)
    before, lines = load_generator(folder / MODEL_FILE), []
    model = run(resume=True, steps=5, keep_every=2, log=lines.append)
    assert lines[0] == (
        "generator: 5 steps instead of 3: the cosine of the learning rates and Weighted Learning "
        "now end at step 5"
    )
    assert [step[:2] for step in seen] == [(3, 3 / 5), (4, 4 / 5)]
    assert of_state(folder)["step"] == of_state(folder)["parts"]["ema"]["n_averaged"] == 5
    losses = (folder / "generator.losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in losses] == [0, 1, 2, 3, 4]
    made = load_checkpoint(folder / MODEL_FILE)
    assert equal(made.generator.state_dict(), seen[-1][2])
    assert not equal(made.generator.state_dict(), before)
    assert made.provenance == model.provenance and "unfinished" not in made.provenance
    assert (made.provenance["steps"], made.provenance["begun with"]) == (5, "none")
    assert sorted(path.name for path in folder.glob("model-*")) == [
        "model-000002.safetensors",
        "model-000004.safetensors",
    ]


def test_a_total_in_epochs_counts_from_the_start(run, folder, seen) -> None:
    run(resume=True, epochs=2)  # of three steps each
    assert [number for number, *_ in seen] == [3, 4, 5]


def test_total_below_the_step_reached_is_refused(run, folder) -> None:
    with pytest.raises(BadInput, match=r"state\.pt is after step 3: 2 steps in all are too few"):
        run(resume=True, steps=2)


def test_unfinished_run_keeps_its_total_or_ends_where_it_is(run, folder, seen) -> None:
    (folder / MODEL_FILE).unlink()
    state = of_state(folder)
    rewrite_state(folder, run=state["run"] | {"number of steps": "4"})
    assert load_model(folder / STATE).provenance == {"steps": 3, "unfinished": "3 of 4 steps"}
    at_once = run(resume=True, steps=3)
    assert seen == [] and at_once.provenance["steps"] == 3
    assert equal(at_once.generator.state_dict(), load_generator(folder / STATE))
    assert load_model(folder / STATE).provenance == {"steps": 3}
    rewrite_state(folder, run=state["run"] | {"number of steps": "4"})
    run(resume=True)
    assert [step[:2] for step in seen] == [(3, 3 / 4)]


@pytest.mark.parametrize("changes", [{"steps": 3}, {"epochs": 1}, {}])
def test_finished_run_with_the_same_total_is_refused(run, folder, changes) -> None:
    with pytest.raises(BadInput, match="is finished after 3 steps; `--resume --steps MORE`"):
        run(resume=True, **changes)


def test_discarded_state_leaves_the_weights_to_begin_with(run, folder) -> None:
    run(resume=True, steps=4, discard_state=True)
    assert not (folder / STATE).exists()
    for resume in (True, False):
        with pytest.raises(BadInput, match="finished after 4 steps and its state was discarded"):
            run(resume=resume, steps=6)
        with pytest.raises(BadInput, match=re.escape(f"where --init {folder / MODEL_FILE} begins")):
            run(resume=resume, steps=6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, ["the cosine of the learning rates", "Weighted Learning"]),
        ({"delta": None}, ["the cosine of the learning rates"]),
        ({"lr_min": 0.0, "delta": 0.0}, ["the cosine of the learning rates"]),
        ({"lr_min": None}, ["Weighted Learning"]),
        ({"lr_min": 1e-3, "lr_g": 1e-3, "lr_d": 1e-3}, ["Weighted Learning"]),
        ({"lr_min": None, "reconstruction": False}, []),
    ],
)
def test_only_what_depends_on_the_total_is_named(
    trained, latents, tmp_path, monkeypatch, changes, named
) -> None:
    preset = with_values(TINY, {f"training.{name}": value for name, value in changes.items()})
    monkeypatch.setattr(gan_module, "train", lambda stage, given: stage)
    stage = train_generator(preset, trained, latents, settings(tmp_path))
    assert stage.schedules == named


def test_changed_settings_are_named_with_both_values(run, folder) -> None:
    wider = with_values(TINY, {"training.r1_gamma": 2.5, "training.lr_min": None})
    with pytest.raises(BadInput) as refused:
        run(wider, resume=True, steps=5, seed=7)
    assert str(refused.value) == (
        f"{folder / STATE} belongs to a run with another seed: 7, it was 0, another "
        f"training.r1_gamma: 2.5, it was {TINY.training.r1_gamma}, another training.lr_min: "
        f"null, it was {TINY.training.lr_min}; repeat its settings (--steps and --epochs alone may "
        "change), or start in another --out"
    )


def test_state_with_an_unreadable_preset_is_refused(run, folder) -> None:
    rewrite_state(folder, run=of_state(folder)["run"] | {"preset": '{"name": 3}'})
    with pytest.raises(BadInput, match=r"generator\.state\.pt carries no readable preset: "):
        load_model(folder / STATE)


# ---- snapshots ----


def test_snapshots_are_checkpoints_and_change_no_bit(run, finished, seen) -> None:
    whole = run(steps=3)
    snapshot = load_checkpoint(finished / "model-000002.safetensors")
    assert equal(snapshot.generator.state_dict(), seen[1][2])
    assert snapshot.preset == TINY
    assert (snapshot.provenance["steps"], snapshot.provenance["unfinished"]) == (2, "2 of 3 steps")
    assert equal(whole.generator.state_dict(), load_generator(finished / MODEL_FILE))


def test_autoencoder_snapshots_change_no_bit(tmp_path) -> None:
    preset = with_values(
        TINY, {"autoencoder.dropout": 0.2, "autoencoder_training.perceptual_weight": 0}
    )
    images = InMemory(digits()[:16])
    made = {}
    for name, every in (("with", 1), ("without", None)):
        given = settings(tmp_path / name, steps=2, keep_every=every)
        made[name] = train_autoencoder(preset, images, given).autoencoder.state_dict()
    assert equal(made["with"], made["without"])
    first, last = (
        load_autoencoder(tmp_path / "with" / f"autoencoder-00000{step}.safetensors")
        for step in (1, 2)
    )
    assert first.provenance["unfinished"] == "1 of 2 steps"
    assert first.preset.scale_factor != preset.scale_factor
    assert not equal(first.autoencoder.state_dict(), last.autoencoder.state_dict())
    assert equal(last.autoencoder.state_dict(), made["with"])


def test_autoencoder_of_an_unfinished_generator_is_kept(folder) -> None:
    (folder / MODEL_FILE).unlink()
    (folder / "autoencoder.state.pt").touch()
    with pytest.raises(BadInput, match=r"generator\.state\.pt is unfinished and needs the auto"):
        train_autoencoder(TINY, InMemory(digits()[:8]), settings(folder, steps=1, resume=True))


# ---- unfinished states as models ----


def test_unfinished_state_becomes_a_bundle_that_says_so(run, folder, tmp_path) -> None:
    rewrite_state(folder, run=of_state(folder)["run"] | {"number of steps": "900"})
    model, source = model_to_export("digits", folder / STATE)
    export_bundle(model, tmp_path / "bundle", (), checkpoint=source)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.provenance == {"steps": 3, "unfinished": "3 of 900 steps"}
    inside = load_checkpoint(bundle.file("model.safetensors"))
    assert equal(inside.generator.state_dict(), load_generator(folder / MODEL_FILE))


def test_state_needs_its_own_autoencoder_beside_it(folder) -> None:
    other = random_autoencoder(TINY)
    other.autoencoder.decoder.conv_out.bias.data += 1
    save_checkpoint(folder / AUTOENCODER_FILE, other)
    with pytest.raises(BadInput, match=r"is another autoencoder than .* was trained with"):
        load_model(folder / STATE)


# ---- other weights to begin with ----


def test_generator_and_average_begin_with_given_weights(finished, tmp_path) -> None:
    start = load_generator(finished / STATE)
    assert equal(start, load_generator(finished / MODEL_FILE))
    gan, anew = (Gan(TINY, settings(tmp_path), ALONE, given) for given in (start, None))
    assert equal(gan.generator.state_dict(), start) and equal(gan.ema.module.state_dict(), start)
    assert not equal(anew.generator.state_dict(), start)
    name = next(iter(start))
    with torch.no_grad():
        gan.generator.get_parameter(name).add_(1.0)
    gan.ema.update_parameters(gan.generator)
    decay = TINY.training.ema_decay
    expected = decay * start[name] + (1 - decay) * (start[name] + 1)
    torch.testing.assert_close(gan.ema.module.state_dict()[name], expected)


def test_weights_to_begin_with_are_in_the_provenance(run, finished, tmp_path) -> None:
    start = load_generator(finished / MODEL_FILE)
    digest = sha256_of_content({}, start)
    assert run(start=start, steps=1).provenance["begun with"] == digest
    with pytest.raises(BadInput, match="--init begins a run and --resume continues one"):
        run(start=start, steps=2, resume=True)
    assert run(steps=2, resume=True).provenance["begun with"] == digest


def test_weights_of_another_shape_are_refused(run, finished) -> None:
    start = load_generator(finished / MODEL_FILE)
    with pytest.raises(BadInput, match=r"the generator to begin with has .* misshapen: .* is "):
        run(with_values(TINY, {"generator.nf": 16}), start=start, steps=1)
    with pytest.raises(BadInput, match="the generator to begin with has 1 tensors missing: "):
        run(start=dict(list(start.items())[1:]), steps=1)
