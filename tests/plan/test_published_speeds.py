"""Published speeds of other engines on consumer cards lie below the planner's ceiling, and not far below."""
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import pytest

from gramme.models.dummy import SHAPES
from gramme.plan import cost, roofline
from gramme.plan.cost import Weights
from gramme.plan.gpus import gpu
from gramme.plan.hardware import card
from gramme.plan.roofline import Setup

MISTRAL, LLAMA3, QWEN3 = SHAPES["mistral-7b"], SHAPES["llama3-8b"], SHAPES["qwen3-8b"]
LLAMA2 = replace(MISTRAL, kv_heads=32, ff_width=11008, max_positions=4096)


class Row(NamedTuple):
    engine: str
    card: str
    model: object
    bits: float  # a weight of the layers
    head_bits: float
    context: int  # tokens, in the middle of the answer
    rate: float  # tokens/s, one sequence
    source: str


ROWS = [
    Row("calm gf4", "RTX 4090", MISTRAL, 4, 4, 16, 237, "zeux/calm README"),
    Row("calm gf4", "RTX 4090", MISTRAL, 4, 4, 4000, 203, "zeux/calm README"),
    Row("calm fp8", "RTX 4090", MISTRAL, 8, 8, 16, 127, "zeux/calm README"),
    Row("calm fp16", "RTX 4090", MISTRAL, 16, 16, 16, 65, "zeux/calm README"),
    Row("calm gf4", "RTX 4090", LLAMA3, 4, 4, 16, 225, "zeux/calm README"),
    Row("calm gf4", "RTX 4090", LLAMA2, 4, 4, 16, 246, "zeux/calm README"),
    Row("calm gf4", "RTX 4090", LLAMA2, 4, 4, 4000, 158, "zeux/calm README"),
    Row("ExLlamaV2 EXL2", "RTX 4090", LLAMA2, 4, 6, 64, 211, "turboderp-org/exllamav2 README"),
    Row("ExLlamaV2 EXL2", "RTX 3090 Ti", LLAMA2, 4, 6, 64, 185, "turboderp-org/exllamav2 README"),
    Row("ExLlamaV2 GPTQ", "RTX 4090", LLAMA2, 4.16, 16, 64, 205, "turboderp-org/exllamav2 README"),
    Row("ExLlamaV2 GPTQ", "RTX 3090 Ti", LLAMA2, 4.16, 16, 64, 181, "turboderp-org/exllamav2 README"),
    Row("TurboMind W4", "RTX 4090", LLAMA2, 4.16, 16, 256, 206.4, "InternLM/lmdeploy w4a16.md"),
    Row("MLC q4f16_1", "RTX 4090", LLAMA2, 4.5, 4.5, 128, 204.8, "mlc-ai/llm-perf-bench README"),
    Row("MLC q4f16_1", "RTX 3090 Ti", LLAMA2, 4.5, 4.5, 128, 186.7, "mlc-ai/llm-perf-bench README"),
    Row("TinyChat W4", "RTX 4090", LLAMA2, 4.16, 16, 64, 189, "mit-han-lab/llm-awq tinychat README"),
    Row("TinyChat W4", "RTX 4090", LLAMA3, 4.16, 16, 64, 156, "mit-han-lab/llm-awq tinychat README"),
    Row("AutoAWQ", "RTX 4090", MISTRAL, 4.16, 16, 64, 184.8, "casper-hansen/AutoAWQ PR 365"),
    Row("TensorRT-LLM AWQ", "RTX 4090", MISTRAL, 4.16, 16, 2300, 170.6, "janhq/jan, benchmarking post"),
    Row("TensorRT-LLM AWQ", "RTX 3090", MISTRAL, 4.16, 16, 2300, 144.2, "janhq/jan, benchmarking post"),
    Row("llama.cpp Q4_K_M", "RTX 4090", MISTRAL, 4.85, 6.56, 2300, 100.4, "janhq/jan, benchmarking post"),
    Row("llama.cpp Q4_K_M", "RTX 3090", MISTRAL, 4.85, 6.56, 2300, 88.7, "janhq/jan, benchmarking post"),
    Row("llama.cpp Q4_0", "RTX 4090", LLAMA2, 4.5, 6.56, 64, 146.8, "ggml-org/llama.cpp PR 6766"),
    Row("llama.cpp Q4_0", "RTX 3090", LLAMA2, 4.5, 6.56, 64, 128.3, "ggml-org/llama.cpp PR 6766"),
    Row("llama.cpp Q4_K_M", "RTX 5090", QWEN3, 4.85, 6.56, 64, 221.7, "CambrianTech/continuum PR 1627"),
    Row("llama.cpp Q4_K_M", "RTX 3080", LLAMA3, 4.85, 6.56, 64, 111.9, "dmatora/LLM-inference-speed-benchmarks 12"),
    Row("HQQ", "RTX 4090", LLAMA3, 4.25, 16, 64, 158, "mobiusml/hqq Readme"),
]


def ceiling(row):
    """Tokens/s at the planner's roofline."""
    m = row.model
    form = Weights(int(cost.layer_elements(m) * row.bits / 8), 0, int(m.vocab_size * m.width * row.head_bits / 8), 0)
    s = Setup(hardware=card(gpu(row.card)), backend="cuda", dtype="int4", layers=m.layers)
    return 1 / roofline.bottleneck(cost.decode(m, form, "float16", [row.context]), s).floor_s


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.engine}, {r.card}, {r.rate}")
def test_a_published_speed_is_below_the_ceiling_and_above_two_fifths_of_it(row):
    assert 0.4 <= row.rate / ceiling(row) <= 1.0


def test_the_median_share_is_what_the_planner_expects():
    middle = median(row.rate / ceiling(row) for row in ROWS)
    assert 0.6 <= middle <= 0.85
    assert abs(middle - roofline.SHARES["cuda"]["bandwidth"]) < 0.1


def test_cards_rank_as_published():
    pairs = [(a, b) for a in ROWS for b in ROWS
             if a[:1] + a[2:6] == b[:1] + b[2:6] and a.card != b.card and a.rate > b.rate]
    assert len(pairs) >= 5
    assert all(ceiling(a) >= ceiling(b) for a, b in pairs)  # a 3090 Ti reads as fast as a 4090
    assert ceiling(ROWS[0]) < ceiling(ROWS[0]._replace(card="RTX 5090"))
