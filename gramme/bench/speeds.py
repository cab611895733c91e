"""How fast our own CPU kernels are on this machine, by the names of plan/speeds.py: what its predictions are made of.

Products are those of a layer, one behind the other as a step runs them: on weights that come from memory, with rows of
two lengths, and on few enough to stay in the last level of the cache. What memory gives may double from one second to
the next, so it is measured beside each product, whose time is brought to the one figure that all of them are noted for.
What a step costs beyond its work is measured on models of almost nothing.
"""
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise, product
from statistics import median
from typing import Any

import numpy as np

from gramme.bench.ceilings import Work, reading
from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.formats.grouped import Grouped
from gramme.kernels.cpu.layout import copy
from gramme.kernels.load import Backend, backend
from gramme.kernels.ops import KV, Step
from gramme.kernels.present import available
from gramme.kernels.reference import storage_dtype
from gramme.llm.engine import Engine
from gramme.models.dummy import SHAPES
from gramme.models.load import build, random_source
from gramme.plan import speeds
from gramme.plan.hardware import this_machine
from gramme.plan.planner import plan
from gramme.request import Request, SamplingParams
from gramme.runtime.runner import Runner

FORMS = ("int4", "int8", "bfloat16")
GROUP = 32
SHAPES_OF = {  # width, rows of q, k and v, width of the MLP
    "memory": (2048, 2560, 5632), "memory, long rows": (4096, 1024, 5632), "cache": (384, 640, 1024)}
CACHES, SHARE = 16, 0.4  # bytes of the weights in memory and in cache, in those of the last level: of 8, it held 12 %
MOST_BYTES = 1 << 29
PROBES = 3  # passes over memory before and after a product
FEW = 16  # tokens: from so many on, multiplying is all, and a sixth of the weights takes long enough
HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 64, 16
BEFORE, NEW = 256, 256  # tokens of the prompt that attention is measured on
READERS, KEYS = 8, 512  # rows that decode, and what each of them sees
SHORT, LONG = 2, 10  # layers of models of almost nothing
ROWS, ANSWER, CHUNK = 16, 24, 32
LEAST_S = 1e-8


def measure(threads: int, bandwidth: float, seconds: float = 0.08) -> dict[str, float]:
    """Things a second while memory gives `bandwidth` bytes a second; nothing where the CPU kernels cannot be had. Each
    probe runs for about `seconds`."""
    if "cpu" not in available():
        return {}
    kernels = backend("cpu", threads)

    first = _in_cache(kernels, seconds / 2) | _overheads(threads)
    rates = first | _from_memory(kernels, first, bandwidth, seconds) | {
        speeds.ATTENTION: _attention(kernels, seconds), speeds.KEYS: _keys(kernels, seconds),
        speeds.STREAM: _stream(kernels, seconds)}
    again = _in_cache(kernels, seconds / 2) | _overheads(threads)  # what disturbs for a second is not there twice
    return rates | {name: max(rate, first[name]) for name, rate in again.items()}


def _in_cache(kernels: Backend, seconds: float) -> dict[str, float]:
    rates, nbytes = dict[str, float](), SHARE * this_machine().cache_bytes
    for form in FORMS:
        layers, elements = _layers(kernels, form, SHAPES_OF["cache"], nbytes)
        for tokens in speeds.TOKENS:
            took_s = _median(kernels, _pass(kernels, layers, tokens, form), seconds)
            rates[speeds.product_name(form, tokens, "cache")] = 2 * tokens * elements * len(layers) / took_s
    return rates


def _from_memory(kernels: Backend, cached: Mapping[str, float], bandwidth: float, seconds: float) -> dict[str, float]:
    memory, rates, nbytes = reading(kernels), dict[str, float](), min(MOST_BYTES, CACHES * this_machine().cache_bytes)
    for form, place in product(FORMS, speeds.COLUMNS):
        layers, elements = _layers(kernels, form, SHAPES_OF[place], nbytes)
        for tokens in speeds.TOKENS:
            part = layers if tokens < FEW else layers[: -(-len(layers) // 6)]
            before = memory.best(PROBES)
            element_s = _median(kernels, _pass(kernels, part, tokens, form), seconds) / (len(part) * elements)
            probed = (before + memory.best(PROBES)) / 2
            multiplying_s = 2 * tokens / cached[speeds.product_name(form, tokens, "cache")]
            then, now = ((speeds.BYTES[form] / rate, multiplying_s) for rate in (probed, bandwidth))
            rates[speeds.product_name(form, tokens, place)] = 2 * tokens / speeds.rescaled(element_s, then, now)
    return rates


def _layers(kernels: Backend, form: str, shape: tuple[int, int, int], nbytes: float) -> tuple[list[list[Any]], int]:
    """As many as take about so many bytes, and the elements of each."""
    width, qkv, ff = shape
    elements = width * (qkv + width + 3 * ff)
    first = _layer(kernels, form, *shape)
    count = max(1, round(nbytes / (speeds.BYTES[form] * elements)))
    return [first, *([copy(matrix) for matrix in first] for _ in range(count - 1))], elements


def _layer(kernels: Backend, form: str, width: int, qkv: int, ff: int) -> list[Any]:
    return [_matrix(kernels, form, *shape) for shape in ((qkv, width), (width, width), (2 * ff, width), (width, ff))]


def _matrix(kernels: Backend, form: str, rows: int, columns: int) -> Any:
    if not form.startswith("int"):
        return kernels.pack(np.full((rows, columns), 0.01, storage_dtype(form)))
    bits, scales = int(form[3:]), np.full((rows, columns // GROUP), 1 / 64, np.float32)
    codes = np.full((rows, columns), 3, np.uint8)
    return kernels.pack(Grouped(codes, scales, scales * (1 << (bits - 1)), bits))


def _pass(kernels: Backend, layers: list[Any], tokens: int, form: str) -> Callable[[], None]:
    ops, act = kernels.ops, f"int8/{GROUP}" if form.startswith("int") else "float"
    width = layers[0][0].shape[1]
    x = ops.quantise(np.ones((tokens, width), np.float32), act)

    def run() -> None:
        for qkv, o, gate_up, down in layers:
            ops.matmul(x, qkv, None)
            ops.matmul(x, o, None)
            ops.matmul(ops.gate_up(x, gate_up, None, act), down, None)

    return run


def _attention(kernels: Backend, seconds: float) -> float:
    """Operations a second of a chunk of a prompt behind another one."""
    pairs = sum(range(BEFORE + 1, BEFORE + NEW + 1)) + NEW * speeds.MASKED_KEYS
    return 4 * HEADS * HEAD_DIM * pairs / _attend_s(kernels, 1, BEFORE + NEW, NEW, seconds)


def _keys(kernels: Backend, seconds: float) -> float:
    """Elements of keys and values a second that tokens read."""
    return 2 * READERS * KEYS * KV_HEADS * HEAD_DIM / _attend_s(kernels, READERS, KEYS, 1, seconds)


def _attend_s(kernels: Backend, rows: int, end: int, new: int, seconds: float) -> float:
    """Seconds of a layer's attention of the last `new` tokens of each of so many contexts."""
    each = -(-end // PAGE)
    layers, shape = 8, (1 + rows * each, KV_HEADS, PAGE, HEAD_DIM)
    kv = [KV(*(np.full(shape, 0.5, np.float16) for _ in range(2))) for _ in range(layers)]
    pages = np.arange(1, shape[0], dtype=np.int32).reshape(rows, each)
    positions = np.arange(end - new, end, dtype=np.int32)
    slots = (pages[:, positions // PAGE] * PAGE + positions % PAGE).reshape(-1)
    step = Step(slots, np.tile(positions, rows), slots, np.arange(0, rows * new + 1, new, dtype=np.int32),
                np.full(rows, end, np.int32), pages, None, new, end)
    q, k = (np.ones((rows * new, heads, HEAD_DIM), np.float32) for heads in (HEADS, KV_HEADS))
    run = lambda: [kernels.ops.attend(q, k, k, one, step, None, f"int8/{GROUP}") for one in kv]
    return _median(kernels, run, seconds) / layers


def _stream(kernels: Backend, seconds: float) -> float:
    """Elements of the residual stream a second through two norms and the rotation of queries and keys."""
    ops, tokens, width, times = kernels.ops, speeds.TOKENS[-1], HEADS * HEAD_DIM, 4
    gain, table, positions = np.ones(width, np.float32), np.ones((tokens, HEAD_DIM), np.float32), \
        np.arange(tokens, dtype=np.int32)
    xs = [np.ones((tokens, width), np.float32) for _ in range(times + 1)]

    def run() -> None:
        for x, r in pairwise(xs):
            for _ in range(2):
                ops.add_norm(x, r, gain, 1e-5, f"int8/{GROUP}")
            heads = x.reshape(tokens, HEADS, HEAD_DIM)
            ops.rope(heads, table, positions)
            ops.rope(heads[:, :KV_HEADS], table, positions)

    return times * tokens * width / _median(kernels, run, seconds)


def _overheads(threads: int) -> dict[str, float]:
    """Steps, rows, layers and rows in layers a second: differences between models of two depths, one row and many."""
    short, long = (_nothing(threads, layers) for layers in (SHORT, LONG))
    more, others = LONG - SHORT, ROWS - 1
    one_s, many_s, deep_s, deep_many_s = (_decode_s(e, rows) for e in (short, long) for rows in (1, ROWS))
    each_s = (deep_many_s - many_s - deep_s + one_s) / (more * others)  # a row in a layer
    layer_s = (deep_s - one_s) / more - each_s
    row_s = (many_s - one_s) / others - SHORT * each_s
    prompt_s = _prompt_s(short)
    called_s = (_prompt_s(long) - prompt_s) / more
    costs = {speeds.STEP: one_s - row_s - SHORT * (layer_s + each_s), speeds.ROW: row_s, speeds.LAYER: layer_s,
             speeds.LAYER_ROW: each_s, speeds.CALLED_LAYER: called_s,
             speeds.CALLED_STEP: prompt_s - row_s - SHORT * called_s}
    return {name: 1 / max(took_s, LEAST_S) for name, took_s in costs.items()} | {
        speeds.REPLAYS: _replays(long).best(ANSWER)}


def replaying(threads: int) -> Work:
    """Layers of almost nothing."""
    engine = _nothing(threads, LONG)
    _decode_s(engine, 1)
    return _replays(engine)


def _replays(engine: Engine) -> Work:
    """The step that it last made by one call."""
    return Work(LONG, engine.runner.graphs.last)


def _nothing(threads: int, layers: int) -> Engine:
    m: ModelConfig = replace(SHAPES["tiny"], layers=layers, width=128, ff_width=128, heads=8, kv_heads=4, head_dim=64,
                             vocab_size=256, max_positions=256)
    config = EngineConfig(backend="cpu", threads=threads, dtype="int8", max_num_seqs=ROWS, max_model_len=128,
                          prefix_caching=False)
    decided, kernels = plan(m, config, this_machine()), backend("cpu", threads)
    return Engine(m, decided, GenerationDefaults(),
                  Runner(m, decided, build(m, random_source(m), kernels, "int8", 128), kernels))


def _decode_s(engine: Engine, rows: int) -> float:
    """Of a step that makes a token for each of so many sequences; the median of those that are replayed."""
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    for i in range(rows):
        engine.add(Request(id=str(i), prompt_token_ids=[1, 2], params=params))
    times = []
    while engine.busy:
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    return median(times[ANSWER // 4 :])


def _prompt_s(engine: Engine) -> float:
    """Of a step that runs a prompt; each has its own length, so that none is replayed."""
    params, times = SamplingParams(temperature=0, max_tokens=1), []
    for i in range(ANSWER):
        engine.add(Request(id=str(i), prompt_token_ids=[1] * (CHUNK + i), params=params))
        began = time.perf_counter()
        while engine.busy:
            engine.step()
        times.append(time.perf_counter() - began)
    return median(times)


def _median(kernels: Backend, run: Callable[[], Any], seconds: float) -> float:
    """Seconds of a pass without Python: recorded, which is the first, and replayed until the time is up."""
    replay, times = kernels.device.capture(run), list[float]()
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        began = time.perf_counter()
        replay()
        times.append(time.perf_counter() - began)
    return median(times)
