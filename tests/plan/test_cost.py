"""The counts of a step equal what is counted one token, one row, one layer at a time."""
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramme.config import matrix_bytes
from gramme.models.dummy import SHAPES
from gramme.plan import cost

MISTRAL = SHAPES["mistral-7b"]
TINY = replace(SHAPES["tiny"], windows=(None, 8, 24, 8))


def test_a_token_of_mistral_7b_by_hand():
    """Sizes from the paper's table (arXiv 2310.06825): width 4096, 32 layers, 8 of 32 heads, 14336, 32000."""
    w = cost.weights(MISTRAL, "bfloat16")
    layers = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    assert (w.layers, w.head, w.embed) == (2 * layers, 2 * 32000 * 4096, 2 * 32000 * 4096)
    one = cost.decode(MISTRAL, w, "float16", [2048])
    assert one.matmul_ops == 2 * (layers + 32000 * 4096)
    assert one.weight_bytes == 2 * layers + 2 * 32000 * 4096 + 4 * 65 * 4096 + 2 * 4096
    assert one.kv_bytes == 2049 * 128 * 1024
    assert (one.keys, one.kv_elements) == (32 * 2049 * 8, 32 * 2049 * 8 * 2 * 128)
    assert one.attention_ops == 32 * 4 * 4096 * 2048


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_parts_add_up_to_the_models_bytes(name, dtype):
    assert cost.weights(SHAPES[name], dtype).total == SHAPES[name].weight_bytes(dtype)


def test_tied_embeddings_are_read_as_the_head():
    m = replace(TINY, tied_embeddings=True)
    w = cost.weights(m, "int8")
    with_logits, without = (cost.step(m, w, "float16", [(0, 1)], n) for n in (1, 0))
    assert with_logits.weight_bytes - without.weight_bytes == w.embed == matrix_bytes(m.vocab_size, m.width, "int8")


rows = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=5)


@given(rows, st.integers(0, 5))
def test_attention_is_what_each_token_of_each_layer_sees(rows, outputs):
    pairs = sum(min(start + i + 1, TINY.window(layer) or 10**9)
                for layer in range(TINY.layers) for start, n in rows for i in range(n))
    made = cost.step(TINY, cost.weights(TINY, "float32"), "float32", rows, outputs)
    assert made.attention_ops == 4 * TINY.heads * TINY.head_dim * pairs


@given(rows)
def test_keys_and_values_are_read_once_for_each_row_and_layer(rows):
    read = written = 0
    for layer in range(TINY.layers):
        for start, n in rows:
            first = max(0, start + 1 - (TINY.window(layer) or 10**9))
            read += start + n - first
            written += n
    made = cost.step(TINY, cost.weights(TINY, "float32"), "float16", rows, 0)
    assert made.kv_bytes == (read + written) * 2 * TINY.kv_heads * TINY.head_dim * 2


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 199))
def test_chunks_do_the_operations_of_the_whole(tokens, chunk, cached):
    cached = min(cached, tokens - 1)
    w = cost.weights(TINY, "int4")
    whole, parts = (cost.prefill(TINY, w, "float16", tokens, size, cached) for size in (1000, chunk))
    assert sum(p.ops for p in parts) == sum(p.ops for p in whole)
    assert len(parts) == -(-(tokens - cached) // chunk)
    assert sum(p.weight_bytes for p in parts) >= sum(p.weight_bytes for p in whole)
