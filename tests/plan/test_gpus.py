"""Cards equal their data sheets, and a measured share says about another card what arithmetic says."""
import pytest

from gramme.config import ConfigError
from gramme.plan.gpus import GPUS, LAUNCH_S, gpu, predict, share


@pytest.mark.parametrize("name, gb_s, fp32, fp16, int8", [  # GB/s, TFLOP/s, TFLOP/s, TOP/s as NVIDIA prints them
    ("RTX 3090", 936, 71.2, 142.3, 284.7), ("RTX 4090", 1008, 165.2, 330.3, 660.6), ("RTX 5090", 1792, 209.5, 419, 838),
    ("A100", 2039, 312, 312, 624), ("H100", 3350, 989, 989, 1979), ("H200", 4800, 989, 989, 1979),
])
def test_rates_equal_the_whitepapers_tables(name, gb_s, fp32, fp16, int8):
    rates = [GPUS[name].rate(c) for c in ("bandwidth", "fp32_accumulate", "fp16_accumulate", "int8")]
    assert rates == pytest.approx([gb_s * 1e9, fp32 * 1e12, fp16 * 1e12, int8 * 1e12], rel=2e-3)


@pytest.mark.parametrize("said, name", [
    ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"), ("NVIDIA GeForce RTX 4060", "RTX 4060"), ("rtx 4090", "RTX 4090"),
    ("rtx4090", "RTX 4090"), ("rtx4070tisuper", "RTX 4070 Ti SUPER"), ("rtx4060ti", "RTX 4060 Ti"),
    ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-80GB", "A100"),
])
def test_a_card_is_found_as_a_driver_names_it(said, name):
    assert gpu(said) is GPUS[name]


@pytest.mark.parametrize("said", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 PCIe", "RTX", ""])
def test_another_card_is_not_taken_for_a_known_one(said):
    with pytest.raises(ConfigError, match="RTX 4090"):
        gpu(said)


def test_the_card_that_was_measured_is_predicted_as_measured():
    card, work = GPUS["H200"], {"bandwidth": 3.86e9}
    shares = {"bandwidth": share(card, "bandwidth", 3.86e9, 1.5e-3)}
    p = predict(card, work, shares, launches=256)
    assert p.seconds == pytest.approx(1.5e-3 + 256 * LAUNCH_S) and p.low_s < p.seconds < p.high_s


def test_a_7b_prefill_of_1024_tokens_on_a_4090_by_hand():
    operations = 2 * 6.98e9 * 1024 + 2 * 1024**2 * 4096 * 32
    work = {"bandwidth": 3.86e9, "fp32_accumulate": operations}
    p = predict(GPUS["RTX 4090"], work, {"bandwidth": 0.8, "fp32_accumulate": 0.8})
    assert p.seconds == pytest.approx(operations / 165.2e12 / 0.8, rel=1e-3)  # 110 ms
    assert p.high_s == pytest.approx((p.seconds + 3.86e9 / 1.008e12 / 0.8) * 1.2, rel=1e-3)


def test_no_prediction_beats_the_ceiling():
    p = predict(GPUS["RTX 3090"], {"bandwidth": 1e9}, {"bandwidth": 0.95})
    assert p.low_s == 1e9 / GPUS["RTX 3090"].bandwidth


def test_a_share_that_was_not_measured_is_named():
    with pytest.raises(ConfigError, match="int8"):
        predict(GPUS["RTX 3090"], {"int8": 1e9}, {"bandwidth": 0.9})
