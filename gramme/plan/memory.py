"""Where the bytes of a plan go, line by line; bounds for what a step allocates. Knows no machine.

Lines for weights, keys and values are exact (tests/laws/test_memory.py); those for a step are what its largest mix of
rows can need in the backend at hand, so that no mix of requests needs more.
"""
from gramme.config import INTEGER_BITS, Ledger, ModelConfig, matrix_bytes
from gramme.plan import gpu_memory
from gramme.plan.cost import Weights

MOST_LOGIT_ROWS = 256
LOGIT_BYTES = 36  # for each logit: itself, its copies while choosing, its rank where log-probabilities are asked
LOGIT_SHARE, LEAST_LOGITS_BYTES = 1 / 16, 4 << 20  # logits take this part of the weights' size, at least so much
TOKEN_RECORD_BYTES = 128  # a token that the scheduler knows: an integer in two lists, its part of a page's record
SEQUENCE_RECORD_BYTES = 16 << 10
GRAPH_SHARE, LEAST_GRAPH_BYTES = 1 / 24, 2 << 20  # likewise, for the buffers of steps that are captured
ARENA_SLACK = 1.25 * 9 / 8  # blocks come in sizes an eighth apart, and a quarter more than is used is kept
SCRATCH_BYTES = 512 << 10  # of a thread of the CPU kernels
SPAN_TOKENS, SPAN_HEADS = 512, 8 * 32  # contexts are cut so where fewer heads of tokens than so many a thread are there
DRIVER_BYTES = 600 << 20  # CUDA context, kernels and library handles


def logit_rows(m: ModelConfig, weight_bytes: int) -> int:
    """Rows of logits that are held at once."""
    room = max(LEAST_LOGITS_BYTES, int(weight_bytes * LOGIT_SHARE))
    return max(1, min(MOST_LOGIT_ROWS, room // (LOGIT_BYTES * m.vocab_size)))


def ledger(m: ModelConfig, w: Weights, *, backend: str, dtype: str, kv_dtype: str, pages: int, page_size: int,
           rows: int, chunk: int, length: int, threads: int, processors: int, budget: int) -> Ledger:
    gpu = backend == "cuda"
    graphs = graph_bytes(w.total) if backend == "cpu" else 0
    if gpu:
        graphs = gpu_memory.graph_bytes(m, _itemsize(dtype), -(-length // page_size), rows, chunk)
    return Ledger(
        weights=w.total, kv=pages * page_size * m.kv_token_bytes(kv_dtype), tables=4 * length * m.head_dim,
        activations=activation_bytes(m, backend, dtype, chunk),
        attention=gpu_memory.scratch_bytes(processors) if gpu else attention_bytes(m, backend, chunk, length, threads),
        logits=logit_rows(m, w.total) * m.vocab_size * LOGIT_BYTES,
        records=0 if gpu else pages * page_size * TOKEN_RECORD_BYTES + rows * SEQUENCE_RECORD_BYTES,
        graphs=graphs, driver=DRIVER_BYTES if gpu else 0,
        budget=budget,
    )


def graph_bytes(weight_bytes: int) -> int:
    """What the buffers of all captured steps may take."""
    return max(LEAST_GRAPH_BYTES, int(weight_bytes * GRAPH_SHARE))


def captured_bytes(m: ModelConfig, tokens: int, outputs: int) -> int:
    """The buffers of one captured step."""
    return activation_bytes(m, "cpu", "float32", tokens) + 4 * outputs * m.vocab_size


def activation_bytes(m: ModelConfig, backend: str, dtype: str, tokens: int) -> int:
    """Arrays that live at once while a layer runs `tokens` tokens."""
    if backend == "cuda":
        return gpu_memory.activation_bytes(m, tokens, _itemsize(dtype), dense=tokens > gpu_memory.SIZES[-1])
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    attention = 4 * m.width + 2 * (q + kv) + kv + q  # floats a token: stream, norm, q, k, v before and after rope
    mlp = 3 * m.width + (1 if backend == "cpu" else 6) * m.ff_width
    floats = max(attention, mlp)
    if backend == "cpu":
        return int(ARENA_SLACK * 4 * tokens * floats)
    if dtype in INTEGER_BITS:  # exact products, group by group, in float64
        floats += 16 * m.ff_width
        return 4 * tokens * floats + _unpacked_bytes(m, backend)
    return 4 * tokens * floats


def attention_bytes(m: ModelConfig, backend: str, tokens: int, length: int, threads: int) -> int:
    """Scores of the longest row, where the backend keeps them, and keys and values taken out of their pages."""
    if backend == "cpu":  # streamed; partial sums of the spans of a context
        heads = min(tokens * m.heads, SPAN_HEADS * max(threads, 4))
        return 4 * heads * (m.head_dim + 2) * -(-length // SPAN_TOKENS) + threads * SCRATCH_BYTES
    gathered = 6 * 4 * length * m.kv_heads * m.head_dim
    return tokens * length * (3 * 4 * m.heads + 11) + gathered


def loading_bytes(m: ModelConfig) -> int:
    """The largest matrix as it is read, put together and laid out; keys and values are not there yet."""
    largest = max(rows * columns for rows, columns, _ in m.matrices())
    return 10 * largest


def _itemsize(dtype: str) -> int:
    """Bytes of an activation on a GPU."""
    return 4 if dtype == "float32" else 2


def _unpacked_bytes(m: ModelConfig, backend: str) -> int:
    rows, columns = 2 * m.ff_width, m.width
    head = matrix_bytes(m.vocab_size, m.width, "float32")
    if backend == "eager":  # a matrix is widened whole
        return max(3 * 4 * rows * columns, 3 * head)
    return 8 * max(rows, m.vocab_size) * (128 + columns // 16)
