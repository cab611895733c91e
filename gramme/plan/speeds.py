"""How long a step takes on CPU kernels whose speeds were measured on this machine. Knows no engine and no clock.

Why products are measured at several numbers of tokens: a strip of weights is multiplied by a tile of tokens while it
comes from memory, so the first tile is hidden behind the reading; every further one reads the strip from a cache and
adds its own time. How many tokens a tile has, and what is left over, depends on form and instruction set. Why on rows
of two lengths: what is done once a row and its tile, beside reading it, weighs less the longer it is. Keys, with their
values, are measured on heads of two sizes, for each has some work of its own besides.

Why also by one core at a time: what memory gives all cores changes, on a virtual machine by half from one second to
the next, what a core takes alone does not. `fed` says what follows.
"""
from collections.abc import Mapping
from itertools import pairwise, product
from math import log2

from gramme.plan.cost import MOST_4_BITS, Product, Work
from gramme.plan.hardware import Hardware

TOKENS = (1, 4, 8, 16, 32, 64, 512)  # of the products that are measured; from the last one on, time grows in proportion
FEW_TOKENS = (1, 4, 8)  # of these; with more, multiplying is all
BYTES = {"int4": 0.5625, "int8": 1.0625, "bfloat16": 2.0}  # of an element in the matrices that are measured
MOST_BYTES = {"int4": MOST_4_BITS, "int8": 1.5}  # of an element, with its part of scales and zero points
MASKED_KEYS = 64
COLUMNS = {"memory": 3000.0, "memory, long rows": 4490.0}  # of the rows that are measured, on average over elements
PLACES = ("cache", *COLUMNS)
KEY_COLUMNS = (64, 128)  # of the keys that are measured; they and their values have 16 bits
# Of the last level: up to the first part, what a step reads stays there for the next; from the second on, nothing does.
# A cache drops what was not read for longest, and of a step's data that is what comes next. Between the two lies what
# others, and addresses that meet in one set, take of it.
IN_CACHE, OUT_OF_CACHE = 0.75, 1.0

# Names of rates, all of them things a second: operations of a prompt's attention, elements of the residual stream
# through all that stands between a layer's products, rows of a step, steps and their layers by one call and, a
# prompt's, operation by operation, rows in a layer. Replays: layers of almost nothing of one row, in which threads do
# little but meet. A virtual machine was seen to need 5 us a layer more from one second to the next, while memory gave
# half as much again: as if its two processors had moved to two dies.
ATTENTION, STREAM, ROW = "attention", "stream", "row"
STEP, LAYER, CALLED_STEP, CALLED_LAYER = "step", "layer", "called step", "called layer"
LAYER_ROW, REPLAYS = "layer row", "replayed layer"


def product_name(form: str, tokens: int, place: str) -> str:
    """Of a rate in operations a second, on weights that come from there."""
    return f"{form} x{tokens} from {place}"


def keys_name(columns: int) -> str:
    """Of a rate in elements of keys and values a second, which tokens read."""
    return f"keys of {columns} columns from memory"


def by_itself(name: str) -> str:
    """Of as many times the rate that one core reaches while the others rest."""
    return f"{name}, each core alone"


# What memory feeds, and bytes of what is counted.
FED = {product_name(form, tokens, place): BYTES[form] / (2 * tokens)
       for form, tokens, place in product(BYTES, FEW_TOKENS, COLUMNS)} | {
    keys_name(columns): 2.0 for columns in KEY_COLUMNS}
ALONE = by_itself("bandwidth")
NAMES = frozenset({product_name(*key) for key in product(BYTES, TOKENS, PLACES)} | FED.keys() | {
    by_itself(name) for name in FED} | {
    ALONE, ATTENTION, STREAM, ROW, STEP, LAYER, CALLED_STEP, CALLED_LAYER, LAYER_ROW, REPLAYS})


def known(hardware: Hardware) -> bool:
    """Whether a step can be predicted by what was measured."""
    return hardware.rates.keys() >= NAMES


def form(elements: float, nbytes: float) -> str:
    """The measured form whose elements have about as many bytes."""
    return next((name for name, most in MOST_BYTES.items() if nbytes <= most * elements), "bfloat16")


def work_s(work: Work, hardware: Hardware) -> float:
    """Seconds of bytes and operations."""
    rates = hardware.rates
    places = _places(sum(p.nbytes for p in work.products) + work.kv_bytes, hardware.cache_bytes)
    products = sum(share * _product_s(p, place, rates) for p in work.products for place, share in places)
    # A tile of attention has room for several queries: a token's few cost as much as a prompt's many.
    reading = work.kv_elements * key_element_s(work.kv_elements / (2 * work.keys), rates) if work.keys else 0.0
    attention = max(reading, (work.attention_ops + masked_ops(work)) / rates[ATTENTION])
    return products + work.other_bytes / rates["bandwidth"] + attention + work.stream / rates[STREAM]


def line(hardware: Hardware, weights: Product) -> tuple[float, float]:
    """Seconds of one of so many elements of weights, once a step and for each token: the straight line through what was
    measured at the fewest and the most tokens."""
    least, most = TOKENS[0], TOKENS[-1]
    a, b = (sum(share * _product_s(weights._replace(tokens=n), place, hardware.rates) / weights.elements
                for place, share in _places(weights.nbytes, hardware.cache_bytes)) for n in (least, most))
    each = (b - a) / (most - least)
    return a - each * least, each


def fed(cores: float, nbytes: float, bandwidth: float, alone: float) -> float:
    """What cores reach at once, of something with so many bytes, that would reach `cores` if each had memory to itself;
    memory gives them `bandwidth` bytes a second, and `alone` if each has it to itself.

    Where the two are equal, each core has a way to memory of its own. Else they share one, whose width follows from
    `bandwidth`, and wait for each other: times add up as cubes, most where both take as long. Two cores of a Zen 5
    read 37 GB/s each, until they share a link, then 50 together. There 4-bit weights and 1, 4 and 8 tokens took 12.7,
    14.2 and 15.4 ps an element, with a link each 9.2, 10.0 and 15.5; one core alone 17.1, 18.9 and 28.6 in both cases.
    From either to the other this is right within a tenth; also of 8 bits (24.4, 28.1, 32.9; 18.5, 23.9, 34.2; 34.8,
    44.8, 63.2) and of 16 (40.8, 67.8; 31.2, 68; 56, 133).
    """
    link = max(0.0, bandwidth**-3 - alone**-3) * nbytes**3
    return float((cores**-3 + link) ** (-1 / 3))


def rescaled(name: str, rate: float, rates: Mapping[str, float], then: float, now: float) -> float:
    """Of what memory feeds, which reached `rate` when memory gave `then` bytes a second, were it to give `now`."""
    nbytes, alone = FED[name], rates[ALONE]
    first, second = (fed(rates[by_itself(name)], nbytes, given, alone) for given in (then, now))
    return min(rate * second / first, now / nbytes)


def brought(rates: Mapping[str, float], bandwidth: float, arithmetic: float) -> dict[str, float]:
    """A machine's rates where memory gives so many bytes a second, and cores multiply so many times as fast."""
    from_memory = {name: rescaled(name, rates[name], rates, rates["bandwidth"], bandwidth) for name in FED}
    return {name: rate * arithmetic for name, rate in rates.items()} | {"bandwidth": bandwidth} | from_memory


def key_element_s(columns: float, rates: Mapping[str, float]) -> float:
    """Seconds of an element of keys and values: each key has its own part, which more columns share."""
    (few, a), (many, b) = ((1 / n, 1 / rates[keys_name(n)]) for n in KEY_COLUMNS)
    return a + (b - a) * min(1.0, max(0.0, (1 / columns - few) / (many - few)))


def masked_ops(work: Work) -> float:
    """Of attention, on keys that a token does not see but its tile or its block of keys holds."""
    return 4.0 * MASKED_KEYS * work.queries


def host_s(rows: int, layers: int, called: bool, rates: Mapping[str, float]) -> float:
    """Seconds of a step that neither bytes nor operations explain; `called`: operation by operation."""
    step, layer = (CALLED_STEP, CALLED_LAYER) if called else (STEP, LAYER)
    return 1 / rates[step] + rows / rates[ROW] + layers * (1 / rates[layer] + rows / rates[LAYER_ROW])


def _places(nbytes: float, cache_bytes: int) -> list[tuple[str, float]]:
    """Where the weights of a step that reads so many bytes come from, and which part of them."""
    room = IN_CACHE * cache_bytes, OUT_OF_CACHE * cache_bytes
    outside = min(1.0, max(0.0, (nbytes - room[0]) / (room[1] - room[0]))) if cache_bytes else 1.0
    return [(place, share) for place, share in (("memory", outside), ("cache", 1 - outside)) if share]


def _product_s(p: Product, place: str, rates: Mapping[str, float]) -> float:
    """Between the measured numbers of tokens, and lengths of rows, on straight lines."""
    name = form(p.elements, p.nbytes)
    each = {n: _element_s(p, name, n, place, rates) for n in TOKENS}
    if p.tokens >= TOKENS[-1]:
        seconds = each[TOKENS[-1]] * p.tokens / TOKENS[-1]
    else:
        a, b = next((a, b) for a, b in pairwise(TOKENS) if a <= p.tokens < b)
        seconds = each[a] + (each[b] - each[a]) * (p.tokens - a) / (b - a)
    more_bytes = p.nbytes - BYTES[name] * p.elements  # groups of another size, zero points
    return seconds * p.elements + more_bytes * each[1] / BYTES[name]


def _element_s(p: Product, form: str, tokens: int, place: str, rates: Mapping[str, float]) -> float:
    """Seconds of an element of weights for so many tokens, of which the speed was measured."""
    if place not in COLUMNS:
        return 2 * tokens / rates[product_name(form, tokens, place)]
    (few, a), (many, b) = ((log2(n), 2 * tokens / rates[product_name(form, tokens, rows)])
                           for rows, n in COLUMNS.items())
    return a + (b - a) * min(1.0, max(0.0, (log2(p.columns) - few) / (many - few)))
