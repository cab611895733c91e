"""The seam between models and backends: the data of one step and the operations on it.

Arrays are numpy (CPU) or torch (GPU, training); this file imports neither. There is one flat token axis and no batch
axis: row b owns tokens starts[b]:starts[b + 1]. Sizes: T tokens, B rows, H query heads, Hk KV heads, Dh head size,
D width, F feed-forward width, V vocabulary, P pages, S page size, N rows of logits.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

Array = Any


@dataclass(frozen=True)
class Step:
    """The arrays of one step, int32 on the device; the two bounds are host integers."""

    tokens: Array  # (T,)
    positions: Array  # (T,)
    slots: Array  # (T,) page * S + offset, where this token's K and V go
    starts: Array  # (B + 1,) row b owns tokens starts[b]:starts[b + 1]
    lengths: Array  # (B,) KV tokens that row b's last token sees, itself included
    pages: Array  # (B, Pmax) page table, padded with page 0, the scratch page that nobody owns
    outputs: Array  # (N,) token indices whose logits are wanted
    max_row: int  # tokens of the longest row
    max_length: int  # KV tokens of the longest context


class KV(NamedTuple):
    """One layer's pages. K is stored after rope. The scales are (P, Hk, S) float16 when k and v are int8, else None."""

    k: Array  # (P, Hk, S, Dh)
    v: Array  # (P, Hk, S, Dh)
    k_scale: Array | None = None
    v_scale: Array | None = None


class Quantised(NamedTuple):
    """Activations as integers: x[t, k] is about scales[t, k // G] * values[t, k], a group's largest value being 127.

    With a = max |x| of a group: scale = a * (1 / 127), value = round(x * (127 / a)), halves to even, all in float32; a
    group of zeros has scale 0. `sums` serves the weight's offsets: it is scale * sum(values), in float32.
    """

    values: Array  # (T, K) int8
    scales: Array  # (T, K / G) float32
    sums: Array  # (T, K / G) float32


class Permuted(NamedTuple):
    """The form `act` of x[:, order]: what a weight wants whose columns lie in another order than its input's."""

    act: str
    order: Array  # (K,) int32
    places: Array  # (K,) int32, its inverse: column k of x stands at places[k], for kernels that write in passing


class Edits(NamedTuple):
    """Changes to single logits, applied in this order: x += bias; x = x / r if x > 0 else x * r; x -= penalty."""

    rows: Array  # (E,) int32, none below the one before it
    tokens: Array  # (E,) int32; a (row, token) pair stands at most once
    bias: Array  # (E,) float32
    repetition: Array  # (E,) float32
    penalty: Array  # (E,) float32


@dataclass(frozen=True)
class Sampling:
    """How each of N rows chooses its token. Arrays are on the device."""

    temperature: Array  # (N,) float32; 0: the most probable token, the lowest id among equals
    top_p: Array  # (N,) float32; 1: off
    min_p: Array  # (N,) float32; 0: off
    top_k: Array  # (N,) int32; 0: off
    u: Array  # (N,) float64 in [0, 1), drawn by the host
    edits: Edits | None = None
    mask: Array | None = None  # (N, ceil(V / 32)) uint32: bit t % 32 of word t // 32 says that token t is allowed
    processed: Array | None = None  # (N,) bool: report log-probabilities after edits and temperature
    top: int = 0  # how many of the most probable tokens to report for each row
    logprobs: bool = False  # whether any row wants log-probabilities


class Sampled(NamedTuple):
    """What was chosen. `tokens` is -1 where a row's logits were not finite or nothing was allowed."""

    tokens: Array  # (N,) int32
    logprobs: Array | None = None  # (N,) float32, of the chosen token
    ranks: Array | None = None  # (N,) int32, 1 = most probable
    top_ids: Array | None = None  # (N, top) int32, by falling log-probability, then id
    top_logprobs: Array | None = None  # (N, top) float32


@dataclass(frozen=True)
class Ops:
    """The operations of a decoder. All return new arrays; `attend` alone writes, into kv.

    `Act` is what goes into a matmul: an array, or `Quantised` for kernels that multiply integers. What comes before a
    matmul makes it, so that a kernel can do so in passing. It is never sliced; rows are chosen before the last norm.
    `packed` is a weight as laid out for this backend, `act` the form in which it wants its input: "float", or "int8/G"
    with G a divisor of the weight's group, 128 or 32 where it can be; or `Permuted`, one of these in another order of
    columns.
    """

    take: Callable  # packed or array (V, K), ids (T,) -> (T, K)
    add_norm: Callable  # x (T, D), r (T, D) | None, gain (D,), eps, act -> Act of rms_norm(x + r), x + r
    head_norm: Callable  # x (T, H, Dh), gain (Dh,), eps -> same shape
    quantise: Callable  # x (T, K), act -> Act; the identity for "float"; for products outside a decoder
    matmul: Callable  # Act, packed (N, K), bias (N,) | None -> (T, N)
    gate_up: Callable  # Act, packed (2F, D), bias (2F,) | None, act -> Act of silu(gate) * up
    rope: Callable  # x (T, H, Dh), table (Lmax, Dh) = cos | sin halves, positions (T,) -> same shape
    attend: Callable  # q (T, H, Dh), k, v (T, Hk, Dh), kv | None, step, window | None, act -> Act of (T, H Dh)
    sample: Callable  # logits (N, V), Sampling -> Sampled


class Device(Protocol):
    """The only other door to numpy or torch: what is not an operation on a step."""

    name: str
    out_of_memory: type[BaseException]

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array: ...
    def put(self, host: Any, into: Array | None = None) -> Array: ...
    def get(self, a: Array) -> Any: ...  # to numpy; waits
    def fetch(self, a: Array) -> Callable[[], Any]: ...  # sends it on its way to the host; the call waits for it alone
    def capture(self, run: Callable[[], None]) -> Callable[[], None]: ...  # runs it; the result does so again
    def share(self, nbytes: int) -> None: ...  # memory for the results inside all that is captured, one at a time
    def hold(self, nbytes: int) -> None: ...  # takes memory for the results of operations, so that it is there later
    def memory(self) -> tuple[int, int]: ...  # free, total bytes
