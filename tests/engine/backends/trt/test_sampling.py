"""The sampler as a CUDA graph: through the real cuda-core, TensorRT played by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import registry
from engine.backends.trt import engine as opening
from engine.backends.trt import plans
from engine.backends.trt.build import BuildOptions, Built, Profile
from engine.backends.trt.run import ALIGNMENT, TrtBackend
from engine.graphed import MOST_GRAPHS, chunks_to_try
from engine.registry import open_engine
from engine.sampler import Sampler
from export.bundle import DIGITS, open_bundle
from export.graphs import graph_specs
from lddgan.errors import BadInput, LddganError
from lddgan.noise import sampler_noise
from lddgan.presets import PRESETS
from tests.engine.backends.trt.ort_runtime import Context10, Machine
from tests.engine.backends.trt.scripted import STRONG, WEAK
from tests.engine.stopwatch import Stopwatch

PRESET = PRESETS["digits"]
CALLS = PRESET.steps + 1  # contexts of a captured run: T calls of the generator, one of the decoder

pytestmark = pytest.mark.fake_cuda


@pytest.fixture(autouse=True)
def _one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "why_no_gpu", lambda: None)
    monkeypatch.setattr(opening, "why_missing", lambda name: None)

    def build_graph(library: Any, path: Path, *_: Any, **__: Any) -> Built:
        return Built(path.read_bytes(), None, 1.5)

    monkeypatch.setattr(plans, "build_graph", build_graph)


@pytest.fixture
def machine() -> Machine:
    return Machine(graph_specs(PRESET))


@pytest.fixture
def trt(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """Opens the digits on TensorRT; nothing is tuned, so that every run is asked for by a test."""

    def open_it(version: str = STRONG, **options: Any) -> Sampler:
        monkeypatch.setattr(opening, "load", lambda name: machine.library(version))
        monkeypatch.setattr(TrtBackend, "prepare", prepare)
        quiet = {"log": lambda _: None}
        return open_engine(open_bundle(DIGITS), "trt", "fp32", **{**quiet, **options})

    def prepare(self: TrtBackend, batch: int) -> None:
        machine.tuned.append(max(batch, self.least))

    return open_it


@pytest.fixture(scope="module")
def ort() -> Sampler:
    return open_engine(open_bundle(DIGITS), "ort", "fp32", "cpu")


def levels(a: Any, b: Any) -> int:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("version", [WEAK, STRONG])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_images_are_those_of_onnx_runtime(trt, ort: Sampler, version, cuda_graph: bool) -> None:
    sampler = trt(version, cuda_graph=cuda_graph)
    images = sampler.sample(6, seed=11, first=2**40)
    assert levels(images, ort.sample(6, seed=11, first=2**40)) <= 1
    assert images.max() - images.min() > 100
    assert sampler.backend.captures is cuda_graph


def test_graph_is_the_same_as_the_steps_one_by_one(trt) -> None:
    captured, stepwise = trt(), trt(cuda_graph=False)
    for seed in (1, 2**62):
        true = captured.sample(5, seed)
        assert np.array_equal(true, stepwise.sample(5, seed))
        for sampler in (captured, stepwise):  # among images of another seed
            made = sampler.run_at([seed, 9, 9, seed, 9], [0, 1, 2, 3, 4])
            assert np.array_equal(made[[0, 3]], true[[0, 3]])
    assert len(captured.backend.recorded) == 1


def test_same_seed_repeats_and_another_differs(trt) -> None:
    sampler = trt()
    first = sampler.sample(4, seed=5)
    other = sampler.sample(4, seed=6)
    assert levels(first, other) > 50
    assert np.array_equal(sampler.sample(4, seed=5), first)
    assert levels(sampler.sample(4, seed=5, first=1), first) > 50
    assert levels(sampler.sample(4, seed=5, first=1)[:3], first[1:]) <= 1


def test_graph_is_captured_once_and_nothing_made_after(trt, machine: Machine) -> None:
    sampler = trt()
    sampler.sample(3, seed=0)
    assert machine.runs == [("generator", 3)] * 4 + [("decoder", 3)] + (
        [("generator", 3)] * 4 + [("decoder", 3)]  # the warm-up, and the first replay
    )
    contexts, addresses = len(machine.contexts), machine.addresses
    assert contexts == CALLS
    for seed in range(1, 4):
        sampler.sample(3, seed=seed)
    assert (len(machine.contexts), machine.addresses) == (contexts, addresses)
    assert len(machine.runs) == 5 * CALLS


def test_contexts_share_one_block_of_memory(trt, machine: Machine) -> None:
    trt().sample(3)
    assert len({context.memory[0] for context in machine.contexts}) == 1


def test_smaller_batches_are_padded_and_keep_their_bits(trt, machine) -> None:
    sampler = trt()
    eight = sampler.sample(8, seed=3, first=7)
    contexts = len(machine.contexts)
    assert np.array_equal(sampler.sample(5, seed=3, first=7), eight[:5])
    assert np.array_equal(sampler.sample(4, seed=3, first=9), eight[2:6])
    assert len(machine.contexts) == contexts
    sampler.sample(3, seed=3, first=7)  # below half: a graph of its own
    assert len(machine.contexts) == contexts + CALLS


def test_a_batch_above_the_chunk_runs_in_chunks(trt, ort: Sampler, machine: Machine) -> None:
    sampler = trt(chunk=4)
    assert levels(sampler.sample(11, seed=2), ort.sample(11, seed=2)) <= 1
    assert {batch for _, batch in machine.runs} == {4}  # the last three too


def test_plans_for_a_fixed_batch_serve_fewer_images(trt, machine: Machine) -> None:
    built(machine, Profile(min=6, opt=6, max=6))
    sampler = trt()
    six = sampler.sample(6, seed=1)
    assert np.array_equal(sampler.sample(2, seed=1), six[:2])
    assert {batch for _, batch in machine.runs} == {6}
    with pytest.raises(BadInput, match=r"batch 2, the engine .* takes 6\.\.6; `lddgan build"):
        sampler.inputs(0, 0, 2), sampler.denoise(sampler.inputs(0, 0, 2))


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_decoder_runs_in_its_own_chunk(trt, ort: Sampler, machine: Machine, cuda_graph) -> None:
    sampler = trt(cuda_graph=cuda_graph)
    sampler.backend.chunks[8] = 3
    assert levels(sampler.sample(8, seed=4), ort.sample(8, seed=4)) <= 1
    decoded = [batch for which, batch in machine.runs if which == "decoder"]
    assert decoded == [3, 3, 2] * (2 if cuda_graph else 1)
    assert [b for which, b in machine.runs if which == "generator"] == [8] * (len(decoded) * 4 // 3)


def test_only_so_many_graphs_are_kept(trt, ort: Sampler) -> None:
    sampler = trt()
    sizes = [1, 3, 7, 15, 31, 63, 2, 5, 11]
    assert len(sizes) == MOST_GRAPHS + 1
    for size in sorted(sizes):
        sampler.backend.run(sampler.program, PRESET, 0, 0, size)
    backend: Any = sampler.backend
    assert len(backend.recorded) == MOST_GRAPHS
    assert min(backend.recorded) == 2
    assert levels(sampler.sample(1, seed=8), ort.sample(1, seed=8)) <= 1


def test_noise_drawn_on_the_gpu_is_the_noise_of_numpy(trt) -> None:
    sampler = trt()
    drawn = sampler.inputs(seed=2**63 - 1, first=2**32 - 2, count=5)
    true = sampler_noise(
        2**63 - 1, 2**32 - 2, 5, latent_shape=PRESET.latent_shape, nz=50, steps=PRESET.steps
    )
    assert PRESET.generator.nz == 50
    download = sampler.backend.download
    assert np.array_equal(download(drawn.x_T), true.x_T)
    for k in range(PRESET.steps):
        assert np.array_equal(download(drawn.z[k]), true.z[k])
        assert np.array_equal(download(drawn.noise[k]), true.noise[k])


def given(count: int) -> tuple[Any, ...]:
    generator = np.random.default_rng(3)
    shape, steps = PRESET.latent_shape, PRESET.steps
    shapes = ((count, *shape), (steps, count, PRESET.generator.nz), (steps, count, *shape))
    return tuple(generator.standard_normal(s, np.float32) for s in shapes)


def test_given_noise_from_the_host_and_from_the_gpu(trt, ort: Sampler, machine: Machine) -> None:
    sampler = trt()
    true = ort.run(*given(3))
    assert levels(sampler.run(*given(3)), true) <= 1
    x_T, z, noise = (sampler.backend.upload(array) for array in given(3))
    made = sampler.make_from(x_T, z, noise)
    assert levels(sampler.backend.download(made.image), true) <= 1
    bound = machine.contexts[0].addresses  # of the generator's last call
    assert z[PRESET.steps - 1].address % ALIGNMENT != 0  # TensorRT refuses it: it reads a copy
    assert bound["noise"] == noise[PRESET.steps - 1].address


class Foreign:
    """An array of another library: all it offers is the interface."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | {"stream": None}


def test_arrays_of_other_libraries_are_read_in_place(trt, ort: Sampler, machine: Machine) -> None:
    sampler = trt()
    arrays = [sampler.backend.upload(array) for array in given(2)]
    made = sampler.make_from(*map(Foreign, arrays))
    assert levels(sampler.backend.download(made.image), ort.run(*given(2))) <= 1
    assert machine.contexts[0].addresses["noise"] == arrays[2][PRESET.steps - 1].address
    with pytest.raises(BadInput, match=r"z is float32 \[2, 4, 8, 8\], expected float32 \[4, 2, 50"):
        sampler.make_from(Foreign(arrays[0]), Foreign(arrays[0]), Foreign(arrays[2]))


def test_result_of_make_stays_on_the_gpu_until_the_next_call(trt) -> None:
    sampler = trt()
    first = sampler.make(seed=1, first=0, count=2)
    kept = sampler.backend.download(first.image)
    second = sampler.make(seed=2, first=0, count=2)
    assert second.image.address == first.image.address
    assert levels(sampler.backend.download(first.image), kept) > 50
    assert first.image.__cuda_array_interface__["shape"] == (2, 32, 32, 3)


def test_out_of_memory_halves_the_chunk(trt, machine, ort) -> None:
    from tests.fake_cuda import set_memory, used

    sampler = trt(chunk=32)
    sampler.sample(4)
    said: list[str] = []
    sampler.log = said.append
    set_memory(used() + 300_000)
    images = sampler.sample(32, seed=9)
    assert levels(images, ort.sample(32, seed=9)) <= 1
    assert sampler.chunk == 32  # for requests that need less memory
    assert all("too little free memory" in line for line in said)
    assert said[0].endswith("going on with 16 images at once instead of 32")


def test_tuning_keeps_the_fastest_chunk_beside_the_plans(trt, machine, monkeypatch) -> None:
    sampler = trt()
    monkeypatch.undo()
    backend: Any = sampler.backend
    clock = Stopwatch({20: 5.0, 5: 3.0, 2: 8.0, 1: 9.0})
    monkeypatch.setattr(backend, "timer", lambda: clock)
    monkeypatch.setattr(backend, "decode_in", lambda x_0, chunk: clock.run(chunk))
    backend.prepare(20)
    assert backend.chunks == {20: 5}
    again = plans.choose(backend.plans.folder.parent, backend.plans.key, [20], print)
    assert again is not None and again.tuning.read() == {20: 5}


def test_tuning_gives_its_memory_back(trt, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fake_cuda import used

    sampler = trt()
    monkeypatch.undo()
    sampler.backend.gpu.synchronize()
    before = used()
    sampler.backend.prepare(20)
    assert sampler.backend.chunks[20] in chunks_to_try(20, 1)
    sampler.backend.gpu.synchronize()
    assert used() == before and sampler.backend.contexts == {}


@pytest.mark.parametrize(
    ("asked", "tuned"),
    [
        ({}, 100),
        ({"batch": 7}, 7),
        ({"batch": 100}, 100),
        ({"batch": 150}, 75),
        ({"batch": 151}, 76),
        ({"batch": 9, "chunk": 4}, 3),
    ],
)
def test_the_decoder_is_tuned_for_the_batch_that_it_runs(
    trt, machine: Machine, asked: dict[str, int], tuned: int
) -> None:
    sampler = trt(**asked)
    assert machine.tuned == [tuned]
    sampler.sample(asked.get("batch", 100))
    assert machine.runs[0] == ("generator", tuned)


def test_the_decoder_of_a_fixed_batch_is_tuned_for_that(trt, machine: Machine) -> None:
    built(machine, Profile(min=100, opt=100, max=100))
    assert trt(batch=150).backend.facts()["profile"] == "100,100,100"
    assert machine.tuned == [100]


def built(machine: Machine, profile: Profile, level: int = 3, version: str = STRONG) -> Path:
    """Build an engine of the digits; where it is."""
    tools = opening.Tools(machine.library(version), opening.open_gpu())
    options = BuildOptions(precision="fp32", profile=profile, level=level)
    bundle = open_bundle(DIGITS)
    return plans.ensure(bundle, tools.library, tools.identity, options, log=lambda _: None).folder


@pytest.mark.parametrize("harm", ["truncated", "of another version"])
def test_what_cannot_be_used_is_built_again_in_its_sizes(trt, machine: Machine, harm: str) -> None:
    version = WEAK if harm == "of another version" else STRONG
    old = built(machine, Profile(min=1, opt=100, max=100), level=5, version=version)
    if harm == "truncated":
        (old / "decoder.plan").write_bytes((old / "decoder.plan").read_bytes()[:-1])
    said: list[str] = []
    plan = trt(batch=100, log=said.append).backend.facts()
    assert (plan["profile"], plan["level"]) == ("1,100,100", 5)
    left_aside = [line for line in said if line.startswith(f"{old} is left aside")]
    assert len(left_aside) == (harm == "truncated")
    assert "building for batches 1,100,100 at level 5, as it was before" in said


def test_what_a_killed_builder_moved_away_is_found(trt, machine: Machine) -> None:
    old = built(machine, Profile(min=1, opt=90, max=100))
    old.rename(old.parent / f".{old.name}.0123abcd.tmp")
    assert trt(batch=100).backend.plans.folder == old


def test_rtx_is_built_alike_on_first_use_and_by_hand(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int | None] = []

    def build_graph(library: Any, path: Path, *_: Any, workspace: int | None, **__: Any) -> Built:
        limits.append(workspace)
        return Built(path.read_bytes(), None, 1.5)

    monkeypatch.setattr(plans, "build_graph", build_graph)
    library = replace(machine.library(STRONG), name="trt-rtx")
    monkeypatch.setattr(opening, "load", lambda name: library)
    bundle, quiet = open_bundle(DIGITS), lambda _: None
    tools = opening.Tools(library, opening.open_gpu())
    first = opening.suitable_plans(bundle, tools, "fp32", None, quiet)
    options = BuildOptions(precision="fp32")
    again = opening.build_plans(bundle, "trt-rtx", options, rebuild=True, log=quiet)
    assert again.key == first.key and limits == [None] * 4


def test_opening_finds_the_plans_tuned_nearest_to_the_batch(trt, machine: Machine) -> None:
    assert trt().backend.facts()["profile"] == "1,16,100"
    built(machine, Profile(min=1, opt=90, max=100))
    assert trt(batch=100).backend.facts()["profile"] == "1,90,100"
    assert trt(batch=4).backend.facts()["profile"] == "1,16,100"
    with pytest.raises(BadInput, match=r"chunk is 101, the engine .* takes 1\.\.100"):
        trt(chunk=101)


def test_opening_finds_plans_above_the_default_profile(trt, machine: Machine) -> None:
    built(machine, Profile(min=127, opt=127, max=127))
    machine.most = 127
    assert trt(batch=127).backend.facts()["profile"] == "127,127,127"
    assert trt(batch=500).backend.facts()["profile"] == "127,127,127"
    assert trt(batch=100).backend.facts()["profile"] == "1,16,100"
    assert trt(batch=126).backend.facts()["profile"] == "1,16,100"


def test_rtx_that_cannot_be_captured_is_an_error(trt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Context10, "is_stream_capturable", lambda self, stream: False, raising=False
    )
    with pytest.raises(LddganError, match="use --no-cuda-graph"):
        trt().sample(2)
    assert len(trt(cuda_graph=False).sample(2)) == 2


def test_engine_that_failed_verification_is_refused(trt) -> None:
    from engine.verify import verify_engine
    from lddgan.checkpoint import load_checkpoint

    sampler = trt()
    backend: Any = sampler.backend
    model = load_checkpoint(open_bundle(DIGITS).file("model.safetensors"))
    good = verify_engine(sampler, model, images=4, device="cpu", log=lambda _: None)
    assert good.passed and good.noise_identical
    backend.plans.save_verification(good)
    assert trt().backend.plans.folder == backend.plans.folder
    backend.plans.save_verification(good.model_copy(update={"why_failed": "the images are black"}))
    with pytest.raises(LddganError, match="the images are black"):
        trt()
    assert trt(accept_failed=True).backend.plans.folder == backend.plans.folder


def test_description_names_gpu_and_library(trt) -> None:
    sampler = trt()
    assert sampler.description.startswith("trt fp32 on ")
    assert sampler.description.endswith(f"(TensorRT {STRONG})")
