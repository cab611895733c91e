"""The numbers of a load: percentiles as interpolated by hand, throughput and goodput as counted by hand."""
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.bench.latency import each, good, parse_slo, spread, summary
from gramme.bench.load import INTERRUPTED, Outcome, Run
from gramme.bench.workload import Ask
from gramme.config import ConfigError


def percentile(values, p):
    """Linear between the two nearest ranks."""
    ordered, at = sorted(values), (len(values) - 1) * p / 100
    low = math.floor(at)
    return ordered[low] + (ordered[math.ceil(at)] - ordered[low]) * (at - low)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=60))
def test_percentiles_are_those_of_the_definition(seconds):
    got = spread("ttft", seconds)
    for name, p in (("median", 50), ("p90", 90), ("p99", 99), ("max", 100)):
        assert got[f"{name}_ttft_ms"] == pytest.approx(1e3 * percentile(seconds, p))
    mean = sum(seconds) / len(seconds)
    assert got["mean_ttft_ms"] == pytest.approx(1e3 * mean)
    std = math.sqrt(sum((s - mean) ** 2 for s in seconds) / len(seconds))
    assert got["std_ttft_ms"] == pytest.approx(1e3 * std, abs=1e-6)


def done(ttft_s, e2el_s, tokens, gaps_s=(), prompt=10, lag_s=0.0):
    return Outcome(ask=Ask(0.0, prompt, tokens), ttft_s=ttft_s, e2el_s=e2el_s, output_tokens=tokens, gaps_s=gaps_s,
                   prompt_tokens=prompt, has_usage=True, lag_s=lag_s)


FAILED = Outcome(ask=Ask(0.0, 10, 5), failure="HTTP 429")
CUT = Outcome(ask=Ask(0.0, 10, 5), failure=INTERRUPTED)
SLO = {"ttft": 0.1, "tpot": 0.02, "e2el": 1.0}


@pytest.mark.parametrize("outcome, is_good", [
    (done(0.1, 0.1 + 0.0199 * 10, 11), True), (done(0.1001, 0.2, 11), False), (done(0.1, 0.1 + 0.0201 * 10, 11), False),
    (done(0.05, 0.05, 1), True), (done(0.05, 1.01, 200), False), (FAILED, False)])
def test_good_means_every_limit(outcome, is_good):
    assert good(outcome, SLO) is is_good
    assert good(outcome, {}) is (outcome.failure is None)


def test_a_summary_by_hand():
    outcomes = (done(0.05, 0.25, 11, (0.02,) * 10), done(0.3, 0.5, 11, (0.02,) * 10), FAILED, done(0.05, 0.05, 1))
    r = summary(Run(outcomes, 2.0, 0.5, False), window_s=1.0, slo=SLO)
    assert (r["completed"], r["failed"], r["failures"]) == (3, 1, {"HTTP 429": 1})
    assert (r["total_input_tokens"], r["total_output_tokens"]) == (30, 23)
    assert (r["request_throughput"], r["output_throughput"], r["total_token_throughput"]) == (1.5, 11.5, 26.5)
    assert (r["request_goodput"], r["goodput_share"], r["offered_rate"]) == (1.0, 0.5, 4.0)
    assert r["median_ttft_ms"] == pytest.approx(50) and r["mean_tpot_ms"] == pytest.approx(20)
    assert r["median_itl_ms"] == pytest.approx(20) and r["max_e2el_ms"] == pytest.approx(500)
    assert r["client"]["cpu_share"] == 0.25
    lists = each(Run(outcomes, 2.0, 0.5, False))
    assert lists["ttft_ms"] == [50, 300, None, 50] and lists["tpot_ms"] == [20, 20, None, None]


def test_what_an_interrupt_cut_off_was_not_offered_and_nothing_is_no_error():
    r = summary(Run((done(0.05, 0.05, 1), CUT), 0.5, 0.0, True), window_s=10.0, slo=SLO)
    assert (r["completed"], r["failed"], r["goodput_share"], r["offered_rate"]) == (1, 0, 1.0, 2.0)
    assert r["failures"] == {INTERRUPTED: 1}
    nothing = summary(Run((CUT,), 0.5, 0.0, True), window_s=10.0, slo=SLO)
    assert nothing["goodput_share"] is None and nothing["median_ttft_ms"] is None


def test_limits_are_milliseconds_unless_a_unit_is_said():
    assert parse_slo("ttft:100,tpot:20") == {"ttft": 0.1, "tpot": 0.02}
    assert parse_slo("e2el: 2s, ttft:0.5 s") == {"e2el": 2.0, "ttft": 0.5} and parse_slo(None) == {}


@pytest.mark.parametrize("text", ["ttft", "ttft:", "itl:5", "ttft:5,ttft:6", "ttft:0", "ttft:-1", "ttft:nan", "ttft:5x",
                                  "ttft:5,", ","])
def test_a_wrong_limit_is_refused(text):
    with pytest.raises(ConfigError):
        parse_slo(text)
