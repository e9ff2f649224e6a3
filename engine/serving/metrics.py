"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram, model = partial(Histogram, registry=registry), ["model"]
        self.requests = counter("lddgan_requests", "Requests answered", ["route", "code"])
        told = "From a request's headers to the end of its answer"
        self.seconds = histogram("lddgan_request_seconds", told, ["route"], buckets=SECONDS)
        self.images = counter("lddgan_images", "Images computed", model)
        told = "Images asked for in a batch"
        self.batches = histogram("lddgan_batch_images", told, model, buckets=IMAGES)
        told = "The engine's time for a batch"
        self.engine = histogram("lddgan_engine_seconds", told, model, buckets=SECONDS)
        self.failures = counter("lddgan_engine_failures", "Batches that failed", model)
        self.queued = gauge("lddgan_queue_images", "Images that wait", model)
        self.hits = gauge("lddgan_cache_hits", "Images found in memory", model)
        labels = ["model", "digest", "engine", "precision", "version"]
        self.build = gauge("lddgan_build_info", "What makes the images", labels)

    def watch(self, model: str, queued: Callable[[], int], hits: Callable[[], int]) -> None:
        """Read the numbers of a model whenever they are asked for."""
        self.queued.labels(model).set_function(queued)
        self.hits.labels(model).set_function(hits)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)
