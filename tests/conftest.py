"""Small models that exercise every kind of layer, and their bundles."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from engine.gpu.driver import find_gpu
from lddgan.networks.configs import KlConfig, NcsnppConfig, SmallConfig, VqConfig
from lddgan.preset import Preset, Training
from tests.bundles import exported
from tests.fake_cuda.plugin import (  # noqa: F401 - pytest finds hooks by their names
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_logreport,
    pytest_runtest_setup,
)

OURS = ("lddgan", "export", "engine", "bench", "cli", "tests")


class Module(pytest.Module):
    """A file of tests, skipped whole where a library that it imports is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            yield from super().collect()
        except self.CollectError as error:
            cause = error.__cause__
            missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
            if missing is None or missing.partition(".")[0] in OURS:
                raise
            pytest.skip(f"{missing} is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Module:
    made: Module = Module.from_parent(parent, path=module_path)
    return made


TRAINING = Training(
    lr_g=1e-3,
    lr_d=1e-3,
    batch=8,
    epochs=2,
    ema_decay=0.9,
    r1_gamma=0.1,
    r1_every=2,
    reconstruction=True,
)

TINY = Preset(  # KL, two levels, attention at both and in the codec, tanh
    name="tiny",
    image_size=32,
    latent_channels=4,
    latent_size=8,
    scale_factor=2.0,
    steps=3,
    generator=NcsnppConfig(
        nf=16, ch_mult=(1, 2), blocks=1, attention=(4,), nz=10, mapping_layers=2, z_emb_dim=16
    ),
    autoencoder=KlConfig(ch=32, ch_mult=(1, 2, 1), blocks=1, attention=(8,), tanh=True),
    discriminator=SmallConfig(ngf=16, layers=2, t_emb_dim=16),
    training=TRAINING,
)

TINY_VQ = TINY.model_copy(  # VQ with a codebook of more than one slice of the search
    update={
        "name": "tiny_vq",
        "latent_channels": 3,
        "steps": 2,
        "autoencoder": VqConfig(ch=32, ch_mult=(1, 1, 1), blocks=1, codes=600),
    }
)


def pytest_collection_finish() -> None:
    """Looking for garbage leaves out what was imported by then."""
    gc.freeze()


@pytest.fixture
def driver_asked_anew() -> Iterator[None]:
    """For a test with a driver of its own: what another test found is forgotten, as is its own."""
    find_gpu.cache_clear()
    yield
    find_gpu.cache_clear()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as these gain nothing from more, and lose much where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model():  # type: ignore[no-untyped-def]
    """A random KL model."""
    from lddgan.checkpoint import random_model

    return random_model(TINY)


@pytest.fixture(scope="session")
def tiny_vq_model():  # type: ignore[no-untyped-def]
    """A random VQ model."""
    from lddgan.checkpoint import random_model

    return random_model(TINY_VQ)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model, tiny_vq_model) -> Path:  # type: ignore[no-untyped-def]
    """The KL model exported in fp32 and fp16. Tests that change files copy it first."""
    pytest.importorskip("onnxscript")
    other = partial(exported, tiny_vq_model, ("fp32",))  # while another process makes this one
    return exported(tiny_model, ("fp32", "fp16"), other)


@pytest.fixture(scope="session")
def tiny_vq_bundle(tiny_vq_model) -> Path:  # type: ignore[no-untyped-def]
    """The VQ model exported in fp32."""
    pytest.importorskip("onnxscript")
    return exported(tiny_vq_model, ("fp32",))


@pytest.fixture(scope="session")
def bare_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Path:  # type: ignore[no-untyped-def]
    """The KL model without graphs, for the engines that need none; made without onnx."""
    return bare(tmp_path_factory.mktemp("bare") / "tiny", tiny_model)


@pytest.fixture(scope="session")
def bare_vq_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_vq_model) -> Path:  # type: ignore[no-untyped-def]
    """The VQ model without graphs."""
    return bare(tmp_path_factory.mktemp("bare") / "tiny_vq", tiny_vq_model)


def bare(folder: Path, model) -> Path:  # type: ignore[no-untyped-def]
    from export.exporter import export_bundle

    export_bundle(model, folder, ())
    return folder
