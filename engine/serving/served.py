"""A bundle that is served: its engine, its batcher, and the digest that names its bytes."""

from __future__ import annotations

import json
from typing import Any, Final

from PIL import features

import lddgan
from engine.doctor import processor_name
from engine.gpu.driver import find_gpu
from engine.registry import find_engine
from engine.sampler import Sampler
from engine.serving.batcher import Batcher
from engine.serving.limits import Limits
from engine.serving.metrics import Metrics
from engine.serving.queues import Batch, Blocks, FirstCome, Queue, Slots
from engine.slots import check_slots, whole_batch
from export.bundle import MANIFEST, Bundle
from lddgan.extras import usable_cores, version_of
from lddgan.files import sha256_of_bytes, sha256_of_file

FORMAT: Final = 1  # of answers: raised when the same numbers become other bytes
DIGEST_LETTERS: Final = 16
MOST_FAILURES: Final = 3  # in a row: not ready
MEGABYTE: Final = 1_000_000
WAYS: Final[dict[str, type[Queue]]] = {"slots": Slots, "blocks": Blocks, "fast": FirstCome}


class Served:
    """One model. `digest` names its images to the bit."""

    def __init__(self, bundle: Bundle, sampler: Sampler, limits: Limits, metrics: Metrics) -> None:
        self.preset, self.sampler = bundle.preset, sampler
        self.name = bundle.preset.name
        self.manifest = sha256_of_file(bundle.folder / MANIFEST)
        self.kernels = sampler.backend.kernels()
        self.metrics, self.log = metrics, sampler.log
        batch = whole_batch(sampler, limits.batch)
        self.way = "fast" if limits.fast else way_of(sampler, batch)
        self.batcher = Batcher(
            sampler,
            WAYS[self.way](batch),
            wait=limits.wait,
            most=limits.queue,
            timeout=limits.timeout,
            cache_bytes=limits.cache_mb * MEGABYTE,
            seen=self._seen,
            shrunk=self._shrunk,
        )
        self.digest = self._named()
        metrics.watch(self.name, lambda: len(self.batcher.queue), lambda: self.batcher.cache.hits)

    @property
    def batch(self) -> int:
        return self.batcher.queue.batch

    @property
    def in_words(self) -> str:
        how = {
            "slots": "the same bytes in any company",
            "blocks": "the same bytes, computed in blocks of one seed",
            "fast": "the same to one grey level (--fast)",
        }
        return f"{self.sampler.description}, {self.batch} images at once, {how[self.way]}"

    @property
    def why_not_ready(self) -> str | None:
        failures = self.batcher.failures
        if failures < MOST_FAILURES:
            return None
        return f"{self.name}: the engine failed {failures} times in a row"

    def told(self) -> dict[str, Any]:
        """What clients may know of it: no path of this machine."""
        rate = self.batcher.rate
        measured = {"images_per_second": None if rate is None else round(rate, 2)}
        return self._facts() | {"digest": self.digest} | measured

    def _facts(self) -> dict[str, Any]:
        _, height, width = self.preset.image_shape
        backend = self.sampler.backend
        return {
            "name": self.name,
            "height": height,
            "width": width,
            "steps": self.preset.steps,
            "engine": backend.name,
            "precision": backend.precision,
            "runs_on": backend.where,
            "batch": self.batch,
            "exact": self.way != "fast",
            "random_weights": self.sampler.random_weights,
        }

    def _named(self) -> str:
        backend = self.sampler.backend
        packages = (*find_engine(backend.name).packages, "numpy", "pillow")
        facts = self._facts() | {
            "format": FORMAT,
            "way": self.way,
            "manifest": self.manifest,
            "kernels": self.kernels,
            "versions": {name: version_of(name) for name in packages},
            "encoders": {name: features.version(name) for name in ("zlib", "webp", "jpg")},
            "processor": processor_name(),
            "cores": usable_cores(),
            "gpu": find_gpu().description if backend.device == "cuda" else None,
        }
        digest = sha256_of_bytes(json.dumps(facts, sort_keys=True).encode())[:DIGEST_LETTERS]
        build = (self.name, digest, backend.name, backend.precision, lddgan.__version__)
        self.metrics.build.labels(*build).set(1)
        return digest

    def _seen(self, batch: Batch, seconds: float | None) -> None:
        if seconds is None:
            self.metrics.failures.labels(self.name).inc()
            return
        self.metrics.batches.labels(self.name).observe(len(batch.jobs))
        self.metrics.engine.labels(self.name).observe(seconds)
        self.metrics.images.labels(self.name).inc(len(batch.jobs))

    def _shrunk(self, fitting: int) -> None:
        self.digest = self._named()
        self.log(f"{self.name}: {fitting} images at once from now on, as {self.digest}")


def way_of(sampler: Sampler, batch: int) -> str:
    """Look whether an image is the same in any company. Says so if it is not."""
    found = check_slots(sampler, batch)
    if not found.changed:
        return "slots"
    sampler.log(
        f"{sampler.description}: {found.changed} of {found.compared} images changed with what else "
        f"was in their batch of {batch}; blocks of {batch} images of one seed are computed instead"
    )
    return "blocks"
