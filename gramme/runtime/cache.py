"""The memory of keys and values: one allocation for all layers, cut into pages. Who owns a page is for the core."""
import ctypes
import sys

from gramme.config import ModelConfig, Plan
from gramme.kernels.ops import KV, Device


def give_back_freed() -> None:
    """What loading has freed goes back to the system; glibc would keep it, 178 MB after a model of 1 G parameters."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def kv_cache(m: ModelConfig, plan: Plan, device: Device) -> list[KV]:
    """One KV of (P, Hk, S, Dh) arrays for each layer; page 0 is scratch. int8 has a scale for each token and head."""
    shape = (2, m.layers, plan.pages, m.kv_heads, plan.page_size, m.head_dim)
    k, v = both = device.empty(shape, plan.kv_dtype)
    both[...] = 0  # touched: memory that was promised and is not there shows now, not in the middle of an answer
    if plan.kv_dtype != "int8":
        return [KV(k[i], v[i]) for i in range(m.layers)]
    k_scale, v_scale = device.empty(shape[:-1], "float16")
    return [KV(k[i], v[i], k_scale[i], v_scale[i]) for i in range(m.layers)]
