"""The reader agrees with the safetensors library on good files and answers every bad one with one ModelError."""
import json
import os
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gramme.config import ModelError
from gramme.formats.safetensors import SafetensorsFile, write_safetensors

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint32", "bool"]


def random_tensors(rng, dtypes=DTYPES):
    out = {}
    for i in range(int(rng.integers(1, 9))):
        shape = tuple(rng.integers(0, 5, rng.integers(0, 5)).tolist())
        out[f"tensor {i} é"] = rng.integers(0, 100, shape).astype(str(rng.choice(dtypes)))
    return out


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("seed", range(40))
def test_reads_what_the_library_writes(tmp_path, seed):
    want = random_tensors(np.random.default_rng(seed))
    safetensors.numpy.save_file(want, tmp_path / "a.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert sorted(file.names) == sorted(want)
    for name, a in want.items():
        assert file.shape(name) == a.shape and file.tensor(name).dtype == a.dtype
        np.testing.assert_array_equal(file.tensor(name), a)


@pytest.mark.parametrize("seed", range(40))
def test_the_library_reads_what_we_write(tmp_path, seed):
    want = random_tensors(np.random.default_rng(seed))
    write_safetensors(tmp_path / "a.safetensors", want)
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert sorted(found) == sorted(want)
    for name, a in want.items():
        assert found[name].shape == a.shape and found[name].dtype == a.dtype
        np.testing.assert_array_equal(found[name], a)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_narrow_floats_survive_bit_by_bit(tmp_path, dtype):
    a = np.arange(256 * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)
    write_safetensors(tmp_path / "a.safetensors", {"a": a})
    assert SafetensorsFile(tmp_path / "a.safetensors").tensor("a").tobytes() == a.tobytes()


def test_a_header_of_every_length_is_read(tmp_path):
    """A length whose low byte is 0x80 must not pass for a pickle's first byte."""
    for spaces in range(256):
        path = raw_file(tmp_path / "a", json.dumps({"a": entry()}).encode() + b" " * spaces, bytes(8))
        assert SafetensorsFile(path).shape("a") == (2,)


def test_views_are_read_only(tmp_path):
    write_safetensors(tmp_path / "a", {"a": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="read-only"):
        SafetensorsFile(tmp_path / "a").tensor("a")[0] = 1


def test_a_file_cut_anywhere_is_refused(tmp_path):
    write_safetensors(tmp_path / "whole", {f"t{i}": np.ones((8, 33), np.float32) for i in range(8)})
    whole = (tmp_path / "whole").read_bytes()
    for at in [*range(10), *range(0, len(whole), 512), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:at])
        with pytest.raises(ModelError, match=r"^cut"):
            SafetensorsFile(tmp_path / "cut")
    (tmp_path / "cut").write_bytes(whole + b"\0")
    with pytest.raises(ModelError, match="the file has 8449 for them"):
        SafetensorsFile(tmp_path / "cut")


def test_a_flipped_bit_in_the_header_is_an_error_or_harmless(tmp_path):
    """No exception but ModelError, and every tensor that is still named can be read whole."""
    write_safetensors(tmp_path / "whole", {"a": np.ones((4, 6), np.float32), "b": np.ones(5, np.int16)})
    whole = (tmp_path / "whole").read_bytes()
    refused = 0
    for at in range(8 + int.from_bytes(whole[:8], "little")):
        for bit in range(8):
            (tmp_path / "bad").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            try:
                file = SafetensorsFile(tmp_path / "bad")
            except ModelError:
                refused += 1
            else:
                assert sum(file.tensor(name).nbytes for name in file.names) == 106
    assert refused > 500


LIES = {
    "negative offset": ({"a": entry(offsets=(-8, 0))}, "data_offsets"),
    "backwards": ({"a": entry(offsets=(8, 0))}, "data_offsets"),
    "three offsets": ({"a": entry(offsets=(0, 8, 8))}, "data_offsets"),
    "offset true": ({"a": entry(offsets=(False, 8))}, "data_offsets"),
    "offset 8.0": ({"a": entry(offsets=(0, 8.0))}, "data_offsets"),
    "offset 2^64": ({"a": entry(offsets=(1 << 64, (1 << 64) + 8))}, "data_offsets"),
    "wraps 64 bits": ({"a": entry(shape=(1 << 61, 1 << 61, 4))}, "has 8 bytes"),
    "too small": ({"a": entry(shape=(3,))}, "needs 12"),
    "beyond the end": ({"a": entry(shape=(4,), offsets=(0, 16))}, "take 16 bytes, the file has 8"),
    "hole": ({"a": entry(shape=(1,), offsets=(4, 8))}, "begins at byte 4"),
    "overlap": ({"a": entry(), "b": entry(shape=(1,), offsets=(4, 8))}, "begins at byte 4"),
    "shared": ({"a": entry(), "b": entry()}, "begins at byte 0"),
    "left over": ({"a": entry(shape=(1,), offsets=(0, 4))}, "take 4 bytes"),
    "shape negative": ({"a": entry(shape=(-1, -2))}, "shape"),
    "shape true": ({"a": entry(shape=(True, 2))}, "shape"),
    "shape object": ({"a": entry(shape={})}, "shape"),
    "nine dimensions": ({"a": entry(shape=(1,) * 8 + (2,))}, "at most 8"),
    "unknown dtype": ({"a": entry(dtype="F4")}, "unknown dtype 'F4'"),
    "dtype list": ({"a": entry(dtype=["F32"])}, "unknown dtype"),
    "entry missing a key": ({"a": {"dtype": "F32", "shape": [2]}}, "needs dtype"),
    "entry a list": ({"a": []}, "needs dtype"),
    "a list": ([], "not a JSON object"),
    "duplicate": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', "stands twice"),
    "duplicate inside": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "stands twice"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "deep": (b"[" * 200_000, "not valid JSON"),
    "long number": (b'{"a": ' + b"9" * 100_000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_with_numbers(tmp_path, name):
    header, message = LIES[name]
    start = time.monotonic()
    with pytest.raises(ModelError, match=message) as caught:
        SafetensorsFile(raw_file(tmp_path / "a.safetensors", header, bytes(8)))
    text = str(caught.value)
    assert text.startswith("a.safetensors") and "\n" not in text and len(text) < 400
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("length", [0, 1, 9, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_a_header_length_beyond_the_file_is_refused(tmp_path, length):
    (tmp_path / "a").write_bytes(length.to_bytes(8, "little") + b"{}      "[:8])
    with pytest.raises(ModelError, match=f"the header of a file of 16 bytes has 2 to 8, not {length}"):
        SafetensorsFile(tmp_path / "a")


def test_a_header_that_would_take_much_memory_is_not_parsed(tmp_path):
    raw_file(tmp_path / "a", b'{"a": [' + b"{}," * (2 << 20) + b"0]}")
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=r"a: the header of a file of \d+ bytes has 2 to 4194304, not \d+"):
            SafetensorsFile(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


PICKLES = [b"PK\x03\x04\x14\0\0\0\x08\0", b"\x80\x02}q\0(X\1\0\0\0a", b"\x80\x04\x95\x1f\0\0\0\0\0\0\0"]


@pytest.mark.parametrize("head", PICKLES)
def test_pickles_are_refused_by_content(tmp_path, head):
    (tmp_path / "model.safetensors").write_bytes(head.ljust(64, b"\0"))
    with pytest.raises(ModelError, match="is a pickle"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(ModelError, match="is not a regular file"):
            SafetensorsFile(path)
    with pytest.raises(ModelError, match="No such file"):
        SafetensorsFile(tmp_path / "absent")
