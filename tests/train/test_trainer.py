"""Laws of training: gradients are those of an independent implementation, a resumed run is the uninterrupted one,
and a tiny text can be learnt by heart."""
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gramme.config import ModelConfig  # noqa: E402
from gramme.train.export import export, hf_config, hf_tensors  # noqa: E402
from gramme.train.trainer import Recipe, learning_rate, loss, new_decoder, train  # noqa: E402

M = ModelConfig(family="mistral", vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ff_width=48,
                norm_eps=1e-5, max_positions=64, tied_embeddings=True)


def batch(step):
    r = np.random.default_rng((7, step))
    return r.integers(0, 61, (3, 12)), r.random((3, 11), dtype=np.float32)


def recipe(steps, **changes):
    return Recipe(**({"steps": steps, "warmup_steps": 2, "learning_rate": 1e-2, "checkpoint_s": 1e9} | changes))


def test_gradients_equal_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    ours = new_decoder(M, 0)
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**hf_config(M) | {"torch_dtype": "float32"}))
    state = dict(hf_tensors(ours, M))
    missing, unexpected = theirs.load_state_dict({n: a.clone() for n, a in state.items()}, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    theirs.tie_weights()

    tokens, weights = (torch.from_numpy(a) for a in batch(0))
    value = loss(ours, tokens, weights, chunk=10)
    value.backward()
    logits = theirs(tokens[:, :-1]).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    expected = (nats * weights.flatten()).sum() / weights.sum()
    expected.backward()

    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    parameters = dict(theirs.named_parameters())
    layer, p = ours.layers[1], "model.layers.1."
    qkv = torch.cat([parameters[f"{p}self_attn.{n}_proj.weight"].grad for n in "qkv"])
    for mine, their in [(ours.embed.packed.grad, parameters["model.embed_tokens.weight"].grad),
                        (layer.qkv.packed.grad, qkv),
                        (layer.o.packed.grad, parameters[p + "self_attn.o_proj.weight"].grad),
                        (layer.down.packed.grad, parameters[p + "mlp.down_proj.weight"].grad),
                        (layer.attn_norm.grad, parameters[p + "input_layernorm.weight"].grad),
                        (ours.norm.grad, parameters["model.norm.weight"].grad)]:
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-6)


def test_the_loss_does_not_depend_on_the_chunk():
    tokens, weights = (torch.from_numpy(a) for a in batch(0))
    whole, parts = (loss(new_decoder(M, 0), tokens, weights, chunk) for chunk in (1000, 7))
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    straight = train(new_decoder(M, 0), batch, recipe(8), tmp_path / "a")
    stops = iter([False] * 5)

    def interrupted(step):
        if next(stops, True):
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(new_decoder(M, 0), interrupted, recipe(8, checkpoint_s=-1.0), tmp_path / "b")
    rest = train(new_decoder(M, 1), batch, recipe(8), tmp_path / "b")
    assert [r["step"] for r in rest] == [5, 6, 7]
    assert [(r["loss"], r["norm"]) for r in rest] == [(r["loss"], r["norm"]) for r in straight[5:]]
    logged = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in logged] == [r["loss"] for r in straight]


def test_a_tiny_text_is_learnt_by_heart(tmp_path):
    text = np.random.default_rng(3).permutation(40)[None, :]
    ones = np.ones((1, 39), np.float32)
    log = train(new_decoder(M, 0), lambda step: (text, ones), recipe(60), tmp_path)
    assert log[0]["loss"] > 3 and log[-1]["loss"] < 0.1


def test_the_learning_rate_warms_up_and_falls_to_its_floor():
    r = recipe(100, warmup_steps=10, floor=0.1)
    rates = [learning_rate(r, step) for step in range(101)]
    assert rates[9] == max(rates) == r.learning_rate
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1 * r.learning_rate)


def test_an_exported_model_is_read_back(tmp_path):
    from gramme.formats.checkpoint import Checkpoint
    from gramme.models.config import read_config

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
    decoder = new_decoder(M, 0)
    export(decoder, M, tmp_path, tmp_path / "model")
    config = read_config(tmp_path / "model")
    assert (config.width, config.layers, config.tied_embeddings) == (M.width, M.layers, True)
    stored = Checkpoint(tmp_path / "model").tensor("model.layers.1.self_attn.k_proj.weight")
    expected = decoder.layers[1].qkv.packed.detach()[32:48].to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(np.asarray(stored, np.float32), expected)
