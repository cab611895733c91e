"""Prometheus text under vLLM's metric names. Knows requests' metrics and the engine's counters, no HTTP."""
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gramme.llm.assembly import Assembly
from gramme.request import EngineStats, RequestMetrics

TTFT_S = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
E2E_S = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKEN_S = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
COUNTS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
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
            (GaugeMetricFamily, "kv_pages", s.pages_total),
            (GaugeMetricFamily, "kv_pages_used", s.pages_used),
            (GaugeMetricFamily, "kv_pages_cached", s.pages_cached),
            (GaugeMetricFamily, "step_rows", s.rows),
            (CounterMetricFamily, "steps", s.steps),
            (CounterMetricFamily, "step_seconds", s.step_s),
            (CounterMetricFamily, "grammar_masks", s.grammar_masks),
            (CounterMetricFamily, "grammar_mask_seconds", s.grammar_mask_s),
            (CounterMetricFamily, "grammar_compile_seconds", s.grammar_compile_s),
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
    """Counts and histograms of requests. One label set: nothing that a client sends becomes a label."""

    def __init__(self, prefix: str, model: str, stats: Callable[[], EngineStats]):
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(prefix, model, stats))
        made = lambda name, text, buckets: Histogram(
            f"{prefix}:{name}", text, LABELS, buckets=buckets, registry=self._registry).labels(model, "0")
        self._ttft = made("time_to_first_token_seconds", "arrival to first token", TTFT_S)
        self._itl = made("inter_token_latency_seconds", "between two tokens of a request", TOKEN_S)
        self._e2e = made("e2e_request_latency_seconds", "arrival to last token", E2E_S)
        self._queue = made("request_queue_time_seconds", "arrival to the first step", E2E_S)
        self._prefill = made("request_prefill_time_seconds", "first step to first token", E2E_S)
        self._decode = made("request_decode_time_seconds", "first token to last", E2E_S)
        self._inference = made("request_inference_time_seconds", "first step to last token", E2E_S)
        self._prompt = made("request_prompt_tokens", "tokens of a prompt", COUNTS)
        self._made = made("request_generation_tokens", "tokens of an answer", COUNTS)
        self.sequence_s = 1.0  # what a sequence took lately, from its first step to its end
        self._labels = (model, "0")
        self._done = Counter(f"{prefix}:request_success", "requests by reason", (*LABELS, "finished_reason"),
                             registry=self._registry)

    def progressed(self, before: RequestMetrics, after: RequestMetrics) -> None:
        """A request that had a token got more."""
        if before.first_token_s is not None and before.finished_s is not None and after.finished_s is not None:
            self._itl.observe(after.finished_s - before.finished_s)

    def finished(self, assembly: Assembly) -> None:
        m = assembly.metrics
        spans = ((self._queue, m.arrival_s, m.scheduled_s), (self._ttft, m.arrival_s, m.first_token_s),
                 (self._prefill, m.scheduled_s, m.first_token_s), (self._decode, m.first_token_s, m.finished_s),
                 (self._inference, m.scheduled_s, m.finished_s), (self._e2e, m.arrival_s, m.finished_s))
        for histogram, began_s, ended_s in spans:
            if began_s is not None and ended_s is not None:
                histogram.observe(ended_s - began_s)
        if m.scheduled_s is not None and m.finished_s is not None:
            self.sequence_s += 0.1 * (m.finished_s - m.scheduled_s - self.sequence_s)
        self._prompt.observe(len(assembly.request.prompt_token_ids))
        for tokens, reason in zip(assembly.tokens, assembly.reasons):
            self._made.observe(len(tokens))
            if reason is not None:
                self._done.labels(*self._labels, reason).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
