"""A quantisation as a whole: saved in every format, refused by language, resumed to the same bytes."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import packers  # noqa: E402
from small import MODEL, save  # noqa: E402

from gramme.config import EngineConfig, Rope  # noqa: E402
from gramme.evals import texts  # noqa: E402
from gramme.evals.scores import compare  # noqa: E402
from gramme.formats.checkpoint import Checkpoint  # noqa: E402
from gramme.formats.gguf import GGUFFile  # noqa: E402
from gramme.formats.grouped import Grouped, dense  # noqa: E402
from gramme.formats.quantised import open_checkpoint  # noqa: E402
from gramme.formats.safetensors import SafetensorsFile  # noqa: E402
from gramme.kernels.load import backend  # noqa: E402
from gramme.models.config import read_config  # noqa: E402
from gramme.models.dummy import SHAPES  # noqa: E402
from gramme.models.load import build, random_source, shapes  # noqa: E402
from gramme.models.names import HF, their_name  # noqa: E402
from gramme.models.open import EMBEDDED, foretold, open_model  # noqa: E402
from gramme.quantize import export, session, work  # noqa: E402
from gramme.quantize.gate import candidate, harms, reference, solved_source  # noqa: E402
from gramme.quantize.hf import hf_config  # noqa: E402
from gramme.quantize.plan import need  # noqa: E402
from gramme.quantize.recipe import FORMATS, Recipe  # noqa: E402
from gramme.quantize.run import Task, calibration_windows, solve, true_dtype  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def tensors(directory):
    files = [SafetensorsFile(p) for p in sorted(directory.glob("*.safetensors"))]
    return {name: np.array(f.tensor(name)) for f in files for name in f.names}


def read_back(directory, name, recipe):
    """A matrix by its name in the file, (N, K), read by code that knows the layouts only."""
    t = {k.removeprefix(name + "."): a for k, a in tensors(directory).items() if k.startswith(name + ".")}
    bits = 8 if "weight_packed" in t and t["weight_packed"].shape[1] * 4 == t["weight_shape"][1] else recipe.bits
    if recipe.format == "compressed-tensors":
        return packers.from_pack_quantized(t, bits).values()
    return (packers.from_gptq(t, bits, 1) if recipe.format == "gptq" else packers.from_awq(t)).values()


def solved(small_model, tmp_path, recipe):
    """(task, work, what each tensor was to be) of a run of the library's own parts."""
    opened = open_model(EngineConfig(model=str(small_model)))
    task = Task(str(small_model), replace(opened, config=true_dtype(opened)), {recipe.format: recipe},
                texts.shipped("calibration"), 512, 64)
    cut = calibration_windows(task)
    folder = work.Work(tmp_path / "w", task.describe(cut))
    solve(task, folder, cut, MODEL.layers, lambda done, total: None)
    return task, folder, solved_source(task, recipe.format, folder)


@pytest.mark.parametrize("method, format, bits", [
    ("gptq", "compressed-tensors", 16), ("rtn", "compressed-tensors", 8), ("rtn", "gptq", 16), ("awq", "awq", 16),
    ("gptq", "gguf", 16)])
def test_each_format_is_read_back_by_other_code_with_the_weights_that_were_judged(
        small_model, tmp_path, quantise, method, format, bits):
    recipe = Recipe(method=method, group=32, format=format, embedding_bits=bits)
    _, _, want = solved(small_model, tmp_path, recipe)
    code, said, out = quantise("--method", method, "--format", format, f"--embedding-bits={bits}")
    assert code == 0, said
    assert isinstance(want("embed"), Grouped) == recipe.rounds_ends == (format == "gguf" or bits == 8)
    if format == "gguf":
        return _check_gguf(out / "model.gguf", want)
    config = json.loads((out / "config.json").read_text())
    assert config["note"] == "kept" and config["quantization_config"]["quant_method"] == format
    for ours, shape in shapes(MODEL):
        a, name = want(ours), their_name(ours, HF)
        if isinstance(a, Grouped):
            ours_back = read_back(out, name.removesuffix(".weight"), recipe)
            np.testing.assert_array_equal(ours_back, dense(a), err_msg=ours)
        else:
            np.testing.assert_array_equal(tensors(out)[name].astype(np.float32), a.astype(np.float32), err_msg=ours)
            assert tensors(out)[name].dtype == np.float16 and a.shape == shape
    assert foretold(out).stored == open_model(EngineConfig(model=str(out))).config.stored


def test_an_untied_head_is_rounded_with_the_embedding_and_both_are_judged(tmp_path, quantise):
    (directory := tmp_path / "untied").mkdir()
    save(directory, replace(MODEL, tied_embeddings=False))
    (code, said, out), (_, kept, _) = (
        quantise("--method=rtn", "--bits=8", f"--embedding-bits={bits}", out=f"out{bits}", model=directory)
        for bits in (8, 16))
    assert code == 0, said
    checkpoint = open_checkpoint(out)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert checkpoint.tensor(name).bits == 8
    assert "the embedding and the head have 8 bits" in (out / "README.md").read_text()
    row = lambda text: text.split("| fr |")[1].split("\n")[0]
    assert row(said) != row(kept)
    assert foretold(out).stored == open_model(EngineConfig(model=str(out))).config.stored


def _check_gguf(path, want):
    """The rows of q and k stand in pairs (2i, 2i + 1); the embedding has 8 bits."""
    file = GGUFFile(path)
    assert file.metadata["general.architecture"] == "llama" and file.metadata["llama.block_count"] == 3
    raw = np.fromfile(path, np.uint8)
    for name, ours, heads in (("blk.1.attn_q.weight", "layers.1.q", 4), ("blk.1.attn_k.weight", "layers.1.k", 2),
                              ("blk.2.ffn_down.weight", "layers.2.down", 0), ("token_embd.weight", "embed", 0)):
        w, e, start = want(ours), file.entry(name), len(raw) - len(file._data)
        got = packers.unpack_rows(f"Q{w.bits}_0", raw[start + e.begin : start + e.end].reshape(len(w.codes), -1))
        whole = dense(w)
        if heads:
            whole = whole.reshape(heads, 2, 8, -1).swapaxes(1, 2).reshape(whole.shape)
        np.testing.assert_array_equal(got, whole, err_msg=name)
    assert want("embed").bits == 8 and file.tensor("blk.0.attn_q.bias").shape == (64,)


def test_tokenizer_template_and_defaults_go_along_and_the_card_says_what_was_lost(quantise):
    code, said, out = quantise()
    assert code == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (EMBEDDED / name).read_bytes()
    card = (out / "README.md").read_text()
    assert "| fr |" in card and "| en |" in card and "GPTQ" in card and "at most 512 tokens" in card
    assert card.split("| fr |")[1].split("\n")[0] in said
    shares = card.split("| layer |")[1].split("\n")[2:]
    assert [row.split(" | ")[0] for row in shares if row] == ["| 0", "| 1", "| 2"]
    assert not list(out.parent.glob("out.*"))


@pytest.mark.parametrize("named", [True, False])
def test_every_id_that_ends_an_answer_goes_into_gguf(small_model, tmp_path, quantise, named):
    directory = shutil.copytree(small_model, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 300]}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 301]}))
    if not named:
        names = json.loads((directory / "tokenizer_config.json").read_text())
        (directory / "tokenizer_config.json").write_text(json.dumps(names | {"eos_token": None}))
    code, said, out = quantise("--format", "gguf", "--method", "rtn", model=directory)
    assert code == 0, said
    assert set(open_model(EngineConfig(model=str(out / "model.gguf"))).config.eos_token_ids) == {1, 300, 301}


def test_one_calibration_serves_all_formats(quantise, tmp_path):
    code, said, _ = quantise("--format", ",".join(FORMATS))
    assert code == 0, said
    assert {p.name for p in tmp_path.glob("out*")} == {f"out-{f}" for f in FORMATS}


@pytest.mark.parametrize("limit", ["--max-kl", "--max-ppl-increase"])
def test_a_loss_above_the_limit_is_refused_by_language_and_nothing_is_saved(quantise, limit):
    code, said, out = quantise("--method", "rtn", limit, "-0.5")
    assert code == session.REFUSED == 3
    assert not out.exists() and not out.with_name("out.new").exists()
    for line in ("refused, fr: ", "refused, en: ", "--method gptq", "--keep-worst 1", "--bits 8"):
        assert line in said
    assert "[" in said.split("refused, fr: ")[1].split("\n")[0]
    assert quantise("--method", "rtn")[0] == 0  # the solved layers served again


def test_one_language_that_fails_is_enough(quantise, monkeypatch):
    judge = session.judge

    def french_suffers(*args):
        losses = judge(*args)
        fr = losses["fr"]
        return losses | {"fr": replace(fr, kl=replace(fr.kl, high=10.0))}

    monkeypatch.setattr(session, "judge", french_suffers)
    code, said, out = quantise()
    assert code == 3 and "refused, fr: mean KL" in said and "refused, en" not in said and not out.exists()


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq", "gguf"])
def test_the_layers_that_harm_most_keep_8_bits(small_model, tmp_path, quantise, format):
    recipe = Recipe(method="rtn", group=32, format=format)
    task, folder, _ = solved(small_model, tmp_path, recipe)
    original = reference(task)
    found = harms(original, candidate(task, format, folder, original), calibration_windows(task), lambda d, t: None)
    assert len(found) == 3 and min(found) > 0
    code, said, out = quantise("--method", "rtn", "--format", format, "--keep-worst", "1")
    assert code == 0, said
    worst = int(np.argmax(found))
    assert f"layers {worst} harm most" in said
    if format == "gguf":
        bits = {i: GGUFFile(out / "model.gguf").tensor(f"blk.{i}.ffn_up.weight").bits for i in range(3)}
        assert bits == {i: 8 if i == worst else 4 for i in range(3)}
        return
    q = json.loads((out / "config.json").read_text())["quantization_config"]
    said_so = json.dumps(q["dynamic"] if format == "gptq" else q["config_groups"]["group_1"])
    assert f"({worst})" in said_so and "8" in said_so
    recipe8 = replace(recipe, bits=8)
    eight = read_back(out, f"model.layers.{worst}.mlp.up_proj", recipe8)
    plain = random_source(MODEL, 5)(f"layers.{worst}.up").astype(np.float16).astype(np.float32)
    assert np.abs(eight - plain).max() < 0.01 * np.abs(plain).max()


def test_harm_is_the_kl_of_the_model_with_that_layer_alone(small_model, tmp_path):
    task, folder, source = solved(small_model, tmp_path, Recipe(method="rtn", group=32))
    original, cut = reference(task), calibration_windows(task)[:2]
    found = harms(original, candidate(task, "compressed-tensors", folder, original), cut, lambda d, t: None)
    mixed = lambda ours: (source if ours.startswith("layers.1.") else task.opened.source)(ours)
    one = replace(original, decoder=build(task.config, mixed, backend("eager"), "float32", 64))
    assert found[1] == pytest.approx(compare(original, one, cut).kl.mean(), rel=1e-3)


def files(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


class Stopped(BaseException):
    pass


def test_wherever_a_run_is_stopped_it_goes_on_to_the_same_bytes(quantise, monkeypatch, tmp_path):
    """Stopped at every fsync in turn: nothing is half there, and the next run ends with what an undisturbed one has."""
    real, calls = os.fsync, {"left": 0}

    def fsync(handle):
        calls["left"] -= 1
        if calls["left"] == 0:
            raise Stopped
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    code, _, whole = quantise(out="whole")
    count, stops = -calls["left"], 0
    assert code == 0 and count > 12
    for at in range(1, count + 1):
        calls["left"] = at
        try:
            assert quantise()[0] == 0
            break
        except Stopped:
            stops += 1
            out = tmp_path / "out"
            assert not out.exists() or files(out).keys() == files(whole).keys()
    if not (tmp_path / "out").exists():
        calls["left"] = 0
        assert quantise()[0] == 0
    assert stops > 5
    card = (tmp_path / "out" / "README.md").read_text().replace("run out", "run whole")
    assert files(tmp_path / "out") | {"README.md": card.encode()} == files(whole)


def test_killed_at_a_random_moment_it_goes_on_to_the_same_bytes(quantise, small_model, tmp_path, check):
    assert quantise(out="whole")[0] == 0
    command = [sys.executable, "-m", "gramme", "quantize", str(small_model), str(tmp_path / "out"), "--tokens=512",
               "--window=64", "--group=32", "--threads=1", "--max-kl=9", "--max-ppl-increase=9", "--device=cpu", *check]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.partial" / "run.json").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.random() * 0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists() or files(tmp_path / "out").keys() == files(tmp_path / "whole").keys()
    if not (tmp_path / "out").exists():
        assert quantise()[0] == 0
    assert files(tmp_path / "out")["model.safetensors"] == files(tmp_path / "whole")["model.safetensors"]


def test_another_run_does_not_go_on_with_this_ones_layers(quantise, tmp_path):
    assert quantise("--max-kl", "-1")[0] == 3
    code, said, _ = quantise("--method", "awq")
    assert code == 2 and "unfinished run with other options" in said and said.count("\n") <= 2


def test_layers_measures_and_saves_nothing(quantise, tmp_path):
    code, said, _ = quantise("--layers", "2")
    assert code == 0 and "GB free" in said and "at the peak" in said and "nothing is saved" in said
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("flags, named", [
    (["--bits", "5"], "--bits must be 4 or 8"), (["--bits", "0"], "--bits"), (["--bits", "64"], "--bits"),
    (["--group", "48"], "64 columns"), (["--group", "0"], "--group"), (["--group", "8"], "multiple of 16"),
    (["--format", "awq", "--bits", "8"], "4 bits only"), (["--format", "gguf", "--group", "64"], "groups of 32"),
    (["--format", "onnx"], "'onnx' is not written"), (["--languages", "de"], "fr, en"), (["--window", "500"], "128"),
    (["--tokens", "5"], "--tokens"), (["--keep-worst", "4"], "from 0 to 3"), (["--layers", "0"], "from 1 to 3"),
    (["--threads", "-1"], "--threads"), (["--threads", "0"], "--threads"), (["--max-kl", "nan"], "--max-kl"),
    (["--window", "0"], "--window"), (["--format", "awq", "--keep-worst", "1"], "mixes them"),
    (["--embedding-bits", "4"], "8 or 16"), (["--embedding-bits", "8", "--format", "gptq"], "keeps the embedding"),
    (["--calibration-text", "fr:none.txt"], "No such file"),
])
def test_bad_wishes_are_one_line_before_any_work(quantise, tmp_path, flags, named):
    code, said, _ = quantise(*flags)
    assert code == 2 and named in said and said.startswith("gramme: ") and said.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_what_exists_is_not_overwritten(quantise, tmp_path):
    (tmp_path / "out").mkdir()
    code, said, _ = quantise()
    assert code == 2 and "exists" in said and not list((tmp_path / "out").iterdir())


def test_large_results_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 100)
    a = {str(i): np.full(20, i, np.uint8) for i in range(12)}
    export._write_shards(tmp_path, a.items())
    checkpoint = Checkpoint(tmp_path)
    assert all((checkpoint.tensor(k) == v).all() for k, v in a.items()) and len(list(tmp_path.glob("model-*"))) == 3


@pytest.mark.parametrize("m", [
    MODEL, replace(MODEL, family="mistral", qkv_bias=False, o_bias=False, mlp_bias=False, windows=(32,) * 3),
    replace(MODEL, family="qwen2", o_bias=False, mlp_bias=False, rope=Rope(theta=1e6)),
    replace(MODEL, family="qwen3", qk_norm=True, qkv_bias=False, o_bias=False, mlp_bias=False),
    replace(MODEL, rope=Rope(kind="llama3", factor=8.0, original_positions=64, theta=500000.0)),
    replace(MODEL, rope=Rope(kind="yarn", factor=4.0, original_positions=32, attention_factor=1.1)),
], ids=lambda m: f"{m.family}-{m.rope.kind}")
def test_a_config_that_is_written_is_read_back(tmp_path, m):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(m)))
    assert replace(read_config(tmp_path), dtype=m.dtype) == m


def test_the_plan_of_a_7b_fits_24_gb():
    n = need(SHAPES["mistral-7b"], [Recipe()], 16384, 1e11)
    assert 4e9 < n.memory_bytes < 10e9 and n.seconds > 600


@pytest.mark.parametrize("more", [
    ["--format", "compressed-tensors"], ["--format", "gptq"], ["--format", "awq"], ["--format", "gguf"],
    ["--format", "compressed-tensors", "--keep-worst=2"], ["--format", "gptq", "--keep-worst=1"],
    ["--format", "compressed-tensors", "--bits=8"], ["--format", "gptq", "--bits=8"], ["--format", "gguf", "--bits=8"],
], ids=" ".join)
def test_the_packages_own_readers_see_what_was_judged(quantise, more, monkeypatch):
    """Tensor by tensor, and as a model: the tensors that `save` was given are those that loading finds."""
    given = {}
    save = session.save

    def spy(out, directory, opened, recipe, source, card):
        given.update({ours: source(ours) for ours, _ in shapes(MODEL)})
        save(out, directory, opened, recipe, source, card)

    monkeypatch.setattr(session, "save", spy)
    code, said, out = quantise(*more)
    assert code == 0, said
    back = open_model(EngineConfig(model=str(out / "model.gguf" if "gguf" in more else out)))
    bits = set()
    for ours, a in given.items():
        b = back.source(ours)
        pairs = zip(a[:3], b[:3], strict=True) if isinstance(a, Grouped) else [(a, b)]
        for x, y in pairs:
            np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32), err_msg=ours)
        if ours.startswith("layers.") and isinstance(a, Grouped):
            bits.add(b.bits)
    back.check_all_used()
    assert bits == ({4, 8} if "keep-worst" in more[-1] else {8} if "--bits=8" in more else {4})


def test_two_runs_at_once_do_not_share_a_folder(quantise, tmp_path):
    other = work.Work(tmp_path / "out.partial", {})
    code, said, out = quantise()
    assert code == 2 and "another run is at work" in said and said.count("\n") <= 2 and not out.exists()
    other.remove()
    assert quantise()[0] == 0


def test_a_run_that_goes_on_says_from_where(quantise):
    assert "solved before" not in quantise("--max-kl", "-1")[1]
    assert "3 of 3 layers were solved before" in quantise()[1]


def test_a_full_disk_is_found_before_any_work(quantise, tmp_path, monkeypatch):
    monkeypatch.setattr(session.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    code, said, _ = quantise()
    assert code == 2 and "of disk are needed" in said and not list(tmp_path.glob("out*"))


def test_the_plan_counts_the_judging():
    wide = replace(MODEL, vocab_size=200_000, tied_embeddings=False)
    plain, judged = need(wide, [Recipe()], 512, 1e9), need(wide, [Recipe()], 512, 1e9, 10_000)
    both = need(wide, [Recipe(), Recipe(format="gguf", group=32)], 512, 1e9, 10_000)
    harms = need(wide, [Recipe()], 512, 1e9, 10_000, harms=True)
    assert plain.seconds < judged.seconds < min(both.seconds, harms.seconds)
    assert judged.memory_bytes - plain.memory_bytes > 4 * 200_000 * MODEL.width
    assert both.memory_bytes - judged.memory_bytes >= 8 * 200_000 * MODEL.width


def test_the_plan_counts_the_results_on_the_disk(small_model, quantise):
    """Of 8 bits more than of 4, each format its own; what a result takes is no more than what was said."""
    four, eight = (need(MODEL, [Recipe(bits=bits, group=32)], 512, 1e9).disk_bytes for bits in (4, 8))
    both = need(MODEL, [Recipe(group=32), Recipe(group=32, format="gptq")], 512, 1e9).disk_bytes
    assert four < eight < both
    half = replace(MODEL, dtype="float16")
    kept, ends = (need(half, [Recipe(group=32, embedding_bits=b)], 512, 1e9).disk_bytes for b in (16, 8))
    assert kept - ends == pytest.approx((2 - 1 - 3 / 32) * MODEL.vocab_size * MODEL.width, abs=1)
    done = quantise("--format", "compressed-tensors,gptq")[2]
    made = sum(p.stat().st_size for f in ("compressed-tensors", "gptq")
               for p in done.with_name(f"out-{f}").glob("*.safetensors"))
    assert made < need(MODEL, [Recipe(group=32), Recipe(group=32, format="gptq")], 512, 1e9).disk_bytes
