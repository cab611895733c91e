"""What cannot be quantised, and where nothing can be written, is said in one line; what was there stays as it was."""
import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small import MODEL  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402

from gramme.cli.main import run as gramme  # noqa: E402
from gramme.config import ConfigError, Rope  # noqa: E402
from gramme.formats.safetensors import SafetensorsFile, write_safetensors  # noqa: E402
from gramme.models.open import EMBEDDED  # noqa: E402
from gramme.quantize import gguf, session  # noqa: E402
from gramme.text.tokenizer import load_tokenizer  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def changed(small_model, tmp_path):
    """The small model's directory with other tensors."""
    def make(**tensors):
        directory = shutil.copytree(small_model, tmp_path / "model")
        file = SafetensorsFile(small_model / "model.safetensors")
        all_ = {name: np.array(file.tensor(name)) for name in file.names} | tensors
        write_safetensors(directory / "model.safetensors", {n: a for n, a in all_.items() if a is not None})
        return directory
    return make


UP, NORM = "model.layers.2.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("name, tensor, words", [
    ("model.layers.1.x", np.ones(3, np.float16), "model.safetensors: the config has no place for model.layers.1.x"),
    (UP, None, f"there is no tensor '{UP}'"),
    (UP, np.ones((5, 64), np.float16), f"model.safetensors: {UP} has shape [5, 64], the config says [96, 64]")])
def test_tensors_that_do_not_fit_are_named_before_any_work(changed, quantise, tmp_path, name, tensor, words):
    code, said, _ = quantise(model=changed(**{name: tensor}))
    assert code == 2 and words in said and said.count("\n") == 1 and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name, ours", [
    (NORM, "layers.1.attn_norm"), (UP, "layers.2.up"), ("model.embed_tokens.weight", "embed"),
    ("model.norm.weight", "norm"), ("model.layers.0.self_attn.q_proj.bias", "layers.0.q.bias")])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_value_that_is_not_finite_is_named(changed, small_model, quantise, name, ours, method):
    a = np.array(SafetensorsFile(small_model / "model.safetensors").tensor(name))
    a.flat[1] = np.inf
    code, said, out = quantise("--method", method, model=changed(**{name: a}))
    assert code == 2 and said.splitlines()[-1].endswith(f"{ours} is not finite everywhere") and not out.exists()


def test_a_tokenizer_that_gguf_cannot_say_is_refused_before_any_work(changed, quantise, tmp_path):
    directory = changed()
    pieces = [("<unk>", 0.0), *((chr(c), -float(i + 1)) for i, c in enumerate(range(32, 127)))]
    Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False)).save(str(directory / "tokenizer.json"))
    code, said, _ = quantise("--format", "compressed-tensors,gguf", model=directory)
    assert code == 2 and "BPE tokenizers only, this model has Unigram" in said and said.count("\n") == 1
    assert not list(tmp_path.glob("out*"))
    assert quantise("--layers", "1", model=directory)[0] == 0


def test_what_gguf_has_no_words_for():
    tokenizer = load_tokenizer(EMBEDDED)
    gguf.check(tokenizer, MODEL)
    gguf.check(tokenizer, replace(MODEL, windows=(32,) * 3))
    for m in (replace(MODEL, windows=(None, 32, 32)),
              replace(MODEL, rope=Rope(kind="yarn", factor=4.0, original_positions=32, mscale=1.0))):
        with pytest.raises(ConfigError, match="GGUF has no"):
            gguf.check(tokenizer, m)


@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
def test_whatever_group_is_written_the_engine_runs(quantise, capsys, form, group):
    code, said, out = quantise("--method", "rtn", "--format", form, "--group", str(group))
    assert code == 0, said
    assert gramme(["run", str(out), "-p", "a", "-n", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completion_tokens"] == 2


def test_calibration_takes_several_files_at_once_or_one_by_one(quantise, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("Le chat dort. The cat sleeps. " * 40)
    a, b = f"fr:{tmp_path}/a.txt", f"en:{tmp_path}/b.txt"
    for n, flags in enumerate((["--calibration", a, b], ["--calibration", a, "--calibration-text", b])):
        code, said, out = quantise(*flags, out=f"out{n}")
        assert code == 0, said
        assert "| calibration | fr (1 kB), en (1 kB);" in (out / "README.md").read_text()


@pytest.mark.parametrize("flag", ["--calibration", "--calibration-text", "--check-text"])
@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_that_says_nothing_is_named_before_any_work(quantise, tmp_path, flag, text):
    (tmp_path / "mine.txt").write_text(text)
    code, said, _ = quantise(flag, str(tmp_path / "mine.txt"))
    assert code == 2 and "text 'mine'" in said and "nothing to predict" in said and said.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("out", [".", "..", "/", "x/.."])
def test_an_out_that_is_no_name(small_model, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    assert gramme(["quantize", str(small_model), out]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("gramme: OUT must be the name") and said.err.count("\n") == 1


def test_a_place_where_no_directory_can_be(quantise, tmp_path):
    (tmp_path / "file").write_text("")
    code, said, _ = quantise(out="file/out")
    assert code == 2 and "Not a directory" in said.splitlines()[-1] and "Traceback" not in said


def test_a_closed_pipe_is_no_success(quantise, monkeypatch):
    """`gramme quantize ... | head -1` ends before anything is saved."""
    def table(losses):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(session, "table", table)
    code, said, out = quantise()
    assert code == 2 and "standard output: Broken pipe" in said.splitlines()[-1] and not out.exists()


def test_a_disk_that_is_full_anywhere_is_one_line_and_the_same_command_goes_on(quantise, monkeypatch, tmp_path):
    """Full at every third fsync in turn: nothing is half there, and room makes it go on to the end."""
    real, left = os.fsync, [0]

    def fsync(handle):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert quantise(out="whole")[0] == 0
    count, refused = -left[0], 0
    for at in range(1, count + 1, 3):
        left[0] = at
        code, said, out = quantise(out=f"out{at}")
        refused += code == 2
        assert code == 2 and "No space left on device; once that is put right" in said.splitlines()[-1], said
        assert not out.exists() and not out.with_name(out.name + ".new").exists()
        left[0] = 0
        assert quantise(out=f"out{at}")[0] == 0
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert refused > 4
