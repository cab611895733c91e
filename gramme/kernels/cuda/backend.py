"""The GPU's operations: Triton kernels with one device's settings, scratch memory and measured choices.

A layer with 4-bit weights and up to 64 tokens is eight launches: add_norm_kernel, matmul_kernel (q, k, v), place_kernel
(head norms, rope, K and V to their pages), attend_kernel, matmul_kernel (o), add_norm_kernel, matmul_kernel (gate, up,
silu), matmul_kernel (down). Float weights take the library's products and a swiglu_kernel, 8-bit ones two
quantise_kernels more. Knows no model and no engine.
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
from gramme.kernels.cuda.attention import attend_pages
from gramme.kernels.cuda.choices import Choices, path_of
from gramme.kernels.cuda.heads import Heads, head_norm, place, rope
from gramme.kernels.cuda.launch import INTERPRETED, calls
from gramme.kernels.cuda.matmul import dense_product, tile_product
from gramme.kernels.cuda.norm import Quantised
from gramme.kernels.cuda.packing import Packed, pack, unpack
from gramme.kernels.cuda.sample import sample
from gramme.kernels.ops import KV, Ops, Step
from gramme.plan.gpu_memory import LOCKS, MANY_TILE, SCRATCH_VALUES, few_tile, fixed_tile, power_of_2

INTERPRETED_PROCESSORS = 4  # so that small grids are split as large ones are on a GPU
FEW_TOKENS = 64
PINNED_BYTES = 1 << 20
PLAIN = ("int32", "int64", "float32", "float64", "bool", "uint32")
MANY_TOKENS = 2048  # above, the choice for this many is taken


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
        return unpack(packed, ids).half() if isinstance(packed, Packed) else F.embedding(ids, packed)

    def matmul(self, x: Tensor | Quantised, packed: Tensor | Packed, bias: Tensor | None) -> Tensor:
        ways = self._ways(x, packed, bias, False)
        return ways[self._way(x, packed, False, ways)]()

    def gate_up(self, x: Tensor | Quantised, packed: Tensor | Packed, bias: Tensor | None,
                act: str) -> Tensor | Quantised:
        ways = self._ways(x, packed, bias, True)
        way = self._way(x, packed, True, ways)
        y = ways[way]()
        return norm.swiglu(y, act) if way in ("linear", "dense") else norm.quantise(y, act)

    def attend(self, q: Heads | Tensor, k: Heads | Tensor, v: Tensor, kv: KV | None, step: Step,
               window: int | None) -> Tensor:
        q, k = (a if isinstance(a, Heads) else Heads(a) for a in (q, k))
        if kv is None:
            return eager.attend(q.made(), k.made(), v, None, step, window)
        return attend_pages(place(q, k, v, kv, step.slots), kv, step, window, self.scratch, self.locks, self.processors,
                            self.settings.deterministic)

    def _ways(self, x: Tensor | Quantised, w: Tensor | Packed, bias: Tensor | None,
              gated: bool) -> dict[str, Callable[[], Tensor]]:
        """How this product can be had, the usual way first. "linear" and "dense" leave silu(gate) * up to be done."""
        tokens, k = x[0].shape if isinstance(x, Quantised) else x.shape
        n, bits = (w.rows, w.bits) if isinstance(w, Packed) else (len(w), 16)
        half = self.settings.half and not isinstance(x, Quantised) and x.dtype == torch.float16
        product = lambda tile, half=False: lambda: tile_product(x, w, bias, gated, tile, half, self.scratch, self.locks)
        if self.settings.deterministic:
            return {"fixed": product(fixed_tile(n, k, gated, self.processors))}
        if bits == 16:
            return {"linear": lambda: _linear(x, w, bias)}
        few = {f"few {width} {waves}": product(few_tile(tokens, n, k, gated, self.processors, width, waves))
               for width in (64, 128) for waves in (2, 4)}
        many = {"many": product(MANY_TILE, half)}
        dense = {"dense": lambda: dense_product(x, w, bias, self.scratch)} if bits == 4 else {}
        if tokens <= FEW_TOKENS:
            return few if tokens < FEW_TOKENS // 2 else few | many
        return many | dense if tokens < 512 else dense | many

    def _way(self, x: Tensor | Quantised, w: Tensor | Packed, gated: bool,
             ways: dict[str, Callable[[], Tensor]]) -> str:
        if len(ways) == 1:
            return next(iter(ways))
        values = x[0] if isinstance(x, Quantised) else x
        shape = f"{min(power_of_2(len(values)), MANY_TOKENS)} x {w.rows} x {w.columns}"
        key = f"{w.bits} bits / {w.group}{' gated' * gated}, {shape}, {str(values.dtype).removeprefix('torch.')}"
        return self.choices.best(key, ways)

    def _time(self, run: Callable[[], object]) -> float:
        """Milliseconds on the device, the weight not in its cache."""
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a product was captured before it was measured")
        run()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.scratch.zero_()
        began.record()
        run()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended)


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

    def memory(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info() if self.name == "cuda" else super().memory()


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
