"""How long a step takes on CPU kernels whose speeds were measured on this machine. Knows no engine and no clock.

Why products are measured at several numbers of tokens: a strip of weights is multiplied by a tile of tokens while it
comes from memory, so the first tile is hidden behind the reading; every further one reads the strip from a cache and
adds its own time. How many tokens a tile has, and what is left over, depends on form and instruction set.
"""
from collections.abc import Mapping
from itertools import pairwise, product

from gramme.plan.cost import MOST_4_BITS, Product, Work
from gramme.plan.hardware import Hardware

TOKENS = (1, 4, 8, 16, 32, 64, 512)  # of the products that are measured; from the last one on, time grows in proportion
BYTES = {"int4": 0.5625, "int8": 1.0625, "bfloat16": 2.0}  # of an element in the matrices that are measured
MOST_BYTES = {"int4": MOST_4_BITS, "int8": 1.5}  # of an element, with its part of scales and zero points
MASKED_KEYS = 64
IN_CACHE = 0.75  # of the last level: weights of so many bytes stay there from step to step

# Names of rates, all of them things a second: operations of a prompt's attention, elements of keys and values that
# tokens read, elements of the residual stream through all that stands between a layer's products, steps, rows of a
# step, layers by one call and operation by operation, rows in a layer.
ATTENTION, KEYS, STREAM, STEP, ROW = "attention", "keys", "stream", "step", "row"
LAYER, CALLED_LAYER, LAYER_ROW = "layer", "called layer", "layer row"


def product_name(form: str, tokens: int, cached: bool) -> str:
    """Of a rate in operations a second."""
    return f"{form} x{tokens}" + (" cached" if cached else "")


NAMES = frozenset(product_name(*key) for key in product(BYTES, TOKENS, (False, True))) | {
    ATTENTION, KEYS, STREAM, STEP, ROW, LAYER, CALLED_LAYER, LAYER_ROW}


def known(hardware: Hardware) -> bool:
    """Whether a step can be predicted by what was measured."""
    return hardware.rates.keys() >= NAMES


def form(elements: float, nbytes: float) -> str:
    """The measured form whose elements have about as many bytes."""
    return next((name for name, most in MOST_BYTES.items() if nbytes <= most * elements), "bfloat16")


def work_s(work: Work, hardware: Hardware) -> float:
    """Seconds of bytes and operations."""
    rates = hardware.rates
    cached = sum(p.nbytes for p in work.products) <= IN_CACHE * hardware.cache_bytes
    products = sum(_product_s(p, cached, rates) for p in work.products)
    # A tile of attention has room for several queries: a token's few cost as much as a prompt's many.
    attention = max(work.kv_elements / rates[KEYS], (work.attention_ops + masked_ops(work)) / rates[ATTENTION])
    return products + work.other_bytes / rates["bandwidth"] + attention + work.stream / rates[STREAM]


def line(hardware: Hardware, elements: float, nbytes: float) -> tuple[float, float]:
    """Seconds of one of so many elements of weights, once a step and for each token: the straight line through what was
    measured at the fewest and the most tokens."""
    name, cached = form(elements, nbytes), nbytes <= IN_CACHE * hardware.cache_bytes
    least, most = TOKENS[0], TOKENS[-1]
    a, b = (2 * n / hardware.rates[product_name(name, n, cached)] for n in (least, most))
    each = (b - a) / (most - least)
    return a - each * least, each


def masked_ops(work: Work) -> float:
    """Of attention, on keys that a token does not see but its tile or its block of keys holds."""
    return 4.0 * MASKED_KEYS * work.queries


def host_s(rows: int, layers: int, called: bool, rates: Mapping[str, float]) -> float:
    """Seconds of a step that neither bytes nor operations explain; `called`: operation by operation."""
    each = 1 / rates[CALLED_LAYER if called else LAYER] + rows / rates[LAYER_ROW]
    return 1 / rates[STEP] + rows / rates[ROW] + layers * each


def _product_s(p: Product, cached: bool, rates: Mapping[str, float]) -> float:
    """Between the measured numbers of tokens on straight lines."""
    name = form(p.elements, p.nbytes)
    each = {n: 2 * n / rates[product_name(name, n, cached)] for n in TOKENS}  # seconds of an element
    if p.tokens >= TOKENS[-1]:
        seconds = each[TOKENS[-1]] * p.tokens / TOKENS[-1]
    else:
        a, b = next((a, b) for a, b in pairwise(TOKENS) if a <= p.tokens < b)
        seconds = each[a] + (each[b] - each[a]) * (p.tokens - a) / (b - a)
    more_bytes = p.nbytes - BYTES[name] * p.elements  # groups of another size, zero points
    return seconds * p.elements + more_bytes * each[1] / BYTES[name]
