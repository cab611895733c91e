"""Laws of the measures: each token scored once, equal models lose nothing, what the engine says, figures by hand."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from gramme import LLM, SamplingParams
from gramme.cli.main import run
from gramme.config import ConfigError, EngineConfig, ModelError
from gramme.evals import scores, subject, texts
from gramme.evals.scores import Scores, compare, compared, noise_floor, score, windows
from gramme.evals.subject import Reference, chosen, load
from gramme.evals.summary import loss, quality
from gramme.formats.safetensors import SafetensorsFile, write_safetensors
from gramme.kernels.present import available
from gramme.models.open import EMBEDDED, open_model
from gramme.quant.weights import Dense, Integers

TEXT = texts.shipped("held-out")["fr"][:1500]


@pytest.fixture(scope="module")
def model():
    return load(EngineConfig(model="dummy:tiny", backend="reference"), 64)


def ids(model):
    return model.tokenizer.encode(TEXT)


def test_the_papers_windows_know_nothing_of_each_other_and_the_incomplete_one_is_left_out():
    cut = windows(range(100), 30, 30)
    assert [w.tokens.tolist() for w in cut] == [list(range(i, i + 30)) for i in (0, 30, 60)]
    assert {w.first for w in cut} == {1}
    assert len(windows(range(20), 30, 30)) == 1


@pytest.mark.parametrize("stride", [1, 7, 15, 29])
def test_with_a_smaller_stride_every_token_is_scored_once(stride):
    cut = windows(range(100), 30, stride)
    scored = np.concatenate([w.tokens[w.first :] for w in cut]).tolist()
    assert scored == list(range(1, 1 + len(scored))) and len(scored) > 99 - stride


@pytest.mark.parametrize("n, window, stride", [(100, 30, 0), (100, 30, 31), (1, 30, 30), (0, 30, 30)])
def test_windows_that_score_nothing_are_refused(n, window, stride):
    with pytest.raises(ConfigError):
        windows(range(n), window, stride)


def test_scores_are_the_engines_prompt_logprobs(model):
    tokens = ids(model)[:64]
    ours = score(model, windows(tokens, 64, 64)).nats
    llm = LLM("dummy:tiny", backend="reference", max_model_len=128, max_num_batched_tokens=32, max_num_seqs=4)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    theirs = llm.generate({"prompt_token_ids": tokens}, params)[0].prompt_logprobs
    llm.close()
    np.testing.assert_allclose(ours, [-s[t].logprob for s, t in zip(theirs[1:], tokens[1:])], atol=1e-4)


def test_passes_and_chunks_change_nothing(model, monkeypatch):
    cut = windows(ids(model), 64, 48)
    whole = score(model, cut)
    monkeypatch.setattr(scores, "PASS_TOKENS", 64)
    monkeypatch.setattr("gramme.evals.subject.LOGIT_ROWS", 5)
    np.testing.assert_allclose(score(model, cut).nats, whole.nats, atol=1e-5)
    assert len(whole.nats) == len(whole.nbytes) == sum(len(w.tokens) - w.first for w in cut)


def test_bytes_are_the_texts(model):
    tokens = ids(model)
    s = score(model, windows(tokens, 64, 64)[:1])
    assert s.nbytes.sum() == len(model.tokenizer.decode(tokens[1:64]).encode())


def test_a_model_loses_nothing_against_itself(model):
    s = compare(model, model, windows(ids(model), 64, 64))
    out = loss(s)
    assert np.abs(s.kl).max() < 1e-12 and out.top1_agreement.value == 1 and out.perplexity_increase.high == 0
    assert noise_floor(model, windows(ids(model), 64, 64)) < 1e-9


def test_rounded_weights_lose_what_the_definition_says(model):
    rounded = load(EngineConfig(model="dummy:tiny", backend="reference", dtype="int4"), 64)
    cut = windows(ids(model)[:64], 64, 64)
    s = compare(model, rounded, cut)
    p, q = (_softmax(np.concatenate(list(m.logits(m.states([cut[0].tokens])[0])))) for m in (model, rounded))
    np.testing.assert_allclose(s.kl, (p * np.log(p / q)).sum(-1)[:-1], rtol=1e-6, atol=1e-9)
    assert s.kl.mean() > 1e-3
    out = loss(s)
    assert out.kl.low < out.kl.value < out.kl.high <= out.kl_p99.high
    assert math.isclose(out.perplexity.value, math.exp(s.nats.mean()))
    increase = out.perplexity.value / out.reference_perplexity.value - 1
    assert math.isclose(out.perplexity_increase.value, increase, rel_tol=1e-9)


def _softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_interval_of_independent_tokens_is_that_of_the_normal_law():
    r = np.random.default_rng(1)
    nats = r.normal(3, 1, 64 * 200)
    low, high = (math.log(x) for x in (quality(Scores(nats, np.ones_like(nats))).perplexity.low,
                                       quality(Scores(nats, np.ones_like(nats))).perplexity.high))
    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(len(nats)), rel=0.15)


def test_tokens_alike_in_a_block_widen_the_interval():
    r = np.random.default_rng(1)
    alike = np.repeat(r.normal(3, 1, 200), 64)
    q = quality(Scores(alike, np.ones_like(alike))).perplexity
    assert math.log(q.high / q.low) / 2 == pytest.approx(1.96 / math.sqrt(200), rel=0.2)


def test_bits_per_byte_by_hand():
    s = Scores(np.full(100, math.log(2)), np.full(100, 4.0))
    assert quality(s).bits_per_byte.value == pytest.approx(0.25)


def test_logits_that_are_not_finite_are_named():
    w = windows([1, 2, 3], 3, 3)[0]
    with pytest.raises(ModelError, match="not finite"):
        compared(iter([np.zeros((2, 5))]), iter([np.full((2, 5), np.nan)]), w)


def test_texts_by_name(tmp_path):
    (tmp_path / "a.txt").write_text("un ")
    (tmp_path / "b.txt").write_text("deux")
    assert texts.read([f"fr:{tmp_path}/a.txt", f"fr:{tmp_path}/b.txt"]) == {"fr": "un deux"}
    assert texts.read([f"{tmp_path}/a.txt"]) == {"a": "un "}
    (tmp_path / "bad").write_bytes(b"ab\xff")
    with pytest.raises(ConfigError, match="byte 2"):
        texts.read([f"{tmp_path}/bad"])
    with pytest.raises(ConfigError, match="No such file"):
        texts.read([f"fr:{tmp_path}/none"])


def test_no_shipped_text_is_both_seen_and_judged_by():
    seen = {line for t in texts.shipped("calibration").values() for line in t.splitlines()}
    assert not seen & {line for t in texts.shipped("held-out").values() for line in t.splitlines()}
    with pytest.raises(ConfigError, match="fr, en"):
        texts.shipped("held-out", ["xx"])


def test_the_command_writes_one_line_of_json(tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT)
    command = ["eval", "kl", "dummy:tiny", "--dtype", "int8", "--text", f"fr:{tmp_path}/t.txt", "--window", "64"]
    assert run([*command, "--backend", "reference", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["window"] == record["stride"] == 64 and record["texts"]["fr"]["kl"]["value"] < 0.1
    assert run([*command, "--backend", "reference"]) == 0
    assert "top-1 agreement" in capsys.readouterr().out


@pytest.mark.parametrize("more, words", [
    (["--window", "0"], "a window must have from 2 to 4096 tokens"),
    (["--window", "64", "--stride", "0"], "text 'fr': a stride must be from 1 to"),
    (["--text", "mine:EMPTY"], "text 'mine': a text of 0 tokens"), (["--text", "none.txt"], "none.txt: No such file")])
@pytest.mark.parametrize("measure", ["ppl", "kl"])
def test_what_cannot_be_measured_is_one_line(tmp_path, capsys, measure, more, words):
    (tmp_path / "t.txt").write_text(TEXT)
    (tmp_path / "empty").write_text("")
    more = [a.replace("EMPTY", f"{tmp_path}/empty") for a in more]
    assert run(["eval", measure, "dummy:tiny", "--text", f"fr:{tmp_path}/t.txt", "--backend", "reference", *more]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_model_with_tensors_too_many_is_not_judged(tmp_path, capsys):
    tensors = SafetensorsFile(EMBEDDED / "model.safetensors")
    extra = {name: np.array(tensors.tensor(name)) for name in tensors.names} | {"x.weight": np.ones(3, np.float32)}
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    write_safetensors(tmp_path / "model.safetensors", extra)
    assert run(["eval", "ppl", str(tmp_path)]) == 2
    assert "the config has no place for x.weight" in capsys.readouterr().err


def test_two_vocabularies_are_refused(tmp_path, capsys, model):
    (tmp_path / "t.txt").write_text(TEXT)
    wrong = ["eval", "kl", "dummy:tiny", "--reference", "dummy:100m", "--text", f"fr:{tmp_path}/t.txt"]
    assert run([*wrong, "--window", "16", "--backend", "reference"]) == 2
    assert "bits per byte" in capsys.readouterr().err


@pytest.mark.parametrize("window", [1, 4097])
def test_a_window_beyond_the_context_is_refused(window):
    with pytest.raises(ConfigError, match="4096"):
        load(replace(EngineConfig(model="dummy:tiny"), backend="reference"), window)


def test_where_nothing_is_asked_the_best_kernels_run():
    assert chosen(open_model(EngineConfig(model="dummy:tiny")).config, EngineConfig())[0].name == available()[0]


def test_the_reference_is_the_model_in_floats_and_what_runs_rounds_activations():
    """The embedded model is stored as integers: against itself it loses what its activations' rounding costs."""
    run, exact = (load(EngineConfig(backend="reference"), 64, exact=exact) for exact in (False, True))
    assert isinstance(run.decoder.layers[0].qkv, Integers) and isinstance(exact.decoder.layers[0].qkv, Dense)
    cut = windows(exact.tokenizer.encode(TEXT)[:64], 64, 64)
    assert 1e-6 < compare(exact, run, cut).kl.mean() < 1e-2


def test_a_reference_runs_a_window_once_and_keeps_a_bounded_number(model, monkeypatch):
    ran = []
    monkeypatch.setattr(subject, "run_layers", lambda decoder, steps, progress: ran.append(len(steps)) or [
        np.zeros((len(s.tokens), 1)) for s in steps])
    reference = Reference(model.name, model.config, model.tokenizer, model.decoder, model.device)
    one, other = [np.arange(8, dtype=np.int32)], [np.arange(8, 16, dtype=np.int32)]
    for some in (one, other, one, other, [*one, *other]):
        assert [len(a) for a in reference.states(some)] == [8] * len(some)
    assert ran == [1, 1]
    monkeypatch.setattr(subject, "KEPT_TOKENS", 20)
    more = [np.arange(16, 24, dtype=np.int32)]
    assert [len(a) for a in (*reference.states(more), *reference.states(more))] == [8, 8] and ran == [1, 1, 1, 1]


def test_a_pass_is_bounded_when_a_short_text_comes_first(model, monkeypatch):
    monkeypatch.setattr(scores, "PASS_TOKENS", 128)
    cut = windows(range(8), 64, 64) + windows(range(640), 64, 64)
    held = [sum(len(w.tokens) for w in some) for some, _ in scores.passes(cut, (), lambda done, total: None)]
    assert max(held) <= 128 and sum(held) == 648


def test_progress_rises_layer_by_layer_to_the_end(model, monkeypatch):
    monkeypatch.setattr(scores, "PASS_TOKENS", 64)
    cut, told = windows(ids(model), 64, 64)[:3], []
    compare(model, model, cut, lambda done, total: told.append((done, total)))
    layers = model.config.layers
    assert told == [(i, 3 * (2 * layers + 1)) for i in range(3 * (2 * layers + 1) + 1)]
