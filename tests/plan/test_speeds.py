"""Predictions from measured speeds: what was measured comes out again, and a record with gaps is no record."""
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramme.config import EngineConfig, Stored
from gramme.models.dummy import SHAPES
from gramme.plan import cost, roofline, speeds
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.plan.roofline import Setup

M = SHAPES["1b"]
RATES = dict.fromkeys(speeds.NAMES, 1e12) | {
    "bandwidth": 50e9, "float32": 4e11, "int8": 16e11, speeds.STEP: 5e3, speeds.ROW: 5e4, speeds.LAYER: 4e5,
    speeds.REPLAYS: 1e5, speeds.CALLED_STEP: 2e3, speeds.CALLED_LAYER: 3e3, speeds.LAYER_ROW: 1e6}
MACHINE = Hardware(cores=2, free_bytes=1 << 34, backends=("cpu",), rates=RATES, cache_bytes=1 << 25, source="measured")


def setup(hardware=MACHINE, dtype="int4"):
    return Setup(hardware=hardware, backend="cpu", dtype=dtype, layers=M.layers)


def seconds(tokens, hardware=MACHINE, dtype="int4"):
    """Of so many sequences that decode, beside what is no product with weights."""
    work = cost.decode(M, cost.weights(M, dtype), "float16", [1] * tokens)
    others = replace(work, products=())
    return speeds.work_s(work, hardware) - speeds.work_s(others, hardware)


def with_products(form, rate, places=tuple(speeds.COLUMNS)):
    return replace(MACHINE, rates=RATES | {speeds.product_name(form, n, place): rate(n)
                                           for n in speeds.TOKENS for place in places})


@pytest.mark.parametrize("dtype", ["int4", "int8", "bfloat16", "float16"])
def test_what_was_measured_is_predicted_for_as_many_tokens_and_between_them(dtype):
    form = "bfloat16" if dtype == "float16" else dtype
    elements = cost.layer_elements(M) + M.vocab_size * M.width
    memory = with_products(form, lambda n: 1e11 * n)  # every number of tokens takes as long: reading is all
    for tokens in (1, 3, 4, 100):
        assert seconds(tokens, memory, dtype) == pytest.approx(2e-11 * elements, rel=1e-3)
    compute = with_products(form, lambda n: 1e12)  # the same rate for all
    for tokens in (1, 3, 64, 256, 1024):
        assert seconds(tokens, compute, dtype) == pytest.approx(2e-12 * tokens * elements, rel=1e-3)


def test_few_weights_stay_in_the_cache():
    slow = with_products("int8", lambda n: 1e9)
    tiny = SHAPES["tiny"]
    work = cost.decode(tiny, cost.weights(tiny, "int8"), "float16", [1])
    assert speeds.work_s(work, slow) < 0.001 < speeds.work_s(work, replace(slow, cache_bytes=0))


def test_keys_and_values_drive_weights_out_of_the_cache():
    """Read again and again, what is a little larger than a cache finds nothing there."""
    tiny, slow = SHAPES["tiny"], with_products("int8", lambda n: 1e9)
    w = cost.weights(tiny, "int8")

    def product_s(share):
        work = cost.decode(tiny, w, "float16", [64])
        weights = sum(p.nbytes for p in work.products)
        work = replace(work, kv_bytes=share * slow.cache_bytes - weights)
        return speeds.work_s(work, slow) - speeds.work_s(replace(work, products=()), slow)

    near, middle, far, beyond = map(product_s, (0.7, 0.875, 1.1, 3.0))
    assert near < 0.01 * far and middle == pytest.approx(far / 2, rel=0.01) and far == beyond


@pytest.mark.parametrize("width, share", [(2048, 0), (4096, 1), (1024, 0), (8192, 1), (2900, 0.5)])
def test_weights_with_long_rows_are_read_as_long_rows_are(width, share):
    long = with_products("int4", lambda n: 2e12 * n, ["memory, long rows"])
    m = replace(M, width=width, ff_width=11 * width // 4, heads=width // 64)
    head = cost.Product(1e9, 0.5625e9, 1, {2900: (3000 * 4490) ** 0.5}.get(width, cost.layer_columns(m)))
    rest = cost.Work(products=(head,))
    short_s, long_s = 2 / RATES[speeds.product_name("int4", 1, "memory")], 1e-12
    assert speeds.work_s(rest, long) / 1e9 == pytest.approx(short_s + share * (long_s - short_s), rel=0.01)


RATE = st.floats(1e6, 1e15)


def test_cores_with_a_way_to_memory_each_do_what_they_do_alone_and_wait_for_each_other_on_a_common_one():
    assert speeds.fed(40.0, 1.0, 74.0, 74.0) == pytest.approx(40.0)
    assert speeds.fed(40.0, 1.0, 80.0, 74.0) == pytest.approx(40.0)  # a probe that found more
    assert speeds.fed(1e9, 2.0, 50.0, 74.0) > 25.0  # the link is wider than what reading reaches on it
    assert speeds.fed(74.0, 1.0, 50.0, 74.0) == pytest.approx(50.0)  # reading itself
    assert speeds.fed(1.0, 1.0, 50.0, 74.0) == pytest.approx(1.0, rel=1e-3)  # multiplying is all


@given(RATE, st.lists(st.floats(1e9, 1e12), min_size=3, max_size=3))
def test_no_product_is_faster_than_memory_and_ways_there_are_alike(rate, given_):
    name = speeds.keys_name(64)
    rates = {speeds.ALONE: max(given_), speeds.by_itself(name): 30e9}
    first, second, third = given_
    there = speeds.rescaled(name, rate, rates, first, third)
    assert there <= third / 2
    by = speeds.rescaled(name, rate, rates, first, second)
    assert by == second / 2 or speeds.rescaled(name, by, rates, second, third) == pytest.approx(there)
    assert (there >= by) == (third >= second) or there == pytest.approx(by)


def test_a_record_is_brought_to_other_memory_and_other_cores():
    one, many = (speeds.product_name("bfloat16", n, "memory") for n in (1, 64))
    rates = RATES | {"bandwidth": 50e9, speeds.ALONE: 75e9, speeds.by_itself(one): 70e9, one: 40e9, many: 3e11}
    assert speeds.brought(rates, rates["bandwidth"], 1.0)[one] == pytest.approx(rates[one])
    fast = speeds.brought(rates, 75e9, 1.5)
    assert (fast["bandwidth"], fast[many]) == (75e9, 1.5 * 3e11)
    assert 1.3 * 40e9 < fast[one] < 1.5 * 40e9  # and multiplying faster does not make memory faster
    assert speeds.brought(rates, 1e9, 1.0)[one] <= 1e9


@pytest.mark.parametrize("columns, share", [(32, 1), (64, 1), (96, 1 / 3), (128, 0), (256, 0)])
def test_keys_of_fewer_columns_take_longer_an_element(columns, share):
    rates = {speeds.keys_name(64): 10e9, speeds.keys_name(128): 20e9}
    assert speeds.key_element_s(columns, rates) == pytest.approx(5e-11 + share * 5e-11)


def test_a_prompt_is_called_layer_by_layer_and_decoding_is_replayed():
    work = cost.step(M, cost.weights(M, "int4"), "float16", [(0, 32)], 1)
    prompt, decode = (roofline.seconds(work, setup(), phase).seconds for phase in ("prefill", "decode"))
    more = lambda called, recorded: 1 / RATES[called] - 1 / RATES[recorded]
    assert prompt - decode == pytest.approx(
        more(speeds.CALLED_STEP, speeds.STEP) + M.layers * more(speeds.CALLED_LAYER, speeds.LAYER))


def test_tokens_read_keys_and_prompts_multiply():
    w = cost.weights(M, "int4")
    short, long = (cost.decode(M, w, "float16", [n]) for n in (1, 1001))
    slow = replace(MACHINE, rates=RATES | {speeds.keys_name(n): 1e9 for n in speeds.KEY_COLUMNS})
    more_s = speeds.work_s(long, slow) - speeds.work_s(short, slow)
    assert more_s == pytest.approx(1000 * M.layers * 2 * M.kv_heads * M.head_dim / 1e9, rel=2e-3)


def test_a_record_with_a_gap_is_none():
    assert setup().measured
    for name in (speeds.ROW, speeds.product_name("int8", 16, "cache"), speeds.ALONE, *speeds.FED,
                 *map(speeds.by_itself, speeds.FED)):
        gap = replace(MACHINE, rates={k: v for k, v in RATES.items() if k != name})
        assert not setup(gap).measured and roofline.seconds(cost.decode(
            M, cost.weights(M, "int4"), "float16", [64]), setup(gap), "decode").seconds > 0


def test_the_files_own_integers_are_what_is_multiplied():
    count = cost.layer_elements(M)
    for nbytes, form in ((0.5625, "int4"), (1.0625, "int8")):
        m = replace(M, stored=Stored(layers=(count, int(nbytes * count))))
        assert cost.form(m, "bfloat16") == form
        fast = with_products(form, lambda n: 1e15)
        w = cost.weights(m, "bfloat16")
        assert speeds.work_s(cost.step(m, w, "float16", [(0, 64)], 0), fast) < 0.02
    assert cost.form(replace(M, stored=Stored(layers=(count // 3, count // 3))), "bfloat16") == "bfloat16"


def test_receipts_are_shared_out_in_the_measured_proportions():
    t = plan(M, EngineConfig(dtype="int4"), MACHINE).tariff
    assert t.step_s > M.layers / RATES[speeds.LAYER] and min(t.token_s, t.output_s, t.pair_s, t.key_s) > 0
    dear = plan(M, EngineConfig(dtype="int4"), with_products("int4", lambda n: 1e11)).tariff
    assert dear.token_s > 5 * t.token_s
