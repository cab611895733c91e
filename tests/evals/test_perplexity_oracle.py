"""Perplexity of a tiny random model is what transformers computes, to far more than four digits."""
import math

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gramme.config import EngineConfig  # noqa: E402
from gramme.evals import texts  # noqa: E402
from gramme.evals.scores import score, windows  # noqa: E402
from gramme.evals.subject import load  # noqa: E402
from gramme.evals.summary import quality  # noqa: E402
from gramme.models.open import EMBEDDED  # noqa: E402


@pytest.mark.parametrize("backend", ["reference", "eager", "cpu"])
def test_perplexity_is_transformers(tmp_path, backend):
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a second thread that waits for a busy core makes this 100 times slower
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=120, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, bos_token_id=0, eos_token_id=1)
    oracle = transformers.LlamaForCausalLM(config).eval()
    oracle.save_pretrained(tmp_path)
    model = load(EngineConfig(model=str(tmp_path), tokenizer=str(EMBEDDED), backend=backend, dtype="float32"), 128)
    ids = model.tokenizer.encode(texts.shipped("held-out")["en"][:4000])
    assert len(ids) > 4 * 128
    nats = []  # the loop of the GPTQ paper's code: mean loss of each window times its length
    for i in range(len(ids) // 128):
        row = torch.tensor([ids[i * 128 : (i + 1) * 128]])
        with torch.no_grad():
            nats.append(oracle(row, labels=row).loss.item())
    theirs = math.exp(sum(nats) / len(nats))
    ours = quality(score(model, windows(ids, 128, 128))).perplexity.value
    assert ours == pytest.approx(theirs, rel=1e-5)
