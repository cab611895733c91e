"""The memory of keys and values: one allocation for all layers, cut into pages. Who owns a page is for the core."""
from gramme.config import ModelConfig, Plan
from gramme.kernels.ops import KV, Device


def kv_cache(m: ModelConfig, plan: Plan, device: Device) -> list[KV]:
    """One KV of (P, Hk, S, Dh) arrays for each layer; page 0 is scratch. int8 has a scale for each token and head."""
    shape = (2, m.layers, plan.pages, m.kv_heads, plan.page_size, m.head_dim)
    k, v = device.empty(shape, plan.kv_dtype)
    if plan.kv_dtype != "int8":
        return [KV(k[i], v[i]) for i in range(m.layers)]
    k_scale, v_scale = device.empty(shape[:-1], "float16")
    return [KV(k[i], v[i], k_scale[i], v_scale[i]) for i in range(m.layers)]
