"""What is written means, to code that knows the published layouts only, exactly what was to be written."""
from importlib.util import find_spec

import ml_dtypes
import numpy as np
import packers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.cli.main import run
from gramme.config import ConfigError
from gramme.formats.gguf import GGUFFile
from gramme.formats.grouped import Grouped, dense
from gramme.formats.write_gguf import blocks, write_gguf
from gramme.formats.write_packed import awq, compressed_tensors, gptq, pack

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([8, 32, 64]), st.sampled_from([4, 8]),
                   st.integers(0, 99))


def random_grouped(rows, groups, group, bits, seed, middle=True):
    r = np.random.default_rng(seed)
    codes = r.integers(0, 1 << bits, (rows, groups * group)).astype(np.uint8)
    scales = r.normal(0, 0.01, (rows, groups)).astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float32)
    scales[0, 0] = 0
    zeros = np.full(scales.shape, 1 << bits - 1) if middle else r.integers(0, 1 << bits, scales.shape)
    return Grouped(codes, scales, (scales * zeros).astype(np.float32), bits)


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_compressed_tensors_and_gptq_and_their_identity(shape):
    rows, groups, group, bits, seed = shape
    w = random_grouped(8 * rows, groups, group, bits, seed)
    c, g = compressed_tensors(w, ml_dtypes.bfloat16), gptq(w)
    np.testing.assert_array_equal(packers.from_pack_quantized(c, bits).values(), dense(w))
    np.testing.assert_array_equal(packers.from_gptq(g, bits, 1).values(), dense(w))
    np.testing.assert_array_equal(c["weight_packed"], g["qweight"].T)
    assert (g["qzeros"].view(np.uint32) == {4: 0x77777777, 8: 0x7F7F7F7F}[bits]).all()
    assert g["qweight"].shape == (w.shape[1] * bits // 32, w.shape[0]) and g["scales"].shape == (groups, w.shape[0])
    assert all(a.flags.c_contiguous for a in (*c.values(), *g.values()))


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_awq_with_zero_points(shape):
    rows, groups, group, _, seed = shape
    w = random_grouped(8 * rows, groups, group, 4, seed, middle=False)
    t = awq(w)
    np.testing.assert_array_equal(packers.from_awq(t).values(), dense(w))
    assert t["qweight"].shape == (w.shape[1], rows) and t["qzeros"].shape == (groups, rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from([4, 8]), st.integers(0, 99))
def test_gguf_blocks(rows, groups, bits, seed):
    w = random_grouped(rows, groups, 32, bits, seed)
    np.testing.assert_array_equal(packers.unpack_rows(f"Q{bits}_0", blocks(w).reshape(rows, -1)), dense(w))


def test_a_gguf_file_is_read_back(tmp_path):
    w = {4: random_grouped(3, 2, 32, 4, 0), 8: random_grouped(7, 1, 32, 8, 1)}
    f = np.arange(5, dtype=np.float32)
    metadata = {"a.text": "été", "a.flag": True, "a.count": 7, "a.number": 0.5, "a.texts": ["x", ""], "a.ints": [1, -2],
                "a.floats": [0.5, 2.0], "a.none": []}
    write_gguf(tmp_path / "x.gguf", metadata, {"f": lambda: f, "four": lambda: w[4], "eight": lambda: w[8],
                                               "half": lambda: f.astype(ml_dtypes.bfloat16)})
    file = GGUFFile(tmp_path / "x.gguf")
    assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in file.metadata.items()} == metadata
    for name, bits in (("four", 4), ("eight", 8)):
        for a, b in zip(file.tensor(name), w[bits], strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(file.tensor("f"), f)
    np.testing.assert_array_equal(file.tensor("half").astype(np.float32), f)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_codes_are_packed_from_the_lowest_bits():
    assert pack(np.arange(8, dtype=np.uint8)[None], 4).view(np.uint32)[0, 0] == 0x76543210
    assert pack(np.array([[1, 2, 3, 255]], np.uint8), 8).view(np.uint32)[0, 0] == 0xFF030201


@pytest.mark.parametrize("write, more", [
    (gptq, dict(middle=False)), (lambda w: compressed_tensors(w, np.float16), dict(middle=False)),
    (blocks, dict(middle=False)), (awq, dict(bits=8)), (blocks, dict(group=64))])
def test_what_a_format_cannot_hold_is_refused(write, more):
    with pytest.raises(ConfigError):
        write(random_grouped(**(dict(rows=8, groups=2, group=32, bits=4, seed=0) | more)))


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is here")
def test_without_pytorch_the_command_says_what_to_install(tmp_path, capsys):
    assert run(["quantize", "dummy:tiny", str(tmp_path / "out")]) == 2
    assert "gramme-engine[quantize]" in capsys.readouterr().err
