"""Where the bytes of a plan go, line by line; bounds for what a step allocates. Knows no machine.

Lines for weights, keys and values are exact (tests/laws/test_memory.py); those for a step are what its largest mix of
rows can need in the backend at hand, so that no mix of requests needs more.
"""
from gramme.config import INTEGER_BITS, Ledger, ModelConfig, Plan, matrix_bytes
from gramme.plan import gpu_memory
from gramme.plan.cost import Weights

MOST_LOGIT_ROWS = 256
LOGIT_BYTES = 36  # for each logit: itself, its copies while choosing, its rank where log-probabilities are asked
HOST_LOGIT_BYTES = 20  # the same where numpy chooses: itself, as floats, edited, masked; the rest is made row by row
LOGIT_SHARE, LEAST_LOGITS_BYTES = 1 / 16, 4 << 20  # logits take this part of the weights' size, at least so much
TOKEN_RECORD_BYTES = 128  # a token that the scheduler knows: its number, its part of a page's record
SEQUENCE_RECORD_BYTES = 16 << 10
HELD_TOKEN_BYTES = 16  # of each sequence, whoever shares its pages: its number; again with a count where penalised
CAPTURED_TOKENS = 64  # of a step that a CPU captures: longer ones are chunks of prompts, where calls cost little
CAPTURED_SHAPES = 32
CAPTURED_LENGTHS = 512  # tokens: contexts are bucketed by so many
LAYER_CALLS_BYTES = 4 << 10  # the recorded calls of a layer, 13 of 224 bytes, and the arrays that they need
ROOM_SLACK = 1.5  # of what lives at once: parts of several sizes leave gaps; enough for each of 150 random models
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
    graphs = 0
    if backend == "cpu":
        inputs = 4 * sum(captured_inputs(rows, chunk, length, page_size).values())
        graphs = captured_bytes(m, w, chunk, length, threads) + inputs + CAPTURED_SHAPES * m.layers * LAYER_CALLS_BYTES
    if gpu:
        graphs = gpu_memory.graph_bytes(m, _itemsize(dtype), -(-length // page_size), rows, chunk)
    return Ledger(
        weights=w.total, kv=pages * page_size * m.kv_token_bytes(kv_dtype), tables=4 * length * m.head_dim,
        activations=activation_bytes(m, backend, dtype, chunk),
        attention=gpu_memory.scratch_bytes(processors) if gpu else attention_bytes(m, backend, chunk, length, threads),
        logits=logit_rows(m, w.total) * m.vocab_size * (
            LOGIT_BYTES if backend in ("cuda", "eager") else HOST_LOGIT_BYTES),
        records=0 if gpu else pages * page_size * TOKEN_RECORD_BYTES + rows * (
            SEQUENCE_RECORD_BYTES + length * HELD_TOKEN_BYTES),
        graphs=graphs, driver=DRIVER_BYTES if gpu else 0,
        budget=budget,
    )


def results_bytes(p: Plan) -> int:
    """Of the operations of the largest step; what the CPU kernels' threads work in has its own place."""
    return p.ledger.activations + p.ledger.attention - (p.threads * SCRATCH_BYTES if p.backend == "cpu" else 0)


def captured_bytes(m: ModelConfig, w: Weights, chunk: int, length: int, threads: int) -> int:
    """The arrays inside the largest step that a CPU captures: all captured steps have theirs in one memory."""
    tokens = min(chunk, CAPTURED_TOKENS)
    arrays = activation_bytes(m, "cpu", "float32", tokens) + partial_bytes(m, tokens, length, threads)
    return arrays + 4 * min(tokens, logit_rows(m, w.total)) * m.vocab_size


def captured_inputs(rows: int, chunk: int, length: int, page_size: int) -> dict[str, int]:
    """Integers of each input of the largest step that is captured, likewise."""
    tokens = min(chunk, CAPTURED_TOKENS)
    rows, buckets = min(tokens, rows), -(-length // CAPTURED_LENGTHS)
    width = buckets * CAPTURED_LENGTHS // min(page_size, CAPTURED_LENGTHS)
    return {"tokens": tokens, "positions": tokens, "slots": tokens, "starts": rows + 1, "lengths": rows,
            "pages": rows * width, "outputs": tokens}


def activation_bytes(m: ModelConfig, backend: str, dtype: str, tokens: int) -> int:
    """Arrays that live at once while a layer runs `tokens` tokens."""
    if backend == "cuda":
        return gpu_memory.activation_bytes(m, tokens, _itemsize(dtype), dense=tokens > gpu_memory.SIZES[-1])
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    if backend == "cpu":  # a layer's caller holds x and r; two of its own are beside them all the time
        attention = 5 * m.width + (3 + m.qk_norm) * (q + kv)
        return int(ROOM_SLACK * 4 * tokens * max(attention, 7 * m.width, 6 * m.width + m.ff_width))
    attention = 4 * m.width + 2 * (q + kv) + kv + q  # floats a token: stream, norm, q, k, v before and after rope
    floats = max(attention, 3 * m.width + 6 * m.ff_width)
    if dtype in INTEGER_BITS:  # exact products, group by group, in float64
        floats += 16 * m.ff_width
        return 4 * tokens * floats + _unpacked_bytes(m, backend)
    return 4 * tokens * floats


def attention_bytes(m: ModelConfig, backend: str, tokens: int, length: int, threads: int) -> int:
    """Scores of the longest row, where the backend keeps them, and keys and values taken out of their pages."""
    if backend == "cpu":
        return partial_bytes(m, tokens, length, threads) + threads * SCRATCH_BYTES
    gathered = 6 * 4 * length * m.kv_heads * m.head_dim
    return tokens * length * (3 * 4 * m.heads + 11) + gathered


def partial_bytes(m: ModelConfig, tokens: int, length: int, threads: int) -> int:
    """Of the spans of a context whose keys and values are streamed: partial sums."""
    heads = min(tokens * m.heads, SPAN_HEADS * max(threads, 4))
    return 4 * heads * (m.head_dim + 2) * -(-length // SPAN_TOKENS)


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
