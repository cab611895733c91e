"""A directory gives each tensor once, from the shard that claims it, or one line that says what is wrong."""
import json
import os

import numpy as np
import pytest

from gramme.config import ModelError
from gramme.formats.checkpoint import INDEX, Checkpoint
from gramme.formats.files import read_json
from gramme.formats.safetensors import write_safetensors

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float16)


def sharded(directory, weight_map, **files):
    for name, tensors in files.items():
        write_safetensors(directory / f"{name}.safetensors", tensors)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_one_file_shards_and_mistrals_name_give_the_same(tmp_path):
    for name in ("one", "shards", "own"):
        (tmp_path / name).mkdir()
    write_safetensors(tmp_path / "one" / "model.safetensors", {"a": A, "b": B})
    write_safetensors(tmp_path / "own" / "consolidated.safetensors", {"a": A, "b": B})
    sharded(tmp_path / "shards", {"a": "x.safetensors", "b": "y.safetensors"}, x={"a": A}, y={"b": B})
    for name in ("one", "shards", "own"):
        checkpoint = Checkpoint(tmp_path / name)
        assert sorted(checkpoint.names) == ["a", "b"]
        np.testing.assert_array_equal(checkpoint.tensor("a"), A)
        np.testing.assert_array_equal(checkpoint.tensor("b"), B)
    with pytest.raises(ModelError, match="there is no tensor 'c'"):
        checkpoint.tensor("c")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "d/x", "..", "", 3, None, ["x"]])
def test_a_shard_outside_the_directory_is_refused(tmp_path, shard):
    (tmp_path / "in").mkdir()
    write_safetensors(tmp_path / "x.safetensors", {"a": A})
    with pytest.raises(ModelError, match="a shard must be a file of the same directory"):
        Checkpoint(sharded(tmp_path / "in", {"a": shard}))


def test_the_index_and_the_shards_must_agree(tmp_path):
    sharded(tmp_path, {"a": "x.safetensors", "b": "x.safetensors"}, x={"a": A}, y={"b": B})
    with pytest.raises(ModelError, match=r"tensor 'b' stands in 'x.safetensors', it does not"):
        Checkpoint(tmp_path)
    sharded(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"}, y={"a": A, "b": B})
    with pytest.raises(ModelError, match=r"'a' stands in x.safetensors and in y.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "y.safetensors").unlink()
    with pytest.raises(ModelError, match=r"y.safetensors: No such file"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": []}')
    with pytest.raises(ModelError, match="has no weight_map"):
        Checkpoint(tmp_path)


def test_a_cache_of_links_to_blobs_is_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_safetensors(tmp_path / "blobs" / "0123", {"a": A})
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123")
    np.testing.assert_array_equal(Checkpoint(tmp_path / "snapshot").tensor("a"), A)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pth", "x.ckpt"])
def test_pickled_weights_alone_are_refused_saying_why(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match="pickled weights only, which can run code"):
        Checkpoint(tmp_path)


def test_a_directory_without_weights_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"holds no model.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 9999 + "}"])
def test_bad_json_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"^config.json is not") as caught:
        read_json(tmp_path, "config.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_json_that_is_absent_huge_or_no_file(tmp_path):
    with pytest.raises(ModelError, match=r"config.json: No such file"):
        read_json(tmp_path, "config.json")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelError, match="not a regular file"):
        read_json(tmp_path, "fifo")
    (tmp_path / "big").write_bytes(b" " * ((4 << 20) + 1))
    with pytest.raises(ModelError, match="big has 4194305 bytes, at most 4194304 are read"):
        read_json(tmp_path, "big")
