"""The decoder says what the papers' formulas say, written here once more as loops over float64."""
import numpy as np
from engines import MODEL, prompts, run, score

from gramme.models.load import random_source
from gramme.request import Request, SamplingParams


def naive_logits(tokens):
    """(T, V): Llama's decoder with Qwen's biases and q/k norms, and a window in the second layer."""
    m, get = MODEL, lambda name: random_source(MODEL, 3)(name).astype(np.float64)
    stream = [get("embed")[t] for t in tokens]
    for layer in range(m.layers):
        w = {n: get(f"layers.{layer}.{n}") for n in (
            "attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down", "q.bias", "k.bias", "v.bias", "q_norm",
            "k_norm")}
        normed = [rms_norm(x, w["attn_norm"]) for x in stream]
        q, k, v = ([heads(w[n] @ x + w[f"{n}.bias"]) for x in normed] for n in "qkv")
        q = [[rotate(rms_norm(h, w["q_norm"]), p) for h in hs] for p, hs in enumerate(q)]
        k = [[rotate(rms_norm(h, w["k_norm"]), p) for h in hs] for p, hs in enumerate(k)]
        for p in range(len(tokens)):
            seen = [j for j in range(p + 1) if p - j < (m.window(layer) or 10**9)]
            out = []
            for h in range(m.heads):
                g = h // (m.heads // m.kv_heads)
                scores = np.array([q[p][h] @ k[j][g] for j in seen]) / m.head_dim**0.5
                weights = np.exp(scores - scores.max())
                out.append(sum(weight * v[j][g] for weight, j in zip(weights / weights.sum(), seen, strict=True)))
            stream[p] = stream[p] + w["o"] @ np.concatenate(out)
        for p, x in enumerate(stream):
            y = rms_norm(x, w["mlp_norm"])
            gate = w["gate"] @ y
            stream[p] = x + w["down"] @ (gate / (1 + np.exp(-gate)) * (w["up"] @ y))
    return np.array([get("head") @ rms_norm(x, get("norm")) for x in stream])


def heads(x):
    return x.reshape(-1, MODEL.head_dim)


def rms_norm(x, gain):
    return x / np.sqrt((x * x).mean() + MODEL.norm_eps) * gain


def rotate(x, position):
    """Component i turns with component i + Dh / 2, by position / theta^(2i / Dh)."""
    half, y = MODEL.head_dim // 2, x.copy()
    for i in range(half):
        angle = position / MODEL.rope.theta ** (2 * i / MODEL.head_dim)
        y[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        y[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return y


def test_prompt_and_decoded_tokens_have_the_probabilities_of_the_formulas(make):
    prompt = prompts(1, seed=4)[0]
    engine = make(max_num_batched_tokens=32)
    scored = score(engine, prompt)
    todo = Request(id="a", prompt_token_ids=prompt, params=SamplingParams(temperature=0, max_tokens=25, logprobs=0))
    answer = run(engine, [todo])["a", 0]
    tokens = [*prompt, *answer.tokens]
    logits = naive_logits(tokens)
    want = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert answer.tokens == logits.argmax(-1)[len(prompt) - 1 : -1].tolist()
    want = [want[i, t] for i, t in enumerate(tokens[1:])]
    np.testing.assert_allclose([*scored, *answer.logprobs], want, atol=1e-4 * logits.std())
