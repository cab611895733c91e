"""A benchmark's result on one card predicts another by the share of each ceiling."""
import pytest

from gramme.config import ConfigError
from gramme.models.dummy import SHAPES
from gramme.plan.gpus import GPUS, LAUNCH_S, SHARE_SPREAD
from gramme.plan.transfer import decode, prompt, shares

MODEL = SHAPES["mistral-7b"]
CONSUMER = ("RTX 3090", "RTX 4060 Ti", "RTX 4090", "RTX 5090")


def results(decode_share=0.6, prompt_share=0.55, tiles=(0.5, 0.5), name="H200"):
    """What the benchmark would write on a card that reaches these shares."""
    card, step_bytes = GPUS[name], 3.86e9
    ops = 2 * 6.979e9 * 1024 + 2 * 1024**2 * 4096 * 32
    kinds = zip(("float32", "float16"), ("fp32_accumulate", "fp16_accumulate"), tiles)
    return {
        "ops": {f"tiles, sums in {kind}": {"ops_s": part * card.rate(rate)} for kind, rate, part in kinds},
        "engine": {
            "decode": {"1 x 256": {"bytes": step_bytes, "kernels_s": step_bytes / card.bandwidth / decode_share}},
            "ttft": {"1024 captured": {"uncached_s": ops / card.rate("fp32_accumulate") / prompt_share}},
        },
    }


def test_the_card_itself_is_predicted_as_measured():
    r, card = results(), GPUS["H200"]
    s = shares(card, r, MODEL)
    assert s.shares == pytest.approx({"bandwidth": 0.6, "fp32_accumulate": 0.55, "fp16_accumulate": 0.55}, rel=1e-3)
    assert decode(s, card).seconds == pytest.approx(r["engine"]["decode"]["1 x 256"]["kernels_s"] + 262 * LAUNCH_S)
    measured = r["engine"]["ttft"]["1024 captured"]["uncached_s"]
    assert prompt(s, card, "fp32_accumulate").seconds == pytest.approx(measured)


@pytest.mark.parametrize("share, accumulate, ms", [(0.81, "fp32_accumulate", 109), (0.67, "fp16_accumulate", 66)])
def test_the_best_published_shares_give_the_published_times_of_a_4090(share, accumulate, ms):
    """1,024 tokens of a 4-bit 8B model: 109 ms by cuBLAS, 65 ms by TinyChat (llm-awq's README)."""
    s = shares(GPUS["H200"], results(prompt_share=share), MODEL)
    assert prompt(s, GPUS["RTX 4090"], accumulate).seconds * 1e3 == pytest.approx(ms, rel=0.02)


def test_kernels_with_sums_in_float16_that_reach_less_of_their_ceiling_gain_less():
    gain = lambda s: prompt(s, GPUS["RTX 4090"], "fp32_accumulate").seconds / prompt(
        s, GPUS["RTX 4090"], "fp16_accumulate").seconds
    assert gain(shares(GPUS["H200"], results(), MODEL)) == pytest.approx(2)
    assert gain(shares(GPUS["H200"], results(tiles=(0.5, 0.35)), MODEL)) == pytest.approx(1.4)


def test_cards_are_ordered_by_what_binds_and_every_range_holds_its_prediction():
    s = shares(GPUS["H200"], results(), MODEL)
    for times in ([decode(s, GPUS[c]) for c in CONSUMER],
                  *([prompt(s, GPUS[c], kind) for c in CONSUMER] for kind in ("fp32_accumulate", "fp16_accumulate"))):
        assert all(t.low_s < t.seconds < t.high_s for t in times)
        assert all(t.high_s >= t.seconds * (1 + SHARE_SPREAD) * 0.9 for t in times)
    speeds = [1 / decode(s, GPUS[c]).seconds for c in CONSUMER]
    assert speeds[1] < speeds[0] < speeds[2] < speeds[3]  # by bandwidth: 288, 936, 1008, 1792 GB/s


@pytest.mark.parametrize("part, name", [("ops", "tiles, sums in float16"), ("engine", "decode"), ("engine", "ttft")])
def test_a_missing_figure_is_named(part, name):
    r = results()
    del r[part][name]
    with pytest.raises(ConfigError, match=name):
        shares(GPUS["H200"], r, MODEL)
