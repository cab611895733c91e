"""Traces and Poisson arrivals: what was written is read, anything else is one line, rates are what was asked."""
import math
import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.bench import workload as w
from gramme.config import ConfigError

HEADERS = ["TIMESTAMP,ContextTokens,GeneratedTokens", "arrived_at,num_prefill_tokens,num_decode_tokens",
           "Timestamp,Request tokens,Response tokens"]
ASKS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 9999), st.integers(1, 9999)), min_size=1, max_size=30)


def write(path, header, rows, end="\n"):
    path.write_bytes((end.join([header, *(",".join(map(str, row)) for row in rows)])).encode())
    return path


@settings(deadline=None)
@given(asks=ASKS, header=st.sampled_from(HEADERS), end=st.sampled_from(["\n", "\r\n"]))
def test_a_trace_is_read_in_order_of_time_from_its_first_arrival(tmp_path_factory, asks, header, end):
    path = write(tmp_path_factory.mktemp("t") / "t.csv", header, [(ms / 1e3, *more) for ms, *more in asks], end)
    first = min(ms for ms, *_ in asks)
    got = [(round(1e3 * a.at_s), a.prompt_tokens, a.output_tokens) for a in w.trace(path).asks]
    assert got == [(ms - first, *more) for ms, *more in sorted(asks, key=lambda ask: ask[0])]


def test_dates_extra_columns_and_empty_rows(tmp_path):
    path = write(tmp_path / "t.csv", "TIMESTAMP,x,ContextTokens,GeneratedTokens",
                 [("2023-11-16 18:15:46.6805900", "a", 374, 44), ("2023-11-16 18:15:50.9305900", "a", 396, 0),
                  ("2023-11-16 18:16:46.6805900", "a", 7, 1)], "\r\n")
    made = w.trace(path)
    assert made.asks == (w.Ask(0.0, 374, 44), w.Ask(60.0, 7, 1)) and "1 empty rows left out" in made.source
    assert (made.window_s, made.rate) == (120.0, 2 / 120)
    assert w.trace(path, 1).asks == (w.Ask(0.0, 374, 44),)


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(alphabet="0123456789,.\n\r\"-naife:T ", max_size=120).map(
    lambda text: (HEADERS[0] + "\n" + text).encode())))
def test_any_file_is_a_workload_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(data)
    try:
        made = w.trace(path)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert made.asks[0].at_s == 0 and all(a.prompt_tokens > 0 < a.output_tokens for a in made.asks)
        assert all(math.isfinite(a.at_s) for a in made.asks)


@pytest.mark.parametrize("text, words", [
    ("a,b\n1,2", "one column for the arrival time"), ("timestamp,prompt_tokens\n1,2", "output tokens"),
    (HEADERS[0] + "\n1,2,3\n1,x,3", "line 3"), (HEADERS[0] + "\n1,2", "line 2"), (HEADERS[0] + "\nnan,2,3", "line 2"),
    (HEADERS[0] + "\n1,2.5,3", "line 2"), (HEADERS[0] + "\n1,-2,3", "line 2"), (HEADERS[0], "no request"),
    (HEADERS[0] + "\n1,1e99,3", "line 2"), ("timestamp,timestamp,ContextTokens,GeneratedTokens\n1,1,1,1", "one column"),
    (HEADERS[0] + "\n0,1,1\n9e11,1,1", "at most")])
def test_a_wrong_trace_is_named(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        w.trace(path)


def test_poisson_gaps_are_exponential_and_depend_on_the_seed_alone():
    made = w.poisson(50.0, 400.0, 10**6, 8, 4, 1)
    times = [a.at_s for a in made.asks]
    gaps = [b - a for a, b in pairwise(times)]
    assert abs(made.rate / 50 - 1) < 0.03 and all(g >= 0 for g in gaps) and times[-1] < 400
    assert abs(statistics.mean(gaps) * 50 - 1) < 0.03 and abs(statistics.stdev(gaps) * 50 - 1) < 0.05
    assert made == w.poisson(50.0, 400.0, 10**6, 8, 4, 1) != w.poisson(50.0, 400.0, 10**6, 8, 4, 2)
    assert len(w.poisson(50.0, 400.0, 7, 8, 4, 1).asks) == 7


def test_an_infinite_rate_is_all_at_once():
    made = w.poisson(math.inf, 30.0, 5, 8, 4, 1)
    assert [a.at_s for a in made.asks] == [0.0] * 5 and made.rate == math.inf and made.facts()["rate"] == "inf"


def test_time_is_stretched_to_a_scale_or_a_rate_and_lengths_to_limits():
    r = random.Random(3)
    made = w.Workload(asks=tuple(w.Ask(float(i), r.randrange(1, 900), r.randrange(1, 900)) for i in range(10)),
                      window_s=10.0, source="x")
    assert [a.at_s for a in w.stretched(made, 0.5).asks] == [i / 2 for i in range(10)]
    assert w.stretched(made, 0.5).rate == 2.0 == w.at_rate(made, 2.0).rate
    assert len(w.shortened(w.at_rate(made, 2.0), 2.0).asks) == 4
    small = w.resized(made, 0.1, 50, 40)
    assert [a.prompt_tokens for a in small.asks] == [min(50, -(-a.prompt_tokens // 10)) for a in made.asks]
    assert max(a.output_tokens for a in small.asks) <= 40


@pytest.mark.parametrize("call", [
    lambda m: w.poisson(0.0, 1.0, 9, 1, 1, 0), lambda m: w.poisson(math.nan, 1.0, 9, 1, 1, 0),
    lambda m: w.poisson(1e-9, 1.0, 9, 1, 1, 0), lambda m: w.stretched(m, 0.0), lambda m: w.stretched(m, math.nan),
    lambda m: w.at_rate(m, math.inf), lambda m: w.stretched(m, 1e300), lambda m: w.resized(m, -1, None, None)])
def test_impossible_workloads_are_refused(call):
    with pytest.raises(ConfigError):
        call(w.Workload(asks=(w.Ask(0.0, 1, 1), w.Ask(1.0, 1, 1)), window_s=2.0, source="x"))


def test_equal_facts_mean_the_same_requests():
    one, two = (w.poisson(5.0, 9.0, 99, 8, 4, seed) for seed in (1, 1))
    assert one.facts() == two.facts() != w.resized(one, 1.0, 7, None).facts()
    assert w.stretched(one, 0.999).facts()["digest"] != one.facts()["digest"]
