"""From a model, a user's wishes and a machine to a Plan: the one place where `auto` is resolved. Reads nothing."""
from gramme.config import ConfigError, EngineConfig, ModelConfig, Plan
from gramme.plan.hardware import Hardware
from gramme.plan.units import gb, parse_bytes

KV_SHARE = 0.5  # of the memory that the weights leave, when the user names no figure
DEFAULT_CHUNK_TOKENS = 512


def plan(model: ModelConfig, engine: EngineConfig, hardware: Hardware) -> Plan:
    """Raises ConfigError, with the numbers, when the model does not fit or a wish contradicts another."""
    backend = hardware.backends[0] if engine.backend == "auto" else engine.backend
    dtype = ("bfloat16" if backend == "cpu" else "float32") if engine.dtype == "auto" else engine.dtype
    kv_dtype = ("float16" if backend == "cpu" else "float32") if engine.kv_cache_dtype == "auto" \
        else engine.kv_cache_dtype
    length = _model_len(model, engine)
    budget = hardware.free_bytes if engine.memory is None else min(parse_bytes(engine.memory), hardware.free_bytes)
    left = budget - model.weight_bytes(dtype)
    page_bytes = _page_size(engine) * model.kv_token_bytes(kv_dtype)
    pages = _pages(engine, length, int(left * (KV_SHARE if engine.memory is None else 1)), page_bytes)
    least = -(-length // engine.page_size) + 1
    if pages < least:
        raise ConfigError(
            f"the model does not fit: weights take {gb(model.weight_bytes(dtype))}, one context of {length} tokens "
            f"{gb(least * page_bytes)}, of {gb(budget)}; lower --max-model-len or raise --memory"
        )
    chunk = engine.max_num_batched_tokens or max(DEFAULT_CHUNK_TOKENS, engine.max_num_seqs)
    if chunk < engine.max_num_seqs:
        raise ConfigError(f"--max-num-batched-tokens {chunk} is below --max-num-seqs {engine.max_num_seqs}")
    return Plan(
        backend=backend, dtype=dtype, kv_dtype=kv_dtype, page_size=engine.page_size, pages=pages, max_model_len=length,
        max_rows=engine.max_num_seqs, max_batch_tokens=chunk, prefix_caching=engine.prefix_caching,
        run_ahead=bool(engine.run_ahead), threads=engine.threads or hardware.cores, seed=engine.seed,
        notes=(
            f"{backend} kernels, weights as {dtype}: {gb(model.weight_bytes(dtype))}",
            f"KV as {kv_dtype}: {pages - 1} pages of {engine.page_size} tokens, {gb((pages - 1) * page_bytes)}",
        ),
    )


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


def _pages(engine: EngineConfig, length: int, left: int, page_bytes: int) -> int:
    """Pages for the tokens that were asked for, else for every sequence at full length, as far as memory goes."""
    tokens = engine.kv_tokens if engine.kv_tokens is not None else engine.max_num_seqs * length
    if tokens < 1:
        raise ConfigError(f"--kv-tokens must be at least 1, not {tokens}")
    wanted = -(-tokens // engine.page_size)
    fits = left // page_bytes
    if engine.kv_tokens is not None and wanted > fits:
        raise ConfigError(f"--kv-tokens {tokens} needs {gb(wanted * page_bytes)}, there are {gb(max(left, 0))}")
    return 1 + min(wanted, max(fits, 0))
