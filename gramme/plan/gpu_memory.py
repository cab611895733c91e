"""What the GPU backend allocates besides weights and pages, as pure functions of shapes; and the grids that decide it.

Knows no torch: the kernels take their block sizes from here, so that what is predicted is what is allocated.
"""
from dataclasses import dataclass

from gramme.config import ModelConfig

BLOCK_N = 64  # keys of an attention tile
MAX_SPLITS = 32  # programs that share one context, or the columns of one tile of a product
LEAST_TILES = 4  # attention tiles of a split: less does not pay for merging
FIXED_TILES = 8  # the same where results must not depend on the batch
WAVES = 2  # programs for each multiprocessor that a split product aims at
MOST_WAVES = 4  # the most that is tried; what attention aims at, whose programs have less to read at a time
SCRATCH_VALUES = MOST_WAVES * 64 * 256  # float32 values for each multiprocessor: the parts that are yet to be merged
LOCKS = 8  # for each multiprocessor
SIZES = tuple(1 << i for i in range(9))  # tokens of captured steps, 1 to 256: longer ones are prefill chunks
ALLOCATION = 512  # bytes: torch's allocator hands out multiples


def scratch_bytes(processors: int) -> int:
    """The memory in which the programs of one kernel leave parts of a result for each other, and its locks."""
    return processors * (4 * SCRATCH_VALUES + 4 * LOCKS)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def attention_rows(group: int, max_row: int, fixed: bool) -> int:
    """Rows of an attention tile: (token, query head) pairs of one KV head with `group` query heads."""
    few = not fixed and max_row * group <= 16
    return max(16 if few else 64, power_of_2(group))


def attention_splits(units: int, unit_values: int, context: int, processors: int, fixed: bool) -> int:
    """Programs that share up to `context` keys of each of `units` (block, KV head) pairs; 1: none is shared.

    `unit_values` is what one program leaves for the last one. Where results must not depend on the batch, the parts
    are always the same and only whether they run side by side is chosen.
    """
    tiles = -(-context // BLOCK_N)
    most = min(SCRATCH_VALUES * processors // (units * unit_values), LOCKS * processors // units)
    if fixed:
        parts = -(-tiles // FIXED_TILES)
        return parts if parts <= most else 1
    return max(min(MOST_WAVES * processors // units, most, MAX_SPLITS, tiles // LEAST_TILES), 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """How a matrix product is cut: (m, n) results a program, `splits` programs that share the columns of each tile."""

    m: int
    n: int
    splits: int
    warps: int = 4
    stages: int = 3


def many_tile(gated: bool) -> Tile:
    """For the rate of products: sums of gate and up together are as many as those of a plain product."""
    return Tile(128, 64 if gated else 128, 1, warps=8, stages=2)


def few_tile(tokens: int, n: int, k: int, gated: bool, processors: int, width: int = 64, waves: int = WAVES) -> Tile:
    """For the time of reading the weight: as many splits as give each multiprocessor `waves` programs."""
    m = min(max(power_of_2(tokens), 16), 64)
    tiles = -(-tokens // m) * -(-(n // 2 if gated else n) // width)
    wide = width * (2 if gated else 1)
    return Tile(m, width, max(1, min(waves * processors // tiles, k // 256, MAX_SPLITS)),
                warps=4 if m * wide <= 4096 else 8, stages=4 if m == 16 and wide <= 128 else 3)


def fixed_tile(n: int, k: int, gated: bool, processors: int) -> Tile:
    """The one cut of a weight where results must not depend on the batch."""
    return few_tile(64, n, k, gated, processors)


def activation_bytes(m: ModelConfig, tokens: int, itemsize: int, dense: bool) -> int:
    """The most that a step's arrays take at one time, `dense` saying that gate and up are made before their product.

    A layer's caller holds its input and the residual. Attention runs beside them, their sum and its norm, and holds the
    projection, the rotated queries and its answer; the second norm comes while all of these but the last are there.
    """
    def size(width: int) -> int:
        return -(-tokens * width * itemsize // ALLOCATION) * ALLOCATION

    q, width = m.heads * m.head_dim, size(m.width)
    attention = size(q + 2 * m.kv_heads * m.head_dim) + size(q) + max(size(q), width)
    feed_forward = size(m.ff_width) + max(size(2 * m.ff_width) if dense else 0, width)
    return max(4 * width + attention, 7 * width, 5 * width + feed_forward)


def captured_sizes(rows: int, chunk: int) -> list[tuple[int, bool]]:
    """(tokens, whether all rows have one token) of every step that is captured where there are at most `rows` rows and
    `chunk` tokens; the smallest first. A step of one token has one row."""
    top = next((size for size in SIZES if size >= rows), SIZES[-1]), next((s for s in SIZES if s >= chunk), SIZES[-1])
    return [(size, single) for size in SIZES for single in (True, False)
            if size <= top[0 if single else 1] and (single or size > 1)]


def captured_inputs(size: int) -> int:
    """Integers of each input array of such a step, one more than its rows at most, on a boundary that kernels like."""
    return -(-(size + 1) // 32) * 32


def graph_bytes(m: ModelConfig, itemsize: int, pages: int, rows: int, chunk: int) -> int:
    """Of all captured steps: one memory for the arrays inside them, and each size's own inputs and hidden states.

    `pages` is the width of a page table.
    """
    sizes = [size for size, _ in captured_sizes(rows, chunk)]
    inputs = sum(4 * (size * pages + 5 * captured_inputs(size)) for size in sizes)
    return activation_bytes(m, sizes[-1], itemsize, False) + sum(sizes) * 2 * m.width * itemsize + inputs
