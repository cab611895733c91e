"""Integer weights: rounding loses at most half a step, stacking nothing, the product is the dense matrix's."""
import numpy as np
import pytest

from gramme.config import matrix_bytes
from gramme.formats.grouped import Grouped, dense, stack
from gramme.kernels.reference import matmul, quantise, take
from gramme.quant.rounding import round_to_nearest

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape, group", [((1, 32), 32), ((5, 128), 32), ((17, 256), 128)])
def test_rounding_loses_at_most_half_a_step(bits, shape, group):
    w = RNG.standard_normal(shape).astype(np.float32)
    rounded = round_to_nearest(w, bits, group)
    step = np.repeat(np.abs(rounded.scales), group, 1)
    # the largest magnitude is exact but for float16's rounding of the scale; its opposite clips by one step at most
    assert (np.abs(dense(rounded) - w) <= step * 1.01).all()
    inside = rounded.codes < 2**bits - 1
    assert (np.abs(dense(rounded) - w)[inside] <= step[inside] * (0.5 + 2**bits * 2.0**-11)).all()


def test_a_group_of_zeros_stays_zero():
    assert not dense(round_to_nearest(np.zeros((2, 64), np.float32), 4, 32)).any()


def test_a_wrong_group_is_refused():
    with pytest.raises(ValueError, match="100 columns"):
        round_to_nearest(np.ones((2, 100), np.float32), 4, 32)


def test_stacking_is_exact():
    a = round_to_nearest(RNG.standard_normal((3, 128)).astype(np.float32), 4, 128)
    b = round_to_nearest(RNG.standard_normal((2, 128)).astype(np.float32), 8, 32)
    whole = stack([a, b])
    assert (whole.bits, whole.group) == (8, 32)
    np.testing.assert_array_equal(dense(whole), np.concatenate([dense(a), dense(b)]))


@pytest.mark.parametrize("bits, group, act", [(4, 32, "int8/32"), (8, 32, "int8/32"), (4, 128, "int8/128"),
                                              (4, 128, "int8/32")])
def test_the_product_is_that_of_the_unpacked_weight(bits, group, act):
    codes = RNG.integers(0, 2**bits, (7, 256)).astype(np.uint8)
    scales, offsets = (RNG.random((7, 256 // group)).astype(np.float32) for _ in range(2))
    w = Grouped(codes, scales, offsets, bits)
    x = quantise(RNG.standard_normal((5, 256)).astype(np.float32), act)
    unpacked = np.repeat(x.scales, int(act[5:]), 1) * x.values
    np.testing.assert_allclose(matmul(x, w, None), unpacked @ dense(w).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(take(w, np.array([6, 0, 6])), dense(w)[[6, 0, 6]])


def test_activations_keep_their_largest_value():
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    x[1, :32] = 0
    q = quantise(x, "int8/32")
    assert np.abs(q.values).reshape(3, 2, 32).max(-1).tolist() == [[127, 127], [0, 127], [127, 127]]
    assert np.abs(np.repeat(q.scales, 32, 1) * q.values - x).max() <= q.scales.max() * 0.501


def test_bytes_of_the_stored_forms():
    assert matrix_bytes(16, 32, "int4") == 16 * (16 + 2)  # as Q4_0
    assert matrix_bytes(16, 32, "int8") == 16 * (32 + 2)  # as Q8_0
    assert matrix_bytes(17, 33, "int4") == 32 * 2 * 18
    assert matrix_bytes(3, 5, "bfloat16") == 30
