"""From a model, a user's wishes and a machine to a Plan: the one place where `auto` is resolved. Reads nothing."""
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gramme.config import ConfigError, EngineConfig, Ledger, ModelConfig, Plan
from gramme.plan import cost, memory
from gramme.plan.hardware import Hardware
from gramme.plan.receipts import tariff
from gramme.plan.roofline import Setup
from gramme.plan.units import gb, parse_bytes, parse_price, parse_watts

KV_SHARE = 0.5  # of the memory that the weights leave, when the user names no figure
KV_TIMES = 2.0  # the weights' size, likewise: a small model's process stays small
DEFAULT_CHUNK_TOKENS, LEAST_CHUNK_TOKENS = 512, 16
MOST_BYTES, MOST_THREADS = 10**14, 1024
NUMPY_SHARE = 0.5  # of free memory that weights may take where nothing but numpy is to be had
LEAST_LENGTH = 1024  # tokens: no shorter context than this is chosen without being asked
STEP_SHARE = 0.25  # of the budget that a step's arrays may take before the chunk is made smaller
FORMS = {"reference": ("float32", "float32"), "eager": ("float32", "float32"), "cpu": ("bfloat16", "float16"),
         "cuda": ("float16", "float16")}  # of weights and of keys and values, by backend
LINES = {"weights": "weights", "kv": "KV", "tables": "rope", "activations": "activations", "attention": "attention",
         "logits": "logits", "records": "records", "graphs": "graphs", "driver": "driver"}


def plan(model: ModelConfig, engine: EngineConfig, hardware: Hardware) -> Plan:
    """Raises ConfigError, with the numbers, when a wish contradicts another or the model does not fit; then also with
    the single changes that would make it fit."""
    decided = _decide(model, engine, hardware)
    if engine.backend == "auto" and decided.backend == "reference":
        _check_numpy(decided.ledger.weights, hardware.free_bytes)
    if _fits(model, decided):
        return decided
    if engine.max_model_len is None and (length := _longest(model, engine, hardware, decided)) >= LEAST_LENGTH:
        shorter = _decide(model, replace(engine, max_model_len=length), hardware)
        note = f"contexts of at most {length} tokens: the model's {model.max_positions} do not fit"
        return replace(shorter, notes=(*shorter.notes, note))
    if engine.max_model_len is None:
        engine = replace(engine, max_model_len=min(LEAST_LENGTH, model.max_positions))
        decided = _decide(model, engine, hardware)
    raise ConfigError(_refusal(model, engine, hardware, decided))


def lines(ledger: Ledger) -> Iterator[tuple[str, int]]:
    """Every line that takes bytes, under its name."""
    yield from ((name, getattr(ledger, key)) for key, name in LINES.items() if getattr(ledger, key))


def forms(model: ModelConfig, dtype: str) -> str:
    """What the weights are in memory, in words."""
    return f"the file's integers and {dtype}" if model.stored.layers[0] else dtype


def _decide(model: ModelConfig, engine: EngineConfig, hardware: Hardware) -> Plan:
    """What the wishes come to, whether it fits or not: at least one context is planned for."""
    backend = _backend(engine, hardware)
    dtype = FORMS[backend][0] if engine.dtype == "auto" else engine.dtype
    kv_dtype = FORMS[backend][1] if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype
    if backend == "cpu" and kv_dtype == "float8_e4m3fn":
        raise ConfigError("--kv-cache-dtype float8_e4m3fn is for GPUs; on a CPU int8 takes as many bytes")
    length, size, rows = _model_len(model, engine), _page_size(engine), engine.max_num_seqs
    if rows < 1:
        raise ConfigError(f"--max-num-seqs must be at least 1, not {rows}")
    if not 0 <= (engine.threads or 0) <= MOST_THREADS:
        raise ConfigError(f"--threads must be from 1 to {MOST_THREADS}, not {engine.threads}")
    budget = hardware.free_bytes if engine.memory is None else min(parse_bytes(engine.memory), hardware.free_bytes)
    w, threads = cost.weights(model, dtype), engine.threads or hardware.cores

    def ledger(pages: int, chunk: int) -> Ledger:
        return memory.ledger(model, w, backend=backend, dtype=dtype, kv_dtype=kv_dtype, pages=pages, page_size=size,
                             rows=rows, chunk=chunk, length=length, threads=threads, processors=hardware.processors,
                             budget=budget)

    chunk = _chunk(engine, lambda tokens: ledger(0, tokens), length)
    page_bytes = ledger(1, chunk).total - ledger(0, chunk).total
    least = -(-length // size)
    left = ledger(1, chunk).left
    wanted, room = _pages(engine, length), int(left * (KV_SHARE if engine.memory is None else 1)) // page_bytes
    if engine.kv_tokens is None:  # a smaller share than half when one context needs it
        most = room if engine.memory is not None else min(room, int(KV_TIMES * w.total) // page_bytes)
        wanted = min(wanted, max(most, least))
    pages = 1 + max(wanted, least)
    return Plan(
        backend=backend, dtype=dtype, kv_dtype=kv_dtype, page_size=size, pages=pages, max_model_len=length,
        max_rows=rows, max_batch_tokens=chunk, prefix_caching=engine.prefix_caching,
        run_ahead=backend == "cuda" if engine.run_ahead is None else engine.run_ahead,
        threads=threads, seed=engine.seed, logit_rows=memory.logit_rows(model, w.total),
        captured_bytes=memory.captured_bytes(model, w, chunk, length, threads),
        ledger=ledger(pages, chunk), deterministic=engine.deterministic,
        half=engine.accumulate == "float16",
        tariff=tariff(model, w, kv_dtype, Setup(hardware=hardware, backend=backend, dtype=cost.form(model, dtype),
                                                layers=model.layers)),
        watts=None if engine.power is None else parse_watts(engine.power),
        price=None if engine.price is None else parse_price(engine.price),
        notes=(
            f"{backend} kernels, weights as {forms(model, dtype)}: {gb(w.total)}",
            f"KV as {kv_dtype}: {pages - 1} pages of {size} tokens, {gb((pages - 1) * page_bytes)}",
            f"a step of at most {chunk} tokens and {rows} rows: {gb(_step_bytes(ledger(0, chunk)))}",
            *model.notes,
        ),
    )


def _check_numpy(weights: int, free: int) -> None:
    """Raises ConfigError for a model too large to run unasked where no kernels were compiled, fit or not."""
    if weights > NUMPY_SHARE * free:
        raise ConfigError(
            f"weights of {gb(weights)} take more than half of {gb(free)}, too much for numpy alone, and no compiled "
            "kernels are here: install a C++ compiler and run `python -m gramme.kernels.cpu.build`, or install gramme "
            "from a wheel (--backend reference runs what would fit)")


def _fits(model: ModelConfig, p: Plan) -> bool:
    return p.ledger.left >= 0 and _loading(model, p) <= p.ledger.budget


def _loading(model: ModelConfig, p: Plan) -> int:
    """Bytes that are taken just before the last matrix has its place; on a card it is not the card that has them."""
    return 0 if p.backend == "cuda" else p.ledger.weights + memory.loading_bytes(model)


def _refusal(model: ModelConfig, engine: EngineConfig, hardware: Hardware, p: Plan) -> str:
    parts = " + ".join(f"{name} {gb(n)}" for name, n in lines(p.ledger))
    ways = " or ".join([*_changes(model, engine, hardware, p), f"{gb(_need(model, engine, hardware))} of memory"])
    loading = _loading(model, p)
    more = f" and {gb(loading)} while it is loaded," if loading > p.ledger.total else ""
    return (f"the model does not fit in {gb(p.ledger.budget)}: {parts} = {gb(p.ledger.total)}{more} for contexts of "
            f"{p.max_model_len} tokens; it would fit with {ways}")


def _changes(model: ModelConfig, engine: EngineConfig, hardware: Hardware, p: Plan) -> Iterator[str]:
    """The single changes that would fit, the smallest of each kind."""
    def fits(**change: Any) -> bool:
        return _fits(model, _decide(model, replace(engine, **change), hardware))

    if engine.kv_tokens is not None and fits(kv_tokens=None):
        yield "no --kv-tokens"
    if length := _longest(model, engine, hardware, p):
        yield f"--max-model-len {length}"
    narrower = (d for d in ("bfloat16", "int8", "int4") if cost.weights(model, d).total < p.ledger.weights)
    if form := next((d for d in narrower if fits(dtype=d)), None):
        yield f"--dtype {form}"


def _need(model: ModelConfig, engine: EngineConfig, hardware: Hardware) -> int:
    """The smallest budget that would do, up to 10 MB: the largest step depends on it as well."""
    unit, engine = 10**7, replace(engine, memory=None)

    def too_small(n: int) -> bool:
        return not _fits(model, _decide(model, engine, replace(hardware, free_bytes=n * unit)))

    return (_largest(MOST_BYTES // unit, too_small) + 1) * unit


def _longest(model: ModelConfig, engine: EngineConfig, hardware: Hardware, p: Plan) -> int:
    """Tokens of the longest context, in whole pages, that fits with all else as it is; 0: none does."""
    def fits(n: int) -> bool:
        return _fits(model, _decide(model, replace(engine, max_model_len=n * p.page_size), hardware))

    return _largest(p.max_model_len // p.page_size, fits) * p.page_size


def _largest(most: int, good: Callable[[int], bool]) -> int:
    """The largest n from 1 to `most` that is good, or 0; what is good stays so for smaller n."""
    if most < 1 or not good(1):
        return 0
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _backend(engine: EngineConfig, hardware: Hardware) -> str:
    return hardware.backends[0] if engine.backend == "auto" else engine.backend


def _step_bytes(ledger: Ledger) -> int:
    return ledger.activations + ledger.attention + ledger.logits


def _chunk(engine: EngineConfig, ledger: Callable[[int], Ledger], length: int) -> int:
    """Tokens of a step: as asked, else as many as its arrays leave room for."""
    chunk, rows = engine.max_num_batched_tokens, engine.max_num_seqs
    if chunk is None:
        least = max(LEAST_CHUNK_TOKENS, rows)
        chunk = max(DEFAULT_CHUNK_TOKENS, rows)
        while chunk // 2 >= least and _step_bytes(ledger(chunk)) > STEP_SHARE * ledger(chunk).budget:
            chunk //= 2
    if chunk < rows:
        raise ConfigError(f"--max-num-batched-tokens {chunk} is below --max-num-seqs {rows}")
    return chunk


def _model_len(model: ModelConfig, engine: EngineConfig) -> int:
    wish = engine.max_model_len
    if wish is None:
        return model.max_positions
    if not 1 <= wish <= model.max_positions:
        raise ConfigError(f"--max-model-len must be from 1 to {model.max_positions}, the model's own limit, not {wish}")
    return wish


def _page_size(engine: EngineConfig) -> int:
    if engine.page_size < 1 or engine.page_size & (engine.page_size - 1):
        raise ConfigError(f"--page-size must be a power of two, not {engine.page_size}")
    return engine.page_size


def _pages(engine: EngineConfig, length: int) -> int:
    """Pages for the tokens that were asked for, else for every sequence at full length."""
    tokens = engine.kv_tokens if engine.kv_tokens is not None else engine.max_num_seqs * length
    if tokens < 1:
        raise ConfigError(f"--kv-tokens must be at least 1, not {tokens}")
    return -(-tokens // engine.page_size)
