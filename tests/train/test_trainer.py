"""Laws of training: gradients are those of an independent implementation, a resumed run is the uninterrupted one,
threads change nothing, memory is what the ledger says, and a tiny text can be learnt by heart."""
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gramme.config import ModelConfig  # noqa: E402
from gramme.train import checkpoint, trainer  # noqa: E402
from gramme.train.export import export, hf_config, hf_tensors  # noqa: E402
from gramme.train.recipe import Recipe  # noqa: E402
from gramme.train.trainer import Trainer, fresh, loss, new_decoder, train  # noqa: E402

pytestmark = pytest.mark.torch

M = ModelConfig(family="mistral", vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ff_width=48,
                norm_eps=1e-5, max_positions=64, tied_embeddings=True)


def batch(i):
    r = np.random.default_rng((7, i))
    return r.integers(0, 61, (3, 12)).astype(np.int32), r.random((3, 11), dtype=np.float32)


def recipe(steps, **changes):
    small = {"warmup_steps": 2, "learning_rate": 1e-2, "checkpoint_s": 1e9, "length": 16, "batch_tokens": 36}
    return Recipe(**({"steps": steps} | small | changes))


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("length", [11, 70])  # attention in three products, and torch's own
def test_gradients_equal_those_of_transformers(length):
    transformers = pytest.importorskip("transformers")
    m = replace(M, max_positions=128)
    ours = new_decoder(m, fresh(m, 0))
    with torch.no_grad():
        for name, a in ours.named_weights():
            if "norm" in name:
                a += 0.1 * torch.randn(a.shape)
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**hf_config(m) | {"torch_dtype": "float32"}))
    missing, unexpected = theirs.load_state_dict({n: a.clone() for n, a in hf_tensors(ours, m)}, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    theirs.tie_weights()

    r = np.random.default_rng(1)
    tokens, weights = r.integers(0, 61, (3, length + 1)).astype(np.int32), r.random((3, length), dtype=np.float32)
    weights[:, :4] = 0
    value = loss(ours, (tokens, weights), chunk=10)
    value.backward()
    ids = torch.from_numpy(tokens).long()
    logits = theirs(ids[:, :-1]).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    expected = (nats * torch.from_numpy(weights).flatten()).sum()
    expected.backward()

    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    parameters = dict(theirs.named_parameters())
    layer, p = ours.layers[1], "model.layers.1."
    join = lambda kind, names: torch.cat([parameters[f"{p}{kind}.{n}_proj.weight"].grad for n in names])
    for mine, their in [(ours.embed.packed.grad, parameters["model.embed_tokens.weight"].grad),
                        (layer.qkv.packed.grad, join("self_attn", "qkv")),
                        (layer.o.packed.grad, join("self_attn", "o")),
                        (layer.gate_up.packed.grad, join("mlp", ("gate", "up"))),
                        (layer.down.packed.grad, join("mlp", ("down",))),
                        (layer.attn_norm.grad, parameters[p + "input_layernorm.weight"].grad),
                        (layer.mlp_norm.grad, parameters[p + "post_attention_layernorm.weight"].grad),
                        (ours.norm.grad, parameters["model.norm.weight"].grad)]:
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


def test_products_in_bfloat16_give_the_same_gradients_roughly():
    gradients = []
    for dtype in ("float32", "bfloat16"):
        decoder = new_decoder(M, fresh(M, 0), dtype)
        loss(decoder, batch(0), 10).backward()
        gradients.append(torch.cat([a.grad.flatten().float() for _, a in decoder.named_weights()]))
    assert torch.nn.functional.cosine_similarity(*gradients, 0) > 0.999


def test_the_loss_does_not_depend_on_the_chunk():
    whole, parts = (loss(new_decoder(M, fresh(M, 0)), batch(0), chunk) for chunk in (1000, 7))
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rates", [{}, {"muon_rate": 0.02, "bf16": True, "micro_batches": 3}])
def test_a_resumed_run_is_the_uninterrupted_one(rates, tmp_path):
    r = recipe(8, **rates)
    train(M, batch, r, tmp_path / "a", held_out=[batch(99)])
    stops = iter([False] * (1 + 5 * r.micro_batches))  # the ledger looks at one batch first

    def interrupted(i):
        if next(stops, True):
            raise KeyboardInterrupt
        return batch(i)

    with pytest.raises(KeyboardInterrupt):
        train(M, interrupted, replace(r, checkpoint_s=-1.0), tmp_path / "b", held_out=[batch(99)])
    train(M, batch, r, tmp_path / "b", held_out=[batch(99)])
    both = [[{k: v for k, v in record.items() if k != "s"} for record in logged(tmp_path / name)] for name in "ab"]
    assert both[0] == both[1] and len(both[0]) == 8 and "held_out" in both[0][-1]


def test_a_step_does_not_depend_on_the_number_of_threads():
    after = []
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            t = Trainer.new(M, recipe(5, micro_batches=4, muon_rate=0.02), pool)
            for number in range(2):
                t.step(number, batch)
            after.append([a.detach().clone() for a in t.weights.values()])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_micro_batches_add_up_to_their_union():
    rows = [batch(0), batch(1)]
    union = tuple(np.concatenate(parts) for parts in zip(*rows))
    norms = []
    for source, micro_batches in ((lambda i: rows[i], 2), (lambda i: union, 1)):
        with ThreadPoolExecutor(2) as pool:
            norms.append(Trainer.new(M, recipe(3, micro_batches=micro_batches), pool).step(0, source)["norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    train(M, batch, recipe(2), tmp_path)

    def half(tensors, path, metadata):
        path.write_bytes(b"half of a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_file", half)
        train(M, batch, recipe(4, checkpoint_s=-1.0), tmp_path)
    train(M, batch, recipe(4), tmp_path)
    assert [r["step"] for r in logged(tmp_path)] == [0, 1, 2, 3]  # what the kill undid is logged once


def test_a_tiny_text_is_learnt_by_heart(tmp_path):
    text, ones = np.random.default_rng(3).permutation(40)[None, :].astype(np.int32), np.ones((1, 39), np.float32)
    for name, changes in {"adamw": {}, "muon": {"muon_rate": 0.02}}.items():
        train(M, lambda i: (text, ones), recipe(60, micro_batches=1, length=39, **changes), tmp_path / name)
        log = logged(tmp_path / name)
        assert log[0]["loss"] > 3 and log[-1]["loss"] < 0.1


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows, length", [(9, 24), (4, 80)])
def test_the_ledger_predicts_what_backward_holds(bf16, rows, length):
    m = replace(M, width=64, head_dim=16, ff_width=192, max_positions=128, vocab_size=500)
    weights = np.zeros((rows, length), np.float32)
    weights[:, length // 2 :] = 1
    tokens = np.random.default_rng(0).integers(0, 500, (rows, length + 1)).astype(np.int32)
    with ThreadPoolExecutor(1) as pool:
        ledger = Trainer.new(m, recipe(1, bf16=bf16), pool).ledger(m, (tokens, weights))
    assert ledger["measured"]["activations"] == pytest.approx(ledger["predicted"]["activations"], rel=0.1)


def test_an_exported_model_is_read_back(tmp_path):
    from gramme.formats.checkpoint import Checkpoint
    from gramme.models.config import read_config

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
    decoder = new_decoder(M, fresh(M, 0))
    export(decoder, M, tmp_path, tmp_path / "model")
    config = read_config(tmp_path / "model")
    assert (config.width, config.layers, config.tied_embeddings) == (M.width, M.layers, True)
    stored = Checkpoint(tmp_path / "model").tensor("model.layers.1.self_attn.k_proj.weight")
    expected = decoder.layers[1].qkv.packed.detach()[32:48].to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(np.asarray(stored, np.float32), expected)


def test_heights_are_those_of_the_matrices():
    weights = dict(new_decoder(M, fresh(M, 0)).named_weights())
    for name, rows in trainer.heights(M).items():
        assert sum(rows) == len(weights.pop(name))
    assert all(a.ndim == 1 for name, a in weights.items() if name != "embed")
