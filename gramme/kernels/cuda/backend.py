"""The GPU's operations: Triton kernels with one device's settings, scratch memory and measured choices.

A layer of a captured step is eight launches: add_norm_kernel, matmul_kernel (q, k, v), place_kernel (head norms, rope,
K and V to their pages), attend_kernel, matmul_kernel (o), add_norm_kernel, matmul_kernel (gate, up, silu),
matmul_kernel (down); each leaves its result as the next one wants it, in 8 bits or in another order of columns. Steps
of more tokens may take the library's products, with a launch more here and there. Knows no model and no engine.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from gramme.config import ConfigError
from gramme.formats.grouped import Grouped
from gramme.kernels import eager
from gramme.kernels.cuda import norm
from gramme.kernels.cuda.act import Act, Quantised, parts, passing
from gramme.kernels.cuda.attention import attend_pages
from gramme.kernels.cuda.choices import Choices, path_of
from gramme.kernels.cuda.heads import Heads, head_norm, place, rope
from gramme.kernels.cuda.launch import INTERPRETED, calls
from gramme.kernels.cuda.matmul import dense_product, float_rows, tile_product
from gramme.kernels.cuda.packing import Packed, pack
from gramme.kernels.cuda.sample import sample
from gramme.kernels.ops import KV, Ops, Permuted, Step
from gramme.plan.gpu_memory import (
    LOCKS,
    SCRATCH_VALUES,
    SIZES,
    Tile,
    few_tile,
    fixed_tile,
    many_tile,
    power_of_2,
)

INTERPRETED_PROCESSORS = 4  # so that small grids are split as large ones are on a GPU
FEW_TOKENS = 32  # up to so many, large tiles are not tried
PINNED_BYTES = 1 << 20
PLAIN = ("int32", "int64", "float32", "float64", "bool", "uint32")
MANY_TOKENS = 2048  # above, the choice for this many is taken
MOST_SUMS = 8192  # of a few tokens' tile: with more, registers do not suffice
REPEATS = 5
FLUSH_BYTES = 256 << 20  # more than any card's cache holds


@dataclass(frozen=True)
class Settings:
    deterministic: bool = False  # every row's result is the same in any batch: one cut of each product and context
    half: bool = False  # float16 accumulators in products of many tokens, where activations are float16


class Kernels:
    def __init__(self, device: str, settings: Settings):
        cuda = device == "cuda"
        self.device, self.settings = device, settings
        self.processors = processors(device)
        self.scratch = torch.empty(self.processors * SCRATCH_VALUES, device=device)
        self.locks = torch.zeros(self.processors * LOCKS, dtype=torch.int32, device=device)
        F.linear(self.scratch[:16, None], self.scratch[:16, None])  # the library takes its memory now, not in a step
        versions = f"{torch.__version__} {triton.__version__} {settings}"
        self.choices = Choices(path_of(device_name(), versions), self._time if cuda else None)

    def ops(self) -> Ops:
        return replace(
            eager.EAGER, take=self.take, add_norm=norm.add_norm, head_norm=head_norm, quantise=norm.quantise,
            matmul=self.matmul, gate_up=self.gate_up, rope=rope, attend=self.attend, sample=sample,
        )

    def pack(self, w: object) -> Tensor | Packed:
        return pack(w, self.device) if isinstance(w, Grouped) else eager.TorchDevice(self.device).put(w)

    def take(self, packed: Tensor | Packed, ids: Tensor) -> Tensor:
        ids = torch.as_tensor(ids, device=self.device)
        if not isinstance(packed, Packed):
            return F.embedding(ids, packed)
        out = torch.empty(len(ids), packed.columns, dtype=torch.float16, device=self.device)
        float_rows(packed, out, ids)
        return out

    def matmul(self, x: Act, packed: Tensor | Packed, bias: Tensor | None) -> Tensor:
        return self._product(x, packed, bias, None)

    def gate_up(self, x: Act, packed: Tensor | Packed, bias: Tensor | None, act: str | Permuted) -> Act:
        return self._product(x, packed, bias, act)

    def attend(self, q: Heads | Tensor, k: Heads | Tensor, v: Tensor, kv: KV | None, step: Step, window: int | None,
               act: str | Permuted) -> Act:
        q, k = (a if isinstance(a, Heads) else Heads(a) for a in (q, k))
        if kv is None:
            return norm.quantise(eager.attend(q.made(), k.made(), v, None, step, window, "float"), act)
        output = passing(act, v.shape[2]) or ("float", None)
        out = attend_pages(place(q, k, v, kv, step.slots), kv, step, window, self.scratch, self.locks, self.processors,
                           self.settings.deterministic, *output)
        return norm.finished(out, act)

    def _product(self, x: Act, w: Tensor | Packed, bias: Tensor | None, act: str | Permuted | None) -> Act:
        """`act`: the form of silu(gate) * up; None: of a product that is no gate."""
        if isinstance(w, Tensor) and x.dtype != w.dtype:  # an embedding in integers answers in float16
            x = x.to(w.dtype)
        ways = self._ways(x, w, bias, act)
        return ways[self._way(x, w, act is not None, ways)]()

    def _ways(self, x: Act, w: Tensor | Packed, bias: Tensor | None,
              act: str | Permuted | None) -> dict[str, Callable[[], Act]]:
        """How this product can be had, the usual way first; in captured sizes each way is one launch."""
        tokens, k = parts(x)[0].shape
        n, bits = (w.rows, w.bits) if isinstance(w, Packed) else (len(w), 16)
        gated = act is not None
        half = self.settings.half and not isinstance(x, Quantised) and x.dtype == torch.float16

        def tiles(tile: Tile, half: bool = False) -> Callable[[], Act]:
            output = ("float", None) if act is None else passing(act, tile.n) or ("float", None)
            args = x, w, bias, gated, tile, half, self.scratch, self.locks, *output
            return (lambda: tile_product(*args)) if act is None else lambda: norm.finished(tile_product(*args), act)

        def whole(product: Callable[..., Tensor], *more: Tensor) -> Callable[[], Act]:
            made = lambda: product(x, w, bias, *more)
            return made if act is None else lambda: norm.swiglu(made(), act)

        if self.settings.deterministic:
            return {"fixed": tiles(fixed_tile(n, k, gated, self.processors))}
        cuts = {f"few {width} {waves}": few_tile(tokens, n, k, gated, self.processors, width, waves)
                for width in (64, 128) for waves in (2, 4)}
        few = {name: tiles(tile) for name, tile in cuts.items() if tile.m * tile.n * (1 + gated) <= MOST_SUMS}
        many = {"many": tiles(many_tile(gated), half)}
        if tokens <= SIZES[-1]:
            library = {"linear": whole(_linear)} if bits == 16 and bias is None and not gated else {}
            return library | few | (many if tokens > FEW_TOKENS else {})
        if bits == 16:
            return {"linear": whole(_linear)}
        return {"dense": whole(dense_product, self.scratch)} | many if bits == 4 else many

    def _way(self, x: Act, w: Tensor | Packed, gated: bool, ways: dict[str, Callable[[], Act]]) -> str:
        if len(ways) == 1:
            return next(iter(ways))
        bits, group = (w.bits, w.group) if isinstance(w, Packed) else (16, 1)
        n, k = (w.rows, w.columns) if isinstance(w, Packed) else w.shape
        shape = f"{min(power_of_2(len(parts(x)[0])), MANY_TOKENS)} x {n} x {k}"
        key = f"{bits} bits / {group}{' gated' * gated}, {shape}, {str(x.dtype).removeprefix('torch.')}"
        return self.choices.best(key, ways)

    def _time(self, run: Callable[[], object]) -> float:
        """Milliseconds on the device, the weight not in its cache. Filling that takes the device longer than it takes
        Python to start `run`, so the time between the events is the device's alone."""
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a product was captured before it was measured")
        run()
        try:
            other = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:  # all is taken by keys and values: smaller caches are filled by this, too
            other = self.scratch
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
        for began, ended in pairs:
            other.zero_()
            began.record()
            run()
            ended.record()
        torch.cuda.synchronize()
        return min(began.elapsed_time(ended) for began, ended in pairs)


def _linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    calls["linear"] += 1
    y = F.linear(x, w)
    return y if bias is None else y.add_(bias)


class CudaDevice(eager.TorchDevice):
    """The GPU; with `TRITON_INTERPRET=1` the CPU, on which Triton interprets the kernels: for tests."""

    def __init__(self, name: str):
        super().__init__(name)
        self._pool = torch.cuda.graph_pool_handle() if name == "cuda" else None

    def put(self, host: Any, into: Tensor | None = None) -> Tensor:
        """Small arrays travel without waiting for the steps before; torch keeps the pinned copy until then."""
        host = np.asarray(host)
        if self.name != "cuda" or host.nbytes > PINNED_BYTES or host.dtype.name not in PLAIN:
            return super().put(host, into)
        pinned = torch.from_numpy(np.ascontiguousarray(host)).pin_memory()
        return pinned.to("cuda", non_blocking=True) if into is None else into.copy_(pinned, non_blocking=True)

    def fetch(self, a: Tensor) -> Callable[[], np.ndarray]:
        if self.name != "cuda":
            return super().fetch(a)
        host = torch.empty(a.shape, dtype=a.dtype, pin_memory=True)
        host.copy_(a, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def wait() -> np.ndarray:
            arrived.synchronize()
            return self.get(host)

        return wait

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Runs, records a CUDA graph of what `run` starts, and runs that. All graphs share one memory pool, since they
        are never replayed side by side."""
        if self.name != "cuda":
            return super().capture(run)
        run()  # compiles and measures what has not been yet
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        graph.replay()
        return graph.replay


def processors(device: str) -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else INTERPRETED_PROCESSORS


def device_name() -> str:
    """As the driver says it."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter"


def where() -> str:
    """The torch device on which kernels run. Raises ConfigError where there is neither a GPU nor the interpreter."""
    if not torch.cuda.is_available() and not INTERPRETED:
        raise ConfigError("backend 'cuda' needs an NVIDIA GPU that PyTorch can use; it sees none")
    return "cpu" if INTERPRETED else "cuda"
