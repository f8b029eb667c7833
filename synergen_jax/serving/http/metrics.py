"""Figures for Prometheus."""

from __future__ import annotations

import collections.abc
import re

import prometheus_client
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from synergen_jax.serving.http import logs

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
USERS = "/v1/users/"
PATHS = {
    *(f"/v1/{name}" for name in ("recommend", "search", "rank", "similar", "events")),
    *("/healthz", "/readyz", "/metrics", "/openapi.json"),
}
METHODS = {"GET", "HEAD", "POST", "DELETE"}


def template(path: str) -> str:
    """The endpoint of a path, without the user in it; "other": there is none."""
    if path in PATHS:
        return path
    return f"{USERS}{{id}}" if path.startswith(USERS) else "other"


class Metrics:
    """Counters of one service, and the gauges of its engine.

    Args:
      gauges: figures of the moment, by name.
    """

    def __init__(self, gauges: collections.abc.Callable[[], dict[str, float]]):
        self._registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        self._requests = prometheus_client.Counter(
            "synergen_requests", "Requests answered.", ("path", "method", "status"), registry=registry
        )
        self._seconds = prometheus_client.Histogram(
            "synergen_request_seconds", "Time until answered.", ("path",), buckets=SECONDS, registry=registry
        )
        self._refusals = prometheus_client.Counter(
            "synergen_queue_refusals", "Requests refused since too many wait.", registry=registry
        )
        self.running = prometheus_client.Gauge(
            "synergen_requests_in_flight",
            "Requests not yet answered, but for those of health and figures.",
            registry=registry,
        )
        registry.register(_Gauges(gauges))

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Counts a request.

        Args:
          path: its template.
        """
        self._requests.labels(path, method if method in METHODS else "other", status).inc()
        self._seconds.labels(path).observe(seconds)
        if status == 429:
            self._refusals.inc()

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return prometheus_client.generate_latest(self._registry)


class _Gauges(Collector):
    """The engine's gauges. One that fails costs these alone."""

    def __init__(self, gauges: collections.abc.Callable[[], dict[str, float]]):
        self._gauges = gauges

    def describe(self) -> collections.abc.Iterable[Metric]:
        """None: their names are known when they are asked for."""
        return []

    def collect(self) -> collections.abc.Iterable[Metric]:
        """One metric a gauge."""
        try:
            found = self._gauges()
        except Exception:
            logs.failed("gauges")
            return
        for name, value in found.items():
            family = GaugeMetricFamily(f"synergen_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}", f"The engine's {name}.")
            family.add_metric([], value)
            yield family
