"""The advice meets the goal or names what binds; whatever grows, the forecast moves the way that arithmetic says."""
import os
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.cli.plan import flags
from gramme.config import ConfigError, EngineConfig
from gramme.models.dummy import SHAPES
from gramme.plan import calibration, cost, roofline
from gramme.plan.advice import Goal, advise
from gramme.plan.gpus import GPUS
from gramme.plan.hardware import Hardware, card, remember, this_machine
from gramme.plan.planner import plan
from gramme.plan.roofline import Factor, Setup

MISTRAL, LLAMA = SHAPES["mistral-7b"], SHAPES["1b"]
CPU = Hardware(cores=2, free_bytes=8 * 10**9, backends=("cpu",), source="measured 2026-01-01",
               rates={"bandwidth": 25e9, "float32": 150e9, "int8": 400e9})
GOAL = Goal(context=2048, prompt=1024)


def test_a_7b_on_a_4090_by_hand():
    """W4 in groups of 32 with float16 scales: 4.5 bits a weight, 3.92 GB a token with KV, 1008 GB/s."""
    a = advise(MISTRAL, EngineConfig(), card(GPUS["RTX 4090"]), GOAL, "w4")
    read = 6.979e9 * 4.5 / 8 + 131e6 * 4.5 / 8 + 1537 * 131072
    assert a.forecast.decode.nbytes == pytest.approx(read, rel=0.002) and a.forecast.decode.bound == "memory"
    assert a.forecast.decode.floor_s == pytest.approx(read / 1008e9, rel=0.002)
    assert a.forecast.prefill.ops == pytest.approx(2 * 6.979e9 * 1024 + 2 * 1024**2 * 4096 * 32, rel=0.002)
    assert a.forecast.prefill.bound == "compute"
    assert a.binding is None and a.plan.dtype == "int4"


def test_the_widest_weights_that_meet_the_target_are_taken():
    tpot = lambda quant: advise(LLAMA, EngineConfig(), CPU, GOAL, quant).forecast.tpot.seconds
    for dtype, quant in (("bfloat16", "bf16"), ("int8", "w8"), ("int4", "w4")):
        a = advise(LLAMA, EngineConfig(), CPU, replace(GOAL, tpot_s=1.01 * tpot(quant)))
        assert a.plan.dtype == dtype and a.binding is None


def test_what_cannot_be_met_is_named_with_the_nearest():
    a = advise(LLAMA, EngineConfig(), CPU, replace(GOAL, tpot_s=1e-3))
    assert a.binding.constraint == "tpot" and a.plan.dtype == "int4" and "GB/s" in a.binding.because
    assert a.binding.reached == a.forecast.tpot.seconds > a.binding.asked == 1e-3
    a = advise(LLAMA, EngineConfig(), CPU, replace(GOAL, ttft_s=1e-3))
    assert a.binding.constraint == "ttft" and a.binding.reached == a.forecast.ttft.seconds


def test_a_prompt_that_keeps_others_waiting_too_long_is_named_as_such():
    a = advise(LLAMA, EngineConfig(), CPU, replace(GOAL, concurrency=2, tpot_s=60e-3))
    assert a.binding.constraint == "tpot" and a.forecast.tpot.seconds < 60e-3 < a.binding.reached
    assert f"a chunk of at most {a.plan.max_batch_tokens} prompt tokens" in a.binding.because
    alone = advise(LLAMA, EngineConfig(), CPU, replace(GOAL, tpot_s=60e-3))
    assert alone.binding is None, "nobody else waits"


def test_memory_that_is_short_binds_and_fewer_requests_are_proposed():
    a = advise(MISTRAL, EngineConfig(), CPU, Goal(context=8192, prompt=1024, concurrency=8))
    assert a.binding.constraint == "memory" and a.plan.max_rows < 8 and a.plan.ledger.left >= 0
    with pytest.raises(ConfigError, match="does not fit"):
        advise(MISTRAL, EngineConfig(), replace(CPU, free_bytes=10**9), GOAL)


def test_keys_and_values_are_made_narrower_before_weights_are():
    goal = Goal(context=2048, prompt=1024, concurrency=32)
    wide = advise(LLAMA, EngineConfig(), CPU, goal, "bf16")
    assert wide.plan.kv_dtype == "float16"
    room = replace(CPU, free_bytes=wide.plan.ledger.total - wide.plan.ledger.kv // 4)
    a = advise(LLAMA, EngineConfig(), room, goal)
    assert (a.plan.dtype, a.plan.kv_dtype, a.binding) == ("bfloat16", "int8", None)
    assert plan(LLAMA, a.engine, room) == a.plan
    assert "--kv-cache-dtype int8" in flags(a)
    asked = advise(LLAMA, EngineConfig(kv_cache_dtype="float16"), room, goal)
    assert (asked.plan.dtype, asked.plan.kv_dtype) == ("int8", "float16")


def test_what_is_recommended_is_what_the_planner_accepts():
    a = advise(LLAMA, EngineConfig(), CPU, replace(GOAL, concurrency=4))
    assert plan(LLAMA, a.engine, CPU) == a.plan
    assert a.tokens_fit * LLAMA.kv_token_bytes(a.plan.kv_dtype) <= a.plan.ledger.left + a.plan.ledger.kv


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(GPUS)), st.integers(16, 1024), st.integers(1, 16))
def test_more_is_never_faster(name, prompt, concurrency):
    f = lambda goal: advise(LLAMA, EngineConfig(), card(GPUS[name]), goal, "w4").forecast
    goal = Goal(context=2048, prompt=prompt, concurrency=concurrency)
    base, longer, fuller = f(goal), f(replace(goal, prompt=2 * prompt)), f(replace(goal, concurrency=concurrency + 1))
    assert base.ttft.low_s <= base.ttft.seconds <= base.ttft.high_s
    assert base.tpot.seconds >= base.decode.floor_s
    assert longer.ttft.seconds >= base.ttft.seconds and longer.tpot.seconds >= base.tpot.seconds
    assert fuller.ttft.seconds >= base.ttft.seconds and fuller.tpot.seconds >= base.tpot.seconds


def test_four_bits_stop_paying_where_the_wider_form_is_as_fast():
    s = Setup(hardware=card(GPUS["RTX 4090"]), backend="cuda", dtype="int4", layers=32)
    end = roofline.advantage_ends(MISTRAL, "int4", "bfloat16", "float16", 1, s)
    ratio = lambda batch: _decode_s("int4", batch, s) / _decode_s("bfloat16", batch, s)
    assert ratio(end - 1) < roofline.WORTH <= ratio(end)
    assert 120 < end < 200  # where arithmetic takes as long as reading 16 bits: 165 operations a byte


def _decode_s(dtype, batch, s):
    work = cost.decode(MISTRAL, cost.weights(MISTRAL, dtype), "float16", [1] * batch)
    return roofline.seconds(work, replace(s, dtype=dtype), "decode").seconds


@pytest.mark.parametrize("goal", [Goal(context=0, prompt=1), Goal(context=99999, prompt=1), Goal(context=8, prompt=9),
                                  Goal(context=8, prompt=0), Goal(context=8, prompt=1, concurrency=0)])
def test_a_goal_out_of_bounds_is_refused(goal):
    with pytest.raises(ConfigError, match="must be from 1 to"):
        advise(LLAMA, EngineConfig(), CPU, goal)


def test_records_of_earlier_runs_scale_the_next_prediction(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for ratio in (1.5, 2.0, 1.6, 900.0):  # the last one was disturbed
        calibration.remember("cpu", "int4", 600, CPU, {"decode": ratio})
    found = calibration.factors("cpu", "int4", 700, CPU)
    assert found == {"decode": Factor(1.6, 1.5, 2.0, 3)}
    assert calibration.factors("cpu", "int4", 7000, CPU) == {} == calibration.factors("cpu", "int8", 600, CPU)
    assert calibration.factors("cpu", "int4", 700, replace(CPU, source="measured 2026-02-02")) == {}
    plain, taught = (advise(LLAMA, EngineConfig(), CPU, GOAL, "w4", lambda *_, f=f: f).forecast for f in ({}, found))
    assert taught.tpot.seconds == pytest.approx(1.6 * plain.tpot.seconds)
    assert taught.ttft == plain.ttft
    (tmp_path / "gramme" / "calibration.json").write_text('{"version": 1, "records": [3, {"ratio": "x"}]}')
    assert calibration.factors("cpu", "int4", 700, CPU) == {}


def test_measured_rates_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert this_machine().source == "assumed" and this_machine().rate("bandwidth") > 0
    remember({"bandwidth": 3e10, "int8": 1e11}, "2026-11-24")
    assert this_machine().source == "measured 2026-11-24" and this_machine().rate("bandwidth") == 3e10
    (tmp_path / "gramme" / "machine.json").write_text("{")
    assert this_machine().source == "assumed"


def test_what_a_killed_process_left_is_cleared_away_and_what_another_writes_now_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "gramme"
    folder.mkdir()
    for pid, age_s in ((11, 3600), (12, 0)):
        (folder / f"calibration.{pid}").write_text("{")
        os.utime(folder / f"calibration.{pid}", (time.time() - age_s,) * 2)
    calibration.remember("cpu", "int4", 600, CPU, {"decode": 1.5})
    assert sorted(p.name for p in folder.iterdir()) == ["calibration.12", "calibration.json"]
    assert calibration.factors("cpu", "int4", 600, CPU) == {"decode": Factor(1.5, 1.5, 1.5, 1)}
