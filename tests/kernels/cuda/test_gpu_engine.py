"""The whole engine on the GPU's kernels: requests beside each other, captured sizes, chunks, a prefix met again."""
import pytest

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.kernels.load import backend, machine
from gramme.llm.engine import Engine
from gramme.models.load import build, random_source
from gramme.plan.hardware import this_machine
from gramme.plan.planner import plan
from gramme.request import Request, SamplingParams
from gramme.runtime.runner import Runner

pytestmark = pytest.mark.torch
MODEL = ModelConfig(family="llama", vocab_size=67, width=32, layers=1, heads=4, kv_heads=2, head_dim=16, ff_width=48,
                    norm_eps=1e-5, max_positions=64, windows=(20,))
SHARED = list(range(2, 12))
PROMPTS = [[*SHARED, 5], [3, 1, 4], [*SHARED, 9, 2, 6]]


def engine(name, **options):
    config = EngineConfig(backend=name, dtype="float32", kv_cache_dtype="float32", page_size=4, kv_tokens=96,
                          max_num_seqs=2, max_num_batched_tokens=8, max_model_len=32, **options)
    decided, kernels = plan(MODEL, config, machine(name, this_machine())), backend(name)
    decoder = build(MODEL, random_source(MODEL, 5), kernels, "float32", decided.max_model_len)
    return Engine(MODEL, decided, GenerationDefaults(), Runner(MODEL, decided, decoder, kernels))


def answers(e):
    """Greedy and drawn tokens by request."""
    out = {}
    for i, prompt in enumerate(PROMPTS):
        e.add(Request(id=str(i), prompt_token_ids=prompt, params=SamplingParams(
            max_tokens=4, temperature=0.9 * (i == 1), top_k=9, top_p=0.9, seed=7, ignore_eos=True)))
    while e.busy:
        for update in e.step():
            out.setdefault(update.id, []).extend(update.token_ids)
    return out


@pytest.mark.parametrize("captured", [False, True])
def test_tokens_are_the_references(captured):
    ours = engine("cuda")
    while captured and ours.idle():
        pass
    assert answers(ours) == answers(engine("reference"))
    graphs, stats = ours.runner.graphs, ours.stats()
    assert ours.plan.run_ahead and stats.prefix_hit_tokens > 0
    assert (graphs.captured, graphs.replayed > 0) == ((5, True) if captured else (0, False))  # 1, 2; 2, 4, 8 tokens
