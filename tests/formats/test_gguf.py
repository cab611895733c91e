"""GGUF files are read as gguf-py reads them, and a file that lies is one line that names what is wrong."""
import random
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ggufs import gguf, header, string

from gramme.config import ModelError
from gramme.formats.gguf import MAX_STRING_BYTES, GGUFFile
from gramme.formats.gguf_blocks import TYPES
from gramme.formats.grouped import Grouped, dense

GOLDEN = Path(__file__).parent / "golden" / "blocks.gguf"
A = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def reads(tmp_path):
    def read(content):
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        return GGUFFile(path)

    return read


@pytest.fixture
def refuses(reads):
    """The file is refused in one line that matches, and little memory is taken before."""
    def refuse(content, match):
        tracemalloc.start()
        try:
            with pytest.raises(ModelError, match=match) as caught:
                reads(content)
            assert tracemalloc.get_traced_memory()[1] < 8 * len(content) + (1 << 20)
        finally:
            tracemalloc.stop()
        text = str(caught.value)
        assert text.startswith("x.gguf") and "\n" not in text and len(text) < 400

    return refuse


@pytest.mark.parametrize("name", [t.name for t in TYPES.values() if t.name != "F32"])
def test_the_values_are_those_of_gguf_py(name):
    file = GGUFFile(GOLDEN)
    a = file.tensor(name)
    values = dense(a) if isinstance(a, Grouped) else a.astype(np.float32)
    np.testing.assert_array_equal(values, file.tensor(f"{name}.values"))


@pytest.mark.parametrize("name, bits, group, symmetric", [
    ("Q4_0", 4, 32, True), ("Q4_1", 4, 32, False), ("Q5_0", 8, 32, True), ("Q5_1", 8, 32, False),
    ("Q8_0", 8, 32, True), ("Q4_K", 4, 32, False), ("Q5_K", 8, 32, False), ("Q6_K", 8, 16, True)])
def test_each_type_takes_the_least_that_holds_it(name, bits, group, symmetric):
    w = GGUFFile(GOLDEN).tensor(name)
    assert (w.bits, w.group, w.codes.dtype) == (bits, group, np.uint8) and int(w.codes.max()) < 1 << bits
    assert (w.offsets == w.scales * (1 << bits - 1)).all() == symmetric


def test_metadata_of_every_type():
    m = GGUFFile(GOLDEN).metadata
    want = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 4_000_000_000, "int32": -70000,
            "uint64": 1 << 63, "int64": -(1 << 40), "float64": 0.1, "bool": True, "string": "été 🙂",
            "strings": ["", "b", "日本"]}
    for key, value in want.items():
        assert m[f"a.{key}"] == value and type(m[f"a.{key}"]) is type(value)
    assert m["a.float32"] == np.float32(0.1)
    assert m["a.ints"].tolist() == [1, -2, 3] and m["a.floats"].tolist() == [0.5, -1.5]


def test_shapes_are_numpys_and_views_are_of_the_file(reads):
    b = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    file = reads(gguf({"general.alignment": 64}, {"a": A, "b": b, "c": b.astype(ml_dtypes.bfloat16)}))
    assert file.names == ["a", "b", "c"] and file.entry("b").begin == 64
    for name, want in (("a", A), ("b", b), ("c", b.astype(ml_dtypes.bfloat16))):
        np.testing.assert_array_equal(file.tensor(name), want)
        assert not file.tensor(name).flags.writeable and not file.tensor(name).flags.owndata
    with pytest.raises(ModelError, match=r"x.gguf: there is no tensor 'd'"):
        file.tensor("d")


def test_version_2_is_version_3_and_others_are_refused(reads, refuses):
    content = gguf({}, {"a": A})
    assert reads(content[:4] + struct.pack("<I", 2) + content[8:]).names == ["a"]
    refuses(content[:4] + struct.pack("<I", 1) + content[8:], "version 1 is not read")
    refuses(content[:4] + struct.pack(">I", 3) + content[8:], "big-endian is not read")


@pytest.mark.parametrize("content, match", [
    (b"", "0 bytes that begin with b''"), (b"GGUF", "is no GGUF file: 4 bytes"), (b"GGJT" + bytes(40), "b'GGJT'"),
    (b"PK\x03\x04" + bytes(40), "is a pickle"), (b"\x80\x02}q" + bytes(40), "is a pickle"),
])
def test_what_is_no_gguf_is_refused_by_its_content(refuses, content, match):
    refuses(content, match)


HUGE = [1 << 14 | 1, 1 << 32, 1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize("count", HUGE)
def test_lying_counts(refuses, count):
    refuses(header({}, [], tensors=count), f"claims {count} tensors")
    refuses(header({}, [], pairs=count), f"claims {count} metadata keys")
    refuses(header({}, [], pairs=1) + struct.pack("<Q", count) + bytes(64), r"metadata key 0 (claims|takes)")
    start = header({}, [], pairs=1) + string("k")
    refuses(start + struct.pack("<IQ", 8, count) + bytes(64), r"metadata 'k' (claims|takes)")
    for kind in (0, 5, 8, 12):
        refuses(start + struct.pack("<IIQ", 9, kind, count) + bytes(64), f"metadata 'k' (claims {count} strings|takes)")
    refuses(header({}, [("t", [count, count, count, count], 0, 0)]), r"tensor 't': bytes 0 to \d+ must begin")
    refuses(header({}, [("t", [1], 0, count)]), f"tensor 't': bytes {count} to {count + 4} must begin")


@pytest.mark.parametrize("kind", [13, 255, 1 << 31])
def test_unknown_types_are_named(refuses, kind):
    start = header({}, [], pairs=1) + string("k")
    refuses(start + struct.pack("<I", kind) + bytes(64), f"metadata 'k' has the type {kind}")
    refuses(start + struct.pack("<IIQ", 9, kind, 1) + bytes(64), f"metadata 'k' has the type {kind}")
    refuses(header({}, [("t", [32], kind + 100, 0)]) + bytes(64), f"tensor 't': is of type {kind + 100}, which is not")


def test_types_that_exist_but_are_not_read_are_named(refuses):
    refuses(gguf({}, {"t": (10, (1, 256), bytes(84))}), r"is of type Q2_K, which is not read; F32, F16, BF16")


def test_nested_arrays_and_bad_text(refuses):
    start = header({}, [], pairs=1) + string("k")
    refuses(start + struct.pack("<IIQ", 9, 9, 1) * 1000, "is an array of arrays")
    refuses(header({}, [], pairs=1) + string(b"\xff") + bytes(64), "metadata key 0 is not UTF-8")
    refuses(header({"k": b"\xff"}, []), "metadata 'k' is not UTF-8")
    refuses(header({"k": ["a", b"\xc3"]}, []), "metadata 'k': string 1 is not UTF-8")
    refuses(start + struct.pack("<IQ", 8, MAX_STRING_BYTES + 1), "claims a string of 8388609 bytes")
    cut = start + struct.pack("<IIQ", 9, 8, 3) + string("abc") + struct.pack("<Q", 1 << 62) + bytes(64)
    refuses(cut, "metadata 'k': string 1 of 3 at byte 60 ends beyond the header")


@pytest.mark.parametrize("align", [0, 1, 4, 33, 48, 1 << 17, True, 32.0, "32"])
def test_alignment_is_a_power_of_two(refuses, align):
    content = header({"general.alignment": align}, [("a", [2, 2], 0, 0)]) + bytes(256)
    refuses(content, "general.alignment must be a power of two from 8")


def test_keys_and_names_stand_once(refuses):
    pair = string("k") + struct.pack("<II", 4, 1)
    refuses(header({}, [], pairs=2) + pair + pair, "metadata key 'k' stands twice")
    refuses(header({}, [("t", [1], 0, 0), ("t", [1], 0, 32)]) + bytes(256), "tensor 't': stands twice")


@pytest.mark.parametrize("dims, kind, offset, match", [
    ([], 0, 0, "claims 0 dimensions"), ([1] * 5, 0, 0, "claims 5 dimensions"), ([0, 3], 0, 0, r"empty shape \[3, 0\]"),
    ([31, 2], 2, 0, r"Q4_0 needs a matrix whose rows are a multiple of 32, not \[2, 31\]"),
    ([128, 1], 12, 0, "Q4_K needs a matrix whose rows are a multiple of 256"),
    ([256, 2, 2], 14, 0, "Q6_K needs a matrix"), ([32], 8, 0, "Q8_0 needs a matrix"),
    ([4], 0, 16, "bytes 16 to 32 must begin at a multiple of 32"),
    ([68], 0, 0, "'b': begins at byte 256 of the data, the one before ends at 272"),
    ([4], 0, 512, "bytes 512 to 528"), ([4], 0, 0, "'b': begins at byte 0 of the data, the one before ends at 16"),
])
def test_a_tensor_table_that_cannot_be(refuses, dims, kind, offset, match):
    second = 256 if dims == [68] else 0 if dims == [4] and offset == 0 else 288
    head = header({}, [("a", dims, kind, offset), ("b", [4], 0, second)])
    refuses(head + bytes(-len(head) % 32) + bytes(320), match)


@pytest.mark.parametrize("kind, at, size", [("Q8_0", 0, 34), ("Q4_1", 2, 20), ("Q4_K", 2, 144), ("Q6_K", 208, 210)])
@pytest.mark.parametrize("half", [np.inf, -np.inf, np.nan])
def test_scales_that_are_not_finite_are_refused_when_read(reads, kind, at, size, half):
    number = next(n for n, t in TYPES.items() if t.name == kind)
    raw = bytearray(b"\x01" * size)
    raw[at : at + 2] = np.float16(half).tobytes()
    file = reads(gguf({}, {"t": (number, (1, TYPES[number].values), bytes(raw))}))
    with pytest.raises(ModelError, match=f"x.gguf: tensor 't': a scale of its {kind} blocks is not finite"):
        file.tensor("t")


def test_every_cut_is_refused(refuses):
    content = GOLDEN.read_bytes()
    data = len(content) - GGUFFile(GOLDEN)._data.size
    end = len(content) - 16  # of the last tensor, before its padding
    for size in [*range(0, data, 7), *range(data, end, 511), *range(4096, len(content), 4096), end - 1]:
        refuses(content[:size], "x.gguf")


def test_flipped_bits_end_in_a_file_or_in_one_line(reads):
    content = bytearray(GOLDEN.read_bytes())
    data, rng = len(content) - GGUFFile(GOLDEN)._data.size, random.Random(0)
    opened = 0
    for at in range(0, data, 3):
        bit = 1 << rng.randrange(8)
        content[at] ^= bit
        try:
            file = reads(bytes(content))
            opened += 1
            if rng.random() < 0.05:
                for name in file.names:
                    file.tensor(name)
        except ModelError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        content[at] ^= bit
    assert 50 < opened < 400


def test_a_group_of_scale_0_keeps_its_value(reads):
    raw = np.zeros((2, 144), np.uint8)
    raw[:, 2:4] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)  # dmin; d is 0
    raw[:, 8:12], raw[:, 16:] = [1, 2, 3, 63], 0xA7
    w = reads(gguf({}, {"t": (12, (2, 256), raw.tobytes())})).tensor("t")
    np.testing.assert_array_equal(dense(w)[0], np.repeat([-0.5, -1, -1.5, -31.5, 0, 0, 0, 0], 32))
    assert (w.offsets[w.scales == 0] == 0).all()
