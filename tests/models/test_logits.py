"""One decoder over numpy and over torch says what transformers says, for tiny random models of each family."""
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gramme import LLM, ConfigError, SamplingParams  # noqa: E402
from gramme.formats.checkpoint import Checkpoint  # noqa: E402
from gramme.formats.safetensors import SafetensorsFile, write_safetensors  # noqa: E402
from gramme.kernels import load  # noqa: E402
from gramme.models.config import read_config  # noqa: E402
from gramme.models.names import HF, MISTRAL, source_of  # noqa: E402

COMMON = dict(
    vocab_size=211, hidden_size=64, intermediate_size=120, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.3, pad_token_id=0,
    bos_token_id=1, eos_token_id=None)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied-biased": ("Llama", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "llama3-rope": ("Llama", dict(rope_parameters=LLAMA3)),
    "linear-rope": ("Llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0))),
    "yarn-rope": ("Llama", dict(rope_parameters=YARN)),
    "mistral-window": ("Mistral", dict(sliding_window=8, head_dim=16)),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=32)),
    "qwen3-tied": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True)),
}


def present(name):
    try:
        return bool(load.backend(name))
    except ConfigError:
        return False


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request, tmp_path_factory):
    """(model, its directory): every parameter, gains and biases too, moved at random."""
    kind, more = FAMILIES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(COMMON | more))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    return model, directory


@pytest.mark.parametrize("backend", ["reference", "eager", *filter(present, ["cpu"])])
def test_logprobs_of_prompt_and_64_decoded_tokens_are_transformers(oracle, backend):
    model, directory = oracle
    prompt = np.random.default_rng(1).integers(2, 211, 40).tolist()
    llm = LLM(str(directory), backend=backend, dtype="float32", kv_cache_dtype="float32", skip_tokenizer_init=True,
              page_size=4, max_num_batched_tokens=13, max_num_seqs=4)
    params = SamplingParams(temperature=0, max_tokens=65, logprobs=20, prompt_logprobs=20)
    out = llm.generate([{"prompt_token_ids": prompt}], params)[0]
    tokens = [*prompt, *out.outputs[0].token_ids]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double()
    assert list(out.outputs[0].token_ids) == logits.argmax(-1)[len(prompt) - 1 : -1].tolist()
    want = logits.log_softmax(-1)
    ours = [*out.prompt_logprobs[1:], *out.outputs[0].logprobs]
    worst = max(abs(value.logprob - float(want[i, token]))
                for i, scores in enumerate(ours) for token, value in scores.items())
    assert worst < 1e-4 * float(logits.std()), f"worst difference {worst / float(logits.std()):.1e} of the deviation"


def test_mistrals_own_layout_gives_the_same_tensors(tmp_path):
    torch.manual_seed(0)
    config = transformers.MistralConfig(**(COMMON | dict(sliding_window=None, head_dim=16)))
    model = transformers.MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "hf")
    file = SafetensorsFile(tmp_path / "hf" / "model.safetensors")
    own = {_mistral_name(n): _interleave(n, file.tensor(n)) for n in file.names}
    (tmp_path / "own").mkdir()
    write_safetensors(tmp_path / "own" / "consolidated.safetensors", own)
    (tmp_path / "own" / "params.json").write_text(json.dumps(dict(
        dim=64, n_layers=3, head_dim=16, hidden_dim=120, n_heads=4, n_kv_heads=2, norm_eps=1e-5, vocab_size=211)))
    sources = []
    for name in ("hf", "own"):
        m = read_config(tmp_path / name)
        from gramme.models.load import shapes
        wanted = dict(shapes(m))
        layout = HF if name == "hf" else MISTRAL
        sources.append(source_of(Checkpoint(tmp_path / name), layout, m, wanted)[0])
    for name in wanted:
        np.testing.assert_array_equal(sources[0](name), sources[1](name), err_msg=name)


def _mistral_name(hf):
    for ours, theirs in HF.names.items():
        if hf.endswith(theirs + ".weight"):
            return hf.removesuffix(theirs + ".weight").removeprefix("model.") + MISTRAL.names[ours] + ".weight"
    raise AssertionError(hf)


def _interleave(name, a):
    if "q_proj" not in name and "k_proj" not in name:
        return np.array(a)
    return np.stack([a.reshape(-1, 2, 8, 64)[:, 0], a.reshape(-1, 2, 8, 64)[:, 1]], 2).reshape(a.shape)
