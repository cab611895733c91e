"""A search for the knee, goes on where it ended; ratios, what is chance and what is not the same workload."""
import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.bench import compare as c
from gramme.bench.sweep import CLOSE, LEAST_RATE, MOST_POINTS, following, holds, knee, parse_rates, sweep
from gramme.config import ConfigError


def server(capacity):
    """Answers all up to its capacity in time, and its capacity's worth beyond."""
    return lambda rate: {"goodput_share": min(1.0, capacity / rate), "interrupted": False}


@settings(deadline=None)
@given(st.floats(0.3, 900.0))
def test_a_search_ends_beside_the_knee(capacity):
    points, interrupted = sweep(None, {}, server(capacity), lambda points: None)
    true = capacity / 0.95
    assert not interrupted and len(points) <= MOST_POINTS and list(points) == sorted(points)
    assert knee(points) <= true * 1.0001 and min(r for r in points if not holds(points[r])) >= true * 0.9999
    assert true / knee(points) <= CLOSE * 1.0001


def test_a_search_without_an_end_gives_up():
    never, _ = sweep(None, {}, server(0.0), lambda points: None)
    assert knee(never) is None and min(never) >= LEAST_RATE
    always, _ = sweep(None, {}, server(1e30), lambda points: None)
    assert len(always) == MOST_POINTS


@settings(deadline=None)
@given(capacity=st.floats(0.3, 900.0), after=st.integers(0, 8), rates=st.sampled_from([None, [1.0, 3.0, 9.0]]))
def test_a_sweep_goes_on_where_it_was_interrupted_and_measures_nothing_twice(capacity, after, rates):
    measured, kept = [], {}

    def measure(rate):
        measured.append(rate)
        return server(capacity)(rate) | {"interrupted": len(measured) == after}

    keep = lambda points: kept.update(points)
    points, interrupted = sweep(rates, {}, measure, keep)
    assert kept == points and kept.keys() == set(measured[: after - 1] if interrupted else measured)
    again, _ = sweep(rates, kept, measure, keep)
    assert again == sweep(rates, {}, server(capacity), lambda points: None)[0]
    assert len(measured) == len(again) + interrupted
    assert following(rates, again) is None


def test_the_knee_is_the_highest_rate_that_held():
    points = {1.0: 1.0, 2.0: 0.94, 3.0: 0.95, 4.0: 0.5}
    assert knee({rate: {"goodput_share": share} for rate, share in points.items()}) == 3.0
    assert knee({1.0: {"goodput_share": None}}) is None


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "inf", "nan", "x", "1;2"])
def test_wrong_rates_are_refused(text):
    with pytest.raises(ConfigError, match="--rates"):
        parse_rates(text)


def test_rates_are_put_in_order():
    assert parse_rates("4,1,2.5,1") == [1.0, 2.5, 4.0] and parse_rates("auto") is None


# Comparing

@settings(max_examples=60, deadline=None)
@given(a=st.lists(st.integers(0, 6), min_size=2, max_size=5), b=st.lists(st.integers(0, 6), min_size=2, max_size=5))
def test_chance_is_the_share_of_splits_with_rank_sums_as_far_apart(a, b):
    values = a + b
    rank = lambda v: sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2
    ranks = [rank(v) for v in values]
    middle = len(a) * sum(ranks) / len(ranks)
    far = lambda chosen: abs(sum(chosen) - middle)
    splits = list(itertools.combinations(ranks, len(a)))
    expected = sum(far(s) >= far(ranks[: len(a)]) - 1e-9 for s in splits) / len(splits)
    assert c.chance(a, b) == pytest.approx(expected)


def test_chance_of_full_separation_needs_enough_repeats():
    assert c.chance([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(0.1)
    assert c.chance(range(20), range(20, 40)) < 1e-10 and c.chance([1.0], [2.0]) is None
    assert c.chance([5.0] * 4, [5.0] * 4) == 1.0


def result(scale=1.0, seed=0, n=200, **workload):
    r = random.Random(seed)
    each = [round(scale * r.uniform(10, 20), 3) for _ in range(n)]
    latencies = dict.fromkeys(c.LATENCIES, 15.0 * scale)
    return {"bench": "serve", "workload": {"source": "x", "rate": 2.0} | workload, "failed": 0,
            **dict.fromkeys(c.THROUGHPUTS, 2.0), **latencies,
            "requests": {name: [None, *each] for name in ("ttft_ms", "tpot_ms", "e2el_ms")}}


def test_ratios_and_verdicts():
    rows = {r.name: r for r in c.compare(result(), result(1.2, 1))}
    assert rows["median_ttft_ms"].ratio == pytest.approx(1.2) and rows["median_ttft_ms"].verdict == "B is worse"
    assert rows["p99_ttft_ms"].p is None and rows["request_throughput"].ratio == 1.0 and rows["failed"].ratio is None
    faster = {r.name: r for r in c.compare(result(), result(0.8, 1))}
    assert faster["median_tpot_ms"].verdict == "B is better"
    same = {r.name: r for r in c.compare(result(), result(1.0001, 1))}
    assert same["median_e2el_ms"].verdict == "no difference shown"
    assert all(r.p is None for r in c.compare(result(n=20), result(2.0, n=20)))
    assert all(len(line) < 120 for line in c.table(list(rows.values())))


def bench_run(tokens_per_s, repeats_s, tests=("pp256",)):
    each = {t: {"tokens_per_s": tokens_per_s, "repeats_s": repeats_s} for t in tests}
    return {"bench": "run", "workload": {"tests": list(tests)}, "results": each, "memory": {"measured_bytes": 5e6}}


def test_bench_run_is_compared_by_its_repeats():
    row, memory = c.compare(bench_run(10, [25.6] * 5), bench_run(20, [12.8, 12.7, 12.9, 12.8, 12.6]))
    assert (row.ratio, row.verdict) == (2.0, "B is better") and row.p < 0.01 and memory.ratio == 1.0
    assert c.compare(bench_run(10, [25.6]), bench_run(20, [12.8]))[0].verdict == ""


def swept(scale, rates=(1.0, 2.0), **workload):
    points = {repr(rate): result(scale, rate=rate) for rate in rates}
    return {"bench": "sweep", "workload": {"trace": None} | workload, "knee": 2.0 * scale, "points": points}


def test_sweeps_are_compared_at_the_rates_that_both_have():
    rows = {r.name: r for r in c.compare(swept(1.0), swept(2.0, (2.0, 4.0)))}
    assert rows["knee, requests/s"].ratio == 2.0 and "2.0/s p99_itl_ms" in rows and "1.0/s p99_itl_ms" not in rows
    other = swept(1.0)
    other["points"]["2.0"]["workload"]["digest"] = "x"
    with pytest.raises(ConfigError, match=r"at 2\.0/s differ: digest"):
        c.compare(swept(1.0), other)


@pytest.mark.parametrize("b, words", [
    (result(rate=3.0), r"rate is 2\.0 and 3\.0"), (result(slo={"ttft": 1}), "slo is None"),
    (bench_run(1, [1.0]), "bench serve and bench run"),
    ({"bench": "serve", "workload": result()["workload"]}, "whole")])
def test_different_workloads_are_refused_by_what_differs(b, words):
    with pytest.raises(ConfigError, match=words) as caught:
        c.compare(result(), b)
    assert "\n" not in str(caught.value)


def test_a_result_is_a_file_or_the_last_line_of_one(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("a table\n of figures\n" + json.dumps(result()) + "\n")
    assert c.read(path) == result()
    path.write_text(json.dumps(result(), indent=1))
    assert c.read(path) == result()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b'{"bench": "serve"}', b'{"bench": []}', b"\xff",
                                  b"[" * 10**5, b'{"bench": "compare", "workload": {}}'])
def test_what_is_no_result_is_refused(tmp_path, data):
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"r\.json"):
        c.read(path)
    with pytest.raises(ConfigError, match="No such file"):
        c.read(tmp_path / "none")
