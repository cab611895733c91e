"""Prometheus text under vLLM's metric names. Knows requests' metrics and the engine's counters, no HTTP."""
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gramme.request import EngineStats, RequestMetrics

TTFT_S = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
E2E_S = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
LABELS = ("model_name", "engine")


class EngineCollector:
    """Reads the engine's last counters when it is asked."""

    def __init__(self, prefix: str, model: str, stats: Callable[[], EngineStats]):
        self._prefix, self._labels, self._stats = prefix, (model, "0"), stats

    def collect(self) -> Iterator[Metric]:
        s = self._stats()
        for kind, name, value in (
            (GaugeMetricFamily, "num_requests_running", s.running),
            (GaugeMetricFamily, "num_requests_waiting", s.waiting),
            (GaugeMetricFamily, "kv_cache_usage_perc", s.pages_used / max(1, s.pages_total)),
            (CounterMetricFamily, "prompt_tokens", s.prompt_tokens),
            (CounterMetricFamily, "generation_tokens", s.generated_tokens),
            (CounterMetricFamily, "num_preemptions", s.preemptions),
            (CounterMetricFamily, "prefix_cache_queries", s.prefix_queried_tokens),
            (CounterMetricFamily, "prefix_cache_hits", s.prefix_hit_tokens),
        ):
            family = kind(f"{self._prefix}:{name}", name.replace("_", " "), labels=LABELS)
            family.add_metric(self._labels, value)
            yield family


class Metrics:
    def __init__(self, prefix: str, model: str, stats: Callable[[], EngineStats]):
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(prefix, model, stats))
        self._labels = (model, "0")
        self._ttft = Histogram(f"{prefix}:time_to_first_token_seconds", "arrival to first token", LABELS,
                               buckets=TTFT_S, registry=self._registry)
        self._e2e = Histogram(f"{prefix}:e2e_request_latency_seconds", "arrival to last token", LABELS,
                              buckets=E2E_S, registry=self._registry)
        self._done = Counter(f"{prefix}:request_success", "requests by reason", (*LABELS, "finished_reason"),
                             registry=self._registry)

    def finished(self, m: RequestMetrics, reasons: list[str]) -> None:
        if m.first_token_s is not None:
            self._ttft.labels(*self._labels).observe(m.first_token_s - m.arrival_s)
        if m.finished_s is not None:
            self._e2e.labels(*self._labels).observe(m.finished_s - m.arrival_s)
        for reason in reasons:
            self._done.labels(*self._labels, reason).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
