"""`gramme plan`: whether a model fits, how fast it would be and which configuration to take, from its config alone.

Loads no weights, no torch and no numpy, so that the answer comes at once. A target that nothing meets is answered with
the nearest and what binds; what is no target, such as 0 ms, is an error.
"""
import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gramme.cli.flags import settle
from gramme.cli.options import PlanOptions
from gramme.config import ConfigError, EngineConfig, ModelConfig
from gramme.formats.quantization import quantization_config
from gramme.formats.store import config_directory
from gramme.kernels.present import available, foreseen
from gramme.models.config import read_config
from gramme.models.dummy import dummy
from gramme.plan import calibration
from gramme.plan.advice import Advice, Factors, Goal, advise, arithmetic
from gramme.plan.gpus import Prediction, gpu
from gramme.plan.hardware import Hardware, card, this_machine
from gramme.plan.planner import lines
from gramme.plan.roofline import Bottleneck
from gramme.plan.units import gb, ms, parse_seconds

DEFAULT_CONTEXT, DEFAULT_PROMPT = 8192, 1024
# Flags of the other verbs that a plan recommends: what it plans for is asked in other words.
RECOMMENDED = {"max_model_len": "--context", "max_num_seqs": "--concurrency",
               "kv_tokens": "--context and --concurrency"}


def main(args: argparse.Namespace) -> None:
    engine, asked = settle(args, EngineConfig), settle(args, PlanOptions)
    if asked.gpu and asked.cpu:
        raise ConfigError("--gpu and --cpu exclude each other")
    for name, instead in RECOMMENDED.items():
        if getattr(args, name, None) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is what a plan recommends: say {instead}")
    if asked.quant != "auto" and engine.dtype != "auto":
        raise ConfigError("--quant and --dtype exclude each other")
    m, hardware = model_config(engine), _hardware(asked, engine.backend)
    goal = _goal(asked, m)
    advice = advise(m, engine, hardware, goal, asked.quant, _factors(asked, hardware))
    if asked.json:
        print(json.dumps(record(advice, hardware)))
        return
    for line in _text(engine.model or "gramme-nano", m, advice, hardware, goal, asked.why):
        print(line)


def model_config(engine: EngineConfig) -> ModelConfig:
    """From a directory, a shape, a GGUF file, or a hub id whose config.json is fetched when it is not here yet. Of
    packed weights that are here already, what they are is read from their headers."""
    model = engine.model
    if model.startswith("dummy:"):
        return dummy(model.removeprefix("dummy:"))
    if model.lower().partition(":")[0].endswith((".gguf", "-gguf")):
        from gramme.models.open import open_model

        return open_model(engine).config
    embedded = Path(__file__).parent.parent / "embedded"
    directory = config_directory(model, engine.revision) if model else embedded
    if quantization_config(directory) is None:
        return read_config(directory)
    from gramme.models.open import foretold, open_model

    return open_model(engine).config if any(directory.glob("*.safetensors")) else foretold(directory)


def record(a: Advice, hardware: Hardware) -> dict[str, Any]:
    """The line of --json. Times in milliseconds, sizes in bytes."""
    p, f = a.plan, a.forecast
    return {
        "predicted": {**_times("ttft", f.ttft), **_times("tpot", f.tpot), "tokens_per_s": p.max_rows / f.tpot.seconds,
                      "memory_bytes": p.ledger.total, "kv_tokens_fit": a.tokens_fit,
                      "requests_fit": a.tokens_fit // p.max_model_len},
        "ledger": {**asdict(p.ledger), "total": p.ledger.total, "left": p.ledger.left},
        "bottleneck": {"prefill": _side(f.prefill), "decode": _side(f.decode)},
        "recommended": {"backend": p.backend, "dtype": p.dtype, "kv_cache_dtype": p.kv_dtype,
                        "max_num_batched_tokens": p.max_batch_tokens, "max_num_seqs": p.max_rows,
                        "max_model_len": p.max_model_len, "draft_tokens": a.draft_tokens},
        "binding": None if a.binding is None else asdict(a.binding),
        "w4_pays_below_batch": dict(a.advantage_ends),
        "hardware": {"name": hardware.name, "rates": hardware.source},
        "why": list(a.why),
    }


def flags(a: Advice) -> str:
    """The recommendation as the flags of `gramme run` and `gramme serve`."""
    e = a.engine
    return (f"--dtype {a.plan.dtype} --kv-cache-dtype {a.plan.kv_dtype} --max-model-len {e.max_model_len} "
            f"--max-num-seqs {e.max_num_seqs} --kv-tokens {e.kv_tokens} "
            f"--max-num-batched-tokens {e.max_num_batched_tokens}")


def _hardware(asked: PlanOptions, backend: str) -> Hardware:
    """A card that is named, this machine's processor, or what it would run the model on."""
    if asked.gpu:
        if backend not in ("auto", "cuda"):
            raise ConfigError(f"--gpu and --backend {backend} exclude each other")
        return card(gpu(asked.gpu))
    if not asked.cpu:
        return foreseen(backend)
    if backend == "cuda":
        raise ConfigError("--cpu and --backend cuda exclude each other")
    return replace(this_machine(), backends=tuple(name for name in available() if name != "cuda"))


def _goal(asked: PlanOptions, m: ModelConfig) -> Goal:
    context = asked.context if asked.context is not None else min(DEFAULT_CONTEXT, m.max_positions)
    prompt = asked.prompt_tokens if asked.prompt_tokens is not None else min(DEFAULT_PROMPT, max(1, context // 2))
    return Goal(context=context, prompt=prompt, concurrency=asked.concurrency,
                ttft_s=None if asked.ttft is None else parse_seconds(asked.ttft),
                tpot_s=None if asked.tpot is None else parse_seconds(asked.tpot))


def _factors(asked: PlanOptions, hardware: Hardware) -> Factors:
    if not asked.calibration or asked.gpu:
        return lambda *_: {}
    return lambda backend, dtype, nbytes: calibration.factors(backend, dtype, nbytes, hardware)


def _text(name: str, m: ModelConfig, a: Advice, hardware: Hardware, goal: Goal, why: bool) -> Iterator[str]:
    p, f = a.plan, a.forecast
    yield f"{name} on {hardware.name} (rates {hardware.source}), {m.parameters / 1e9:.2f} G parameters"
    yield ""
    for line, n in lines(p.ledger):
        yield f"  {line:12} {gb(n):>10}"
    yield f"  {'left':12} {gb(p.ledger.left):>10} of {gb(p.ledger.budget)}"
    yield (f"  a token of KV takes {gb(m.kv_token_bytes(p.kv_dtype))}, a page of {p.page_size} "
           f"{gb(p.page_size * m.kv_token_bytes(p.kv_dtype))}: {a.tokens_fit} tokens would fit, "
           f"{a.tokens_fit // p.max_model_len} requests of {p.max_model_len}")
    yield ""
    for phase, b in (("prefill", f.prefill), ("decode", f.decode)):
        yield (f"  {phase:8} is bound by {b.bound}: {b.ops / 1e9:.1f} G operations over {gb(b.nbytes)} are "
               f"{b.intensity:.1f} a byte, the machine balances at {b.ridge:.1f}; {arithmetic(b)}")
    yield f"  first token of a prompt of {goal.prompt}: {_span(f.ttft)}"
    yield (f"  then {_span(f.tpot)} a token, {p.max_rows / f.tpot.seconds:.1f} tokens/s for {p.max_rows} at once, "
           f"in contexts of {(goal.prompt + goal.context) // 2}")
    for wider, batch in a.advantage_ends.items():
        yield f"  4 bits are faster than {wider} " + (f"below a batch of {batch}" if batch else "at every batch")
    yield ""
    if a.binding is not None:
        yield f"  cannot be met: {a.binding.constraint}; {a.binding.because}. The nearest:"
    yield f"  gramme serve {'' if name == 'gramme-nano' else name} {flags(a)}".replace("  --", " --")
    yield f"  {a.draft_tokens} drafted tokens a row would cost nothing"
    for sentence in a.why if why else ():
        yield f"  - {sentence}"


def _span(p: Prediction) -> str:
    return f"{ms(p.seconds)} ({ms(p.low_s)} to {ms(p.high_s)})"


def _times(name: str, p: Prediction) -> dict[str, float]:
    return {f"{name}_ms": 1e3 * p.seconds, f"{name}_low_ms": 1e3 * p.low_s, f"{name}_high_ms": 1e3 * p.high_s}


def _side(b: Bottleneck) -> dict[str, Any]:
    return asdict(b)
