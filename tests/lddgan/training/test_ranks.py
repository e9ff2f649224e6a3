"""Several processes: the parts of a batch, and that together they make the step of one."""

import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from lddgan.data.images import InMemory, digits
from lddgan.errors import BadInput, LddganError
from lddgan.files import LOCK, sole_writer
from lddgan.networks.discriminator import minibatch_deviation
from lddgan.preset import GROUP, with_values
from lddgan.presets import PRESETS
from lddgan.training.autoencoder import train_autoencoder
from lddgan.training.generator import train_generator
from lddgan.training.latents import latents_of
from lddgan.training.ranks import Ranks, joined, rows_of
from lddgan.training.settings import Settings
from tests.lddgan.training.support import random_autoencoder, tiny_preset


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_a_batch_cover_it_and_keep_groups_together(parts):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 2, 2)
    rows = [rows_of(part, parts, 16) for part in range(parts)]
    assert sorted(torch.cat(rows).tolist()) == list(range(16))
    whole = minibatch_deviation(x)
    for part in rows:
        torch.testing.assert_close(minibatch_deviation(x[part]), whole[part])


@pytest.mark.parametrize(("parts", "batch"), [(2, 12), (3, 16), (16, 16), (2, 4)])
def test_parts_that_would_cut_a_group_are_refused(parts, batch):
    with pytest.raises(BadInput, match=f"cannot be cut into {parts} parts of whole groups of 4"):
        rows_of(0, parts, batch)


def test_where_no_images_belong_together_any_equal_parts_do():
    rows = [rows_of(part, 8, 16, group=1) for part in range(8)]
    assert [len(part) for part in rows] == [2] * 8
    assert sorted(torch.cat(rows).tolist()) == list(range(16))
    with pytest.raises(BadInput, match=r"16 cannot be cut into 5 equal parts; .* multiple of 5, "):
        rows_of(0, 5, 16, group=1)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_trains_on_eight_gpus(preset):
    stages = ((preset.autoencoder_training, 1), (preset.training, GROUP))
    for cfg, group in stages if preset.autoencoder.learned else stages[1:]:
        Settings(out=Path()).rows(Ranks(7, 8, torch.device("cpu")), cfg.batch, group)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_become_their_mean_wherever_they_lie_in_memory(monkeypatch, layout):
    """The other process has the negative of the first gradient and no other."""

    def all_reduce(values):
        values[:24] = 0.0

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    weights = [torch.nn.Parameter(torch.zeros(2, 3, 2, 2)), torch.nn.Parameter(torch.zeros(4))]
    gradients = [torch.randn(2, 3, 2, 2), torch.arange(4.0)]
    for weight, gradient in zip(weights, gradients, strict=True):
        is_image = gradient.ndim == 4
        weight.grad = gradient.to(memory_format=layout) if is_image else gradient.clone()
    Ranks(0, 2, torch.device("cpu")).average_gradients(weights)
    assert not weights[0].grad.any() and weights[0].grad.is_contiguous(memory_format=layout)
    assert weights[1].grad.tolist() == [0.0, 0.5, 1.0, 1.5]


def test_another_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(BadInput, match="start the processes with torchrun"), joined("cpu"):
        pass


def test_a_process_alone_joins_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu"))
        values = torch.tensor([1.0, 2.0])
        assert ranks.mean(values) is values and ranks.any(True) and not ranks.any(False)


def rank(number: int, world: int, port: str, folder: str) -> None:
    """One process of several."""
    torch.set_num_threads(1)
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    train_both(Path(folder), number)


def train_both(out: Path, number: int) -> None:
    """Both stages, two steps each."""
    settings = Settings(out=out, device="cpu", steps=2, log=lambda line: None)
    values = {"autoencoder_training.disc_weight": 0.5, "autoencoder_training.disc_start": 1}
    preset = with_values(tiny_preset(), values | {"training.flip": True, "autoencoder.kind": "kl"})
    images = InMemory(digits()[:24])
    stage = train_autoencoder(preset, images, settings)
    torch.save(stage.autoencoder.state_dict(), out / f"autoencoder{number}.pt")
    unlike = with_values(preset, {"training.flip": False})
    fixed = random_autoencoder(unlike)
    latents = latents_of(fixed.autoencoder, images.images)
    os.environ["MASTER_PORT"] += "1"  # the first may not be free yet
    other = Settings(out=out / "g", device="cpu", steps=2, log=lambda line: None)
    model = train_generator(unlike, fixed, latents, other)
    torch.save(model.generator.state_dict(), out / f"generator{number}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights by name after two steps, of one process and of two."""
    alone, together = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("WORLD_SIZE", raising=False)
        environment.setenv("MASTER_PORT", "")
        train_both(alone, 0)
    context = multiprocessing.start_processes(
        rank, (2, "2962", str(together)), nprocs=2, start_method="spawn"
    )
    assert context is None  # all have ended well
    for folder in (alone, together):
        assert (folder / "autoencoder.safetensors").exists()
        assert (folder / "g" / "model.safetensors").exists()
    return [
        {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}
        for folder in (alone, together)
    ]


# Adam makes whole steps of the signs of gradients, those that are rounding too.
STRAYS = 0.005  # of a tensor's weights, at most


@pytest.mark.parametrize("name", ["autoencoder", "generator"])
def test_two_processes_make_the_step_of_one(trained, name):
    one, two = trained
    alone, first, second = one[f"{name}0"], two[f"{name}0"], two[f"{name}1"]
    assert all(torch.equal(first[k], second[k]) for k in first)
    for key, weight in alone.items():
        if weight.ndim > 1:  # a bias before a normalisation has rounding for a gradient
            equal = torch.isclose(first[key], weight, rtol=1e-3, atol=2e-5)
            assert equal.float().mean() >= 1 - STRAYS, key


@pytest.mark.parametrize(
    ("operation", "ask"),
    [
        ("all_reduce", lambda ranks: ranks.mean(torch.ones(2))),
        ("all_reduce", lambda ranks: ranks.any(True)),
        ("all_gather_object", lambda ranks: ranks.union({"bad"})),
        ("broadcast", lambda ranks: ranks.broadcast([torch.ones(2)])),
    ],
)
def test_a_process_that_has_ended_is_one_sentence_of_the_others(monkeypatch, operation, ask):
    def closed(*given):
        raise distributed.DistBackendError("Connection closed by peer [127.0.0.1]:1\nframe #0: ?")

    monkeypatch.setattr(distributed, operation, closed)
    with pytest.raises(LddganError) as caught:
        ask(Ranks(0, 2, torch.device("cpu")))
    told = "another process of this training has ended: Connection closed by peer [127.0.0.1]:1"
    assert str(caught.value) == told


def end_early(number: int, port: str, folder: str) -> None:
    """The second of two processes ends; the first goes on to ask it for something."""
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with joined("cpu") as ranks:
        ranks.any(False)
        if number == 0:
            asked = (
                lambda: ranks.broadcast([torch.ones(2)]),
                lambda: ranks.union({"bad"}),
                lambda: ranks.mean(torch.ones(2)),
            )
            told = []
            for ask in asked:
                try:
                    ask()
                except LddganError as error:
                    told.append(str(error))
            Path(folder, "told").write_text("\n".join(told))


@pytest.mark.full
def test_each_question_to_a_process_that_has_ended_is_one_sentence(tmp_path):
    multiprocessing.start_processes(
        end_early, ("2972", str(tmp_path)), nprocs=2, start_method="spawn"
    )
    told = (tmp_path / "told").read_text().splitlines()
    assert len(told) == 3
    assert all(line.startswith("another process of this training has ended: ") for line in told)


@pytest.mark.parametrize(
    ("rank", "said"), [(0, "is being written by process"), (1, "first process")]
)
def test_a_folder_in_use_ends_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, said: str
) -> None:
    heard: list[bool] = []
    monkeypatch.setattr(Ranks, "any", lambda self, here: heard.append(here) or True)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    with (
        sole_writer(tmp_path),
        pytest.raises(LddganError, match=said),
        ranks.sole_writer(tmp_path),
    ):
        pytest.fail("it is in use")
    assert heard == [rank == 0]


def test_only_the_first_process_takes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "any", lambda self, here: here)
    first, second = (Ranks(rank, 2, torch.device("cpu")) for rank in (0, 1))
    with first.sole_writer(tmp_path), second.sole_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
