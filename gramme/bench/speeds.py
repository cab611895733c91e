"""How fast our own CPU kernels are on this machine, by the names of plan/speeds.py: what its predictions are made of.

Products are those of a layer, one behind the other as a step runs them: on weights that come from memory, with rows of
two lengths, and on few enough to stay in the last level of the cache. What memory gives may double from one second to
the next, so it is measured beside each product, whose rate is brought to the one figure that all of them are noted for;
so are keys and values, which a step finds in memory as well, for it has read all weights since. What a step costs
beyond its work is measured on models of almost nothing.
"""
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from math import prod
from statistics import median
from typing import Any

import numpy as np

from gramme.bench.ceilings import Work, reading, seconds_of
from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.formats.grouped import Grouped
from gramme.kernels.cpu.layout import copy
from gramme.kernels.load import Backend, backend
from gramme.kernels.ops import KV, Ops, Step
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
CACHES, SHARE = 16, 0.4  # bytes of what lies in memory and in cache, in those of the last level: of 8, it held 12 %
MOST_BYTES = 1 << 29
PASSES = 3  # between passes over memory, of what it feeds
TRIES, STEADY = 3, 1.25  # until what memory gives stays within this factor
HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 64, 16
LAYERS = 8  # of a prompt's attention
BEFORE, NEW = 256, 256  # tokens of the prompt that attention is measured on
READERS, KEYS = 8, 512  # rows that decode, and what each of them sees
SHORT, LONG = 2, 10  # layers of models of almost nothing
ROWS, ANSWER, PROMPTS, CHUNK = 16, 24, 12, 32
LEAST_S = 1e-8
Run = Callable[[Ops], None]  # calls of kernels


def measure(threads: int, bandwidth: float, seconds: float = 0.03) -> dict[str, float]:
    """Things a second while memory gives `bandwidth` bytes a second; nothing where the CPU kernels cannot be had. Each
    probe runs for about `seconds`."""
    if "cpu" not in available():
        return {}
    kernels = backend("cpu", threads)
    memory = reading(kernels)
    first, times = _in_cache(kernels, seconds / 2), _of_nothing(threads, memory)
    rates = _from_memory(threads, memory, bandwidth, seconds) | {
        speeds.ATTENTION: _attention(kernels, seconds), speeds.STREAM: _stream(kernels, seconds)}
    again, later = _in_cache(kernels, seconds / 2), _of_nothing(threads, memory)
    return rates | {name: max(rate, first[name]) for name, rate in again.items()} | _overheads(
        {name: min(took_s, times[name]) for name, took_s in later.items()})


def _in_cache(kernels: Backend, seconds: float) -> dict[str, float]:
    rates, nbytes = dict[str, float](), SHARE * this_machine().cache_bytes
    for form in FORMS:
        layers, elements = _layers(kernels, form, SHAPES_OF["cache"], nbytes)
        for tokens in speeds.TOKENS:
            took_s = _median(kernels, _pass(kernels, layers, tokens, form), seconds)
            rates[speeds.product_name(form, tokens, "cache")] = 2 * tokens * elements * len(layers) / took_s
    return rates


def _from_memory(threads: int, memory: Work, bandwidth: float, seconds: float) -> dict[str, float]:
    """By all cores, while memory gives `bandwidth`, and where that binds by each alone."""
    kernels, core = backend("cpu", threads), backend("cpu", 1)
    nbytes = min(MOST_BYTES, CACHES * this_machine().cache_bytes)
    rates = {speeds.ALONE: max(bandwidth, threads * reading(core).rate(seconds))}

    def best(name: str, rate: float) -> None:
        rates[name] = max(rates.get(name, 0.0), rate)

    def add(name: str, amount: float, run: Run) -> None:
        best(speeds.by_itself(name), threads * amount / _median(core, run, seconds / 2))
        took_s, probed = _beside(memory, _recorded(kernels, run))
        best(name, speeds.rescaled(name, amount / took_s, rates, probed, bandwidth))

    for form, place in product(FORMS, speeds.COLUMNS):
        layers, elements = _layers(kernels, form, SHAPES_OF[place], nbytes)
        for tokens in 2 * speeds.TOKENS:  # what disturbs for a second is not there twice
            name, most = speeds.product_name(form, tokens, place), speeds.FEW_TOKENS[-1]
            part = layers[: max(1, len(layers) * most // tokens)]  # enough of them where tokens are many
            amount, run = 2 * tokens * len(part) * elements, _pass(kernels, part, tokens, form)
            if tokens <= most:
                add(name, amount, run)
            else:
                best(name, amount / _median(kernels, run, seconds / 2))
    for columns in speeds.KEY_COLUMNS:
        run, count = _attending((READERS, KEYS, 1), columns, nbytes)
        for _ in range(2):
            add(speeds.keys_name(columns), 2 * READERS * KEYS * KV_HEADS * columns * count, run)
    return rates


def _beside(memory: Work, replay: Callable[[], object]) -> tuple[float, float]:
    """Seconds of what is replayed, and what memory gave at most meanwhile."""
    for _ in range(TRIES):
        times, given = list[float](), [memory.best(1)]
        for _ in range(PASSES):
            times.append(seconds_of(replay))
            given.append(memory.best(1))
        if max(given) < STEADY * min(given):
            break
    return median(times), max(given)


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


def _pass(kernels: Backend, layers: list[Any], tokens: int, form: str) -> Run:
    act, width = f"int8/{GROUP}" if form.startswith("int") else "float", layers[0][0].shape[1]
    x = kernels.ops.quantise(np.ones((tokens, width), np.float32), act)

    def run(ops: Ops) -> None:
        for qkv, o, gate_up, down in layers:
            ops.matmul(x, qkv, None)
            ops.matmul(x, o, None)
            ops.matmul(ops.gate_up(x, gate_up, None, act), down, None)

    return run


def _attention(kernels: Backend, seconds: float) -> float:
    """Operations a second of a chunk of a prompt behind another one."""
    pairs = sum(range(BEFORE + 1, BEFORE + NEW + 1)) + NEW * speeds.MASKED_KEYS
    run, layers = _attending((1, BEFORE + NEW, NEW), HEAD_DIM, 0)
    return 4 * HEADS * HEAD_DIM * pairs * layers / _median(kernels, run, seconds)


def _attending(shape: tuple[int, int, int], head_dim: int, nbytes: float) -> tuple[Run, int]:
    """Attention of the last `new` tokens of each of so many contexts, shape (rows, end, new), in layers whose keys and
    values come to so many bytes; and how many these are."""
    rows, end, new = shape
    each = -(-end // PAGE)
    pages = np.arange(1, 1 + rows * each, dtype=np.int32).reshape(rows, each)
    one = (1 + pages.size, KV_HEADS, PAGE, head_dim)
    kv = [KV(*(np.full(one, 0.5, np.float16) for _ in range(2)))
          for _ in range(max(LAYERS, int(nbytes / (4 * prod(one)))))]
    positions = np.arange(end - new, end, dtype=np.int32)
    slots = (pages[:, positions // PAGE] * PAGE + positions % PAGE).reshape(-1)
    step = Step(slots, np.tile(positions, rows), slots, np.arange(0, rows * new + 1, new, dtype=np.int32),
                np.full(rows, end, np.int32), pages, None, new, end)
    q, k = (np.ones((rows * new, heads, head_dim), np.float32) for heads in (HEADS, KV_HEADS))

    def run(ops: Ops) -> None:
        for layer in kv:
            ops.attend(q, k, k, layer, step, None, f"int8/{GROUP}")

    return run, len(kv)


def _stream(kernels: Backend, seconds: float) -> float:
    """Elements of the residual stream a second through two norms and the rotation of queries and keys."""
    tokens, width, times = speeds.TOKENS[-1], HEADS * HEAD_DIM, 4
    gain, table, positions = np.ones(width, np.float32), np.ones((tokens, HEAD_DIM), np.float32), \
        np.arange(tokens, dtype=np.int32)
    xs = [np.ones((tokens, width), np.float32) for _ in range(times + 1)]

    def run(ops: Ops) -> None:
        for x, r in pairwise(xs):
            for _ in range(2):
                ops.add_norm(x, r, gain, 1e-5, f"int8/{GROUP}")
            heads = x.reshape(tokens, HEADS, HEAD_DIM)
            ops.rope(heads, table, positions)
            ops.rope(heads[:, :KV_HEADS], table, positions)

    return times * tokens * width / _median(kernels, run, seconds)


def _of_nothing(threads: int, memory: Work) -> dict[str, float]:
    """Seconds of steps of models of almost nothing, of two depths: a token for one sequence and for many, a prompt; and
    of a recorded layer."""
    times = dict[str, float]()
    for layers in (SHORT, LONG):
        engine = _nothing(threads, layers)
        times |= {f"one {layers}": _decode_s(engine, 1), f"many {layers}": _decode_s(engine, ROWS),
                  f"prompt {layers}": _prompt_s(engine, memory)}
    return times | {speeds.REPLAYS: 1 / _replaying(engine).best(ANSWER)}


def _overheads(times: dict[str, float]) -> dict[str, float]:
    """Steps, rows, layers and rows in layers a second, from such times."""
    one_s, many_s, prompt_s = (times[f"{kind} {SHORT}"] for kind in ("one", "many", "prompt"))
    more_s, more_many_s, called_s = ((times[f"{kind} {LONG}"] - times[f"{kind} {SHORT}"]) / (LONG - SHORT)
                                     for kind in ("one", "many", "prompt"))  # a layer
    each_s = (more_many_s - more_s) / (ROWS - 1)  # a row in a layer
    row_s = (many_s - one_s) / (ROWS - 1) - SHORT * each_s
    costs = {speeds.STEP: one_s - row_s - SHORT * more_s, speeds.ROW: row_s, speeds.LAYER: more_s - each_s,
             speeds.LAYER_ROW: each_s, speeds.CALLED_LAYER: called_s,
             speeds.CALLED_STEP: prompt_s - row_s - SHORT * called_s, speeds.REPLAYS: times[speeds.REPLAYS]}
    return {name: 1 / max(took_s, LEAST_S) for name, took_s in costs.items()}


def replaying(threads: int) -> Work:
    """Layers of almost nothing."""
    return _replaying(_nothing(threads, LONG))


def _replaying(engine: Engine) -> Work:
    """Its step of one row, by one call."""
    _decode_s(engine, 1)
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
        times.append(seconds_of(engine.step))
    return median(times[ANSWER // 4 :])


def _prompt_s(engine: Engine, memory: Work) -> float:
    """Of a step that runs a prompt, which comes after a pause: caches hold something else. Each has its own length, so
    that none is replayed."""
    params, times = SamplingParams(temperature=0, max_tokens=1), []
    for i in range(PROMPTS):
        memory.run()
        engine.add(Request(id=str(i), prompt_token_ids=[1] * (CHUNK + i), params=params))
        began = time.perf_counter()
        while engine.busy:
            engine.step()
        times.append(time.perf_counter() - began)
    return median(times)


def _median(kernels: Backend, run: Run, seconds: float) -> float:
    """Seconds of a pass without Python, replayed until the time is up."""
    replay, times, end = _recorded(kernels, run), list[float](), time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(seconds_of(replay))
    return median(times)


def _recorded(kernels: Backend, run: Run) -> Callable[[], object]:
    """What does it again by one call; the first time is now."""
    return kernels.device.capture(lambda: run(kernels.ops))
