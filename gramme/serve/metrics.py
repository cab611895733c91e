"""Prometheus text under vLLM's metric names. Knows requests' metrics and the engine's counters, no HTTP."""
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gramme.llm.assembly import Assembly
from gramme.plan.receipts import KINDS
from gramme.request import PARTS, EngineStats, RequestMetrics

PART_S = tuple(m * 10.0**e for e in range(-5, 4) for m in (1, 3))
TTFT_S = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
RATIOS = (.125, .25, .4, .5, .6, .7, .75, .8, .85, .9, .95, 1, 1.05, 1.1, 1.15, 1.2, 1.25, 1.33, 1.5, 2, 2.5, 4, 8)
E2E_S = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKEN_S = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
COUNTS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
LABELS = ("model_name", "engine")
RECENT = 256  # requests whose predictions are remembered one by one


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
        yield from self._receipt(s)

    def _receipt(self, s: EngineStats) -> Iterator[Metric]:
        """Seconds of machine add up to the time since the engine was ready."""
        made = lambda name, text, *more: CounterMetricFamily(f"{self._prefix}:{name}", text, labels=(*LABELS, *more))
        seconds = made("machine_seconds", "by what they went to", "kind")
        tokens = made("machine_tokens", "by why they were run", "kind")
        for kind in KINDS:
            seconds.add_metric((*self._labels, kind), getattr(s.spent, f"{kind}_s", 0.0))
            tokens.add_metric((*self._labels, kind), getattr(s.spent, f"{kind}_tokens"))
        seconds.add_metric((*self._labels, "other"), s.other_s)
        seconds.add_metric((*self._labels, "idle"), s.idle_s)
        yield from (seconds, tokens)
        joules = made("machine_joules", f"at work, {s.power_source}")
        joules.add_metric(self._labels, s.spent.joules)
        yield joules


class Metrics:
    """Counts and histograms of requests. One label set: nothing that a client sends becomes a label."""

    def __init__(self, prefix: str, model: str, stats: Callable[[], EngineStats]):
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(prefix, model, stats))
        made = lambda name, text, buckets: Histogram(
            f"{prefix}:{name}", text, LABELS, buckets=buckets, registry=self._registry).labels(model, "0")
        self._ttft = made("time_to_first_token_seconds", "arrival to the first of the answer", TTFT_S)
        self._predicted = made("predicted_time_to_first_token_seconds", "the same, as predicted at admission", TTFT_S)
        self._ratio = made("time_to_first_token_over_predicted", "measured over predicted", RATIOS)
        self._parts = {part: made(f"request_{part}_time_seconds", f"part of the time to first token: {part}", PART_S)
                       for part in PARTS}
        self._itl = made("inter_token_latency_seconds", "between two tokens of a request", TOKEN_S)
        self._e2e = made("e2e_request_latency_seconds", "arrival to last token", E2E_S)
        self._decode = made("request_decode_time_seconds", "first token to last", E2E_S)
        self._inference = made("request_inference_time_seconds", "first step to last token", E2E_S)
        self._prompt = made("request_prompt_tokens", "tokens of a prompt", COUNTS)
        self._computed = made("request_prefill_kv_computed_tokens", "tokens of a prompt that were not cached", COUNTS)
        self._made = made("request_generation_tokens", "tokens of an answer", COUNTS)
        self.sequence_s = 1.0  # what a sequence took lately, from its first step to its end
        self.flush_s = 0.0  # what it took lately from the engine's first token to its handing over
        self.foretold_s: deque[tuple[float, float]] = deque(maxlen=RECENT)  # times to first token: predicted, measured
        self._labels = (model, "0")
        self._done = Counter(f"{prefix}:request_success", "requests by reason", (*LABELS, "finished_reason"),
                             registry=self._registry)

    def progressed(self, before: RequestMetrics, after: RequestMetrics) -> None:
        """A request that had a token got more."""
        if before.stamps.sampled_ns:
            self._itl.observe((after.newest_ns - before.newest_ns) / 1e9)

    def finished(self, assembly: Assembly) -> None:
        s, newest_ns = assembly.metrics.stamps, assembly.metrics.newest_ns
        spans = ((self._ttft, s.arrived_ns, s.flushed_ns), (self._decode, s.sampled_ns, newest_ns),
                 (self._inference, s.scheduled_ns, newest_ns), (self._e2e, s.arrived_ns, newest_ns))
        for histogram, began_ns, ended_ns in spans:
            if began_ns and ended_ns:
                histogram.observe((ended_ns - began_ns) / 1e9)
        for part, spent_ns in s.parts().items():
            self._parts[part].observe(spent_ns / 1e9)
        if s.flushed_ns:
            self.flush_s += 0.1 * ((s.flushed_ns - s.sampled_ns) / 1e9 - self.flush_s)
        if s.scheduled_ns:
            self.sequence_s += 0.1 * ((newest_ns - s.scheduled_ns) / 1e9 - self.sequence_s)
        prompt = len(assembly.request.prompt_token_ids)
        self._prompt.observe(prompt)
        self._computed.observe(prompt - assembly.metrics.cached_tokens)
        for tokens, reason in zip(assembly.tokens, assembly.reasons):
            self._made.observe(len(tokens))
            if reason is not None:
                self._done.labels(*self._labels, reason).inc()

    def foretold(self, predicted_s: float, measured_s: float) -> None:
        """Of a time to first token."""
        if measured_s > 0:
            self.foretold_s.append((predicted_s, measured_s))
            self._predicted.observe(predicted_s)
            self._ratio.observe(measured_s / predicted_s)

    def text(self) -> bytes:
        return generate_latest(self._registry)
