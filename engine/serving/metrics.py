"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lddgan_requests", "Requests answered", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "lddgan_request_seconds",
            "From a request's headers to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.images = Counter("lddgan_images", "Images computed", ["model"], registry=registry)
        self.batches = Histogram(
            "lddgan_batch_images",
            "Images asked for in a batch",
            ["model"],
            buckets=IMAGES,
            registry=registry,
        )
        self.engine = Histogram(
            "lddgan_engine_seconds",
            "The engine's time for a batch",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.failures = Counter(
            "lddgan_engine_failures", "Batches that failed", ["model"], registry=registry
        )
        self.queued = Gauge("lddgan_queue_images", "Images that wait", ["model"], registry=registry)
        self.hits = Gauge(
            "lddgan_cache_hits", "Images found in memory", ["model"], registry=registry
        )
        self.build = Gauge(
            "lddgan_build_info",
            "What makes the images",
            ["model", "digest", "engine", "precision", "version"],
            registry=registry,
        )

    def watch(self, model: str, queued: Callable[[], int], hits: Callable[[], int]) -> None:
        """Read the numbers of a model whenever they are asked for."""
        self.queued.labels(model).set_function(queued)
        self.hits.labels(model).set_function(hits)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)
