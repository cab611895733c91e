"""The memory of keys and values: one allocation for all layers, cut into pages. Who owns a page is for the core."""
from gramme.config import ModelConfig, Plan
from gramme.kernels.ops import KV, Device


def kv_cache(m: ModelConfig, plan: Plan, device: Device) -> list[KV]:
    """One KV of (P, Hk, S, Dh) arrays for each layer; page 0 is scratch."""
    shape = (2, m.layers, plan.pages, m.kv_heads, plan.page_size, m.head_dim)
    k, v = device.empty(shape, plan.kv_dtype)
    return [KV(k[i], v[i]) for i in range(m.layers)]
