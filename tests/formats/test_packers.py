"""Every reader sees in a file, to the last bit, what a packer that does not know it has put there."""
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import packers
import pytest
from ggufs import gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.formats.gguf import GGUFFile
from gramme.formats.gguf_blocks import TYPES
from gramme.formats.grouped import Grouped, dense
from gramme.formats.quantised import open_checkpoint
from gramme.formats.safetensors import write_safetensors

SEEDS = st.integers(0, 1 << 32)
GROUPS = st.integers(1, 4)
SIZES = st.sampled_from([16, 32, 48, 64, 128])
ROWS = st.integers(1, 5).map(lambda n: 8 * n)
HALVES = st.sampled_from([np.float16, ml_dtypes.bfloat16])
BITS = st.sampled_from([4, 8])
NUMBERS = {kind.name: number for number, kind in TYPES.items()}
few = settings(max_examples=40, deadline=None)


def read(tensors, config):
    """The matrix that our reader makes of a module's tensors, (N, K) float32."""
    with tempfile.TemporaryDirectory() as d:
        write_safetensors(Path(d) / "model.safetensors", {f"layers.0.q.{part}": a for part, a in tensors.items()})
        (Path(d) / "config.json").write_text(json.dumps({"quantization_config": config}))
        a = open_checkpoint(Path(d)).tensor("layers.0.q.weight")
        return np.array(a) if isinstance(a, np.ndarray) else dense(a)


def group_size(group, groups, all_columns):
    """As a config says it; -1 means the whole width."""
    return -1 if all_columns and groups == 1 else group


def ct(form, **weights):
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}


@few
@given(SEEDS, ROWS, GROUPS, SIZES, HALVES, st.booleans())
def test_awq(seed, n, groups, group, dtype, all_columns):
    codes = packers.random_codes(seed, n, groups, group, dtype=dtype)
    config = dict(quant_method="awq", bits=4, group_size=group_size(group, groups, all_columns), zero_point=True,
                  version="gemm")
    np.testing.assert_array_equal(read(packers.awq(codes), config), codes.values())


@few
@given(SEEDS, ROWS, GROUPS, SIZES, HALVES, BITS, st.sampled_from([1, 2]), st.booleans(), st.booleans(), st.booleans())
def test_gptq(seed, n, groups, group, dtype, bits, version, symmetric, act_order, all_columns):
    codes = packers.random_codes(seed, n, groups, group, bits, symmetric, act_order, dtype)
    config = dict(quant_method="gptq", bits=bits, group_size=group_size(group, groups, all_columns), sym=symmetric,
                  desc_act=act_order, checkpoint_format={1: "gptq", 2: "gptq_v2"}[version])
    np.testing.assert_array_equal(read(packers.gptq(codes, version), config), codes.values())


@few
@given(SEEDS, ROWS, GROUPS, SIZES)
def test_scales_in_float32_lose_what_rounding_an_offset_loses(seed, n, groups, group):
    """Scale times zero point is kept in float32: exact for half precision, else off by half a unit."""
    codes = packers.random_codes(seed, n, groups, group, dtype=np.float32)
    config = dict(quant_method="awq", bits=4, group_size=group, zero_point=True, version="gemm")
    lost = np.abs(read(packers.awq(codes), config) - codes.values())
    assert (lost <= 2.0**-23 * np.repeat(15 * codes.s, group, 1)).all()


@few
@given(SEEDS, st.integers(1, 40), GROUPS, SIZES, HALVES, BITS, st.booleans())
def test_pack_quantized(seed, n, groups, group, dtype, bits, symmetric):
    codes = packers.random_codes(seed, n, groups, group, bits, symmetric, dtype=dtype)
    config = ct("pack-quantized", num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group)
    np.testing.assert_array_equal(read(packers.pack_quantized(codes, symmetric), config), codes.values())


@few
@given(SEEDS, st.integers(1, 40), st.integers(1, 9), HALVES)
def test_int_quantized(seed, n, columns, dtype):
    tensors, values = packers.int_quantized(seed, n, 16 * columns, dtype)
    config = ct("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel")
    np.testing.assert_array_equal(read(tensors, config), values)


@few
@given(SEEDS, st.integers(1, 40), st.integers(1, 90), HALVES, st.booleans())
def test_float_quantized(seed, n, k, dtype, by_row):
    tensors, values = packers.float_quantized(seed, n, k, dtype, (n, 1) if by_row else (1,))
    config = ct("float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel" if by_row else "tensor")
    np.testing.assert_array_equal(read(tensors, config), values)


@pytest.mark.parametrize("kind", [*packers.BLOCKS, *packers.FLOATS])
@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_gguf_types(kind, seed, rows, count):
    raw, values = packers.random_tensor(seed, kind, rows, count)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "x.gguf"
        path.write_bytes(gguf({}, {"t": (NUMBERS[kind], values.shape, raw.tobytes())}))
        a = GGUFFile(path).tensor("t")
        found = dense(a) if isinstance(a, Grouped) else np.array(a, np.float32)
    np.testing.assert_array_equal(found, values)


def test_every_type_that_is_read_has_a_packer():
    assert {kind.name for kind in TYPES.values()} == {*packers.BLOCKS, *packers.FLOATS}


@pytest.mark.parametrize("bits, version, word", [
    (4, 1, 0x77777777), (4, 2, 0x88888888), (8, 1, 0x7F7F7F7F), (8, 2, 0x80808080)])
def test_the_golden_words_of_symmetric_zero_points(bits, version, word):
    codes = packers.random_codes(0, 16, 2, 32, bits, symmetric=True)
    assert (packers.gptq(codes, version)["qzeros"].view(np.uint32) == word).all()
