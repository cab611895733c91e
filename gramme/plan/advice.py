"""What to expect of a model on a machine, and which configuration meets a goal: the planner's second half.

Tries every form of the weights, of keys and values and every length of a chunk through `plan` and `roofline`. Reads and
measures nothing.
"""
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from gramme.config import ConfigError, EngineConfig, ModelConfig, Plan, Stored
from gramme.plan import cost, roofline
from gramme.plan.gpus import Prediction
from gramme.plan.hardware import Hardware
from gramme.plan.planner import forms, plan
from gramme.plan.roofline import Bottleneck, Factor, Setup
from gramme.plan.units import gb, ms

Factors = Callable[[str, str, int], Mapping[str, Factor]]  # backend, dtype, weight bytes -> calibration by phase

QUANT = {"w4": ("int4",), "w8": ("int8",), "bf16": ("bfloat16",), "auto": ("bfloat16", "int8", "int4")}
KV = ("auto", "int8")  # the backend's own, 16 bits or more, is the widest; 8 cost less than narrower weights do
CHUNKS = (512, 256, 128, 64)
STALL = 2.0  # a step with a prefill chunk may take this many times as long as a token of the others
MOST_DRAFT, FREE = 8, 1.05  # guesses are free while a step takes at most 5 % longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    context: int  # tokens of prompt and answer
    prompt: int
    concurrency: int = 1
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Of a request of `prompt` tokens among `concurrency` - 1 others that decode."""

    ttft: Prediction
    tpot: Prediction
    prefill: Bottleneck
    decode: Bottleneck


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The constraint that cannot be met, and how far from it the nearest configuration ends."""

    constraint: str  # "memory", "ttft" or "tpot"
    asked: float  # bytes or seconds
    reached: float
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    engine: EngineConfig
    plan: Plan
    forecast: Forecast
    draft_tokens: int  # guesses a row that cost nothing
    tokens_fit: int  # of keys and values in all the memory
    advantage_ends: Mapping[str, int | None]  # wider form -> batch from which 4 bits are not faster
    why: tuple[str, ...]
    binding: Binding | None = None


def advise(m: ModelConfig, engine: EngineConfig, hardware: Hardware, goal: Goal, quant: str = "auto",
           factors: Factors = lambda *_: {}) -> Advice:
    """The widest weights that meet the goal, else what comes nearest. Raises ConfigError when nothing fits at all."""
    _check(m, goal)
    fitting = list(_candidates(m, engine, hardware, goal, quant))
    asked = goal
    while not fitting and (goal.concurrency > 1 or goal.context > 1):  # fewer requests, then shorter ones
        goal = _smaller(goal)
        fitting = list(_candidates(m, engine, hardware, goal, quant))
    if not fitting:
        plan(m, _narrowest(engine, asked, quant), hardware)  # raises, with the ledger
    best = _best([_trial(m, e, p, hardware, goal, factors) for e, p in fitting])
    binding = best.binding if goal is asked else _memory_binding(m, engine, hardware, asked, goal, quant)
    return _advice(m, best, goal, binding)


def forecast(m: ModelConfig, p: Plan, s: Setup, goal: Goal) -> Forecast:
    w, others = cost.weights(m, p.dtype), goal.concurrency - 1
    middle = (goal.prompt + goal.context) // 2
    decode = cost.decode(m, w, p.kv_dtype, [middle] * goal.concurrency)
    chunk = max(1, p.max_batch_tokens - others)
    beside = [(middle - 1, 1)] * others
    steps = [cost.step(m, w, p.kv_dtype, [(start, min(chunk, goal.prompt - start)), *beside],
                       others + (start + chunk >= goal.prompt)) for start in range(0, goal.prompt, chunk)]
    ttft = roofline.total(steps, s, "prefill")
    if others:  # on average it comes in the middle of a step
        wait = roofline.seconds(cost.decode(m, w, p.kv_dtype, [middle] * others), s, "decode")
        ttft = Prediction(ttft.seconds + wait.seconds / 2, ttft.low_s, ttft.high_s + wait.high_s)
    return Forecast(ttft=ttft, tpot=roofline.seconds(decode, s, "decode"),
                    prefill=roofline.bottleneck(sum(steps[1:], steps[0]), s), decode=roofline.bottleneck(decode, s))


def _candidates(m: ModelConfig, engine: EngineConfig, hardware: Hardware, goal: Goal,
                quant: str) -> Iterator[tuple[EngineConfig, Plan]]:
    """Configurations that fit, the widest weights, then keys and values, and the longest chunks first."""
    for dtype, kv, chunk in product(*_choices(engine, quant)):
        configured = _configured(engine, goal, dtype, kv, chunk)
        try:
            yield configured, plan(m, configured, hardware)
        except ConfigError:
            continue


def _choices(engine: EngineConfig, quant: str) -> tuple[Sequence[str], Sequence[str], Sequence[int]]:
    """Forms of the weights, of keys and values, and chunks: what the user named, else all."""
    return (QUANT[quant] if engine.dtype == "auto" else (engine.dtype,),
            KV if engine.kv_cache_dtype == "auto" else (engine.kv_cache_dtype,),
            CHUNKS if engine.max_num_batched_tokens is None else (engine.max_num_batched_tokens,))


def _configured(engine: EngineConfig, goal: Goal, dtype: str, kv: str, chunk: int) -> EngineConfig:
    return replace(engine, dtype=dtype, kv_cache_dtype=kv, max_model_len=goal.context, max_num_seqs=goal.concurrency,
                   kv_tokens=goal.context * goal.concurrency, max_num_batched_tokens=max(chunk, goal.concurrency))


def _narrowest(engine: EngineConfig, goal: Goal, quant: str) -> EngineConfig:
    dtypes, kvs, chunks = _choices(engine, quant)
    return _configured(engine, goal, dtypes[-1], kvs[-1], chunks[-1])


class Trial(NamedTuple):
    engine: EngineConfig
    plan: Plan
    setup: Setup
    forecast: Forecast
    binding: Binding | None


def _trial(m: ModelConfig, engine: EngineConfig, p: Plan, hardware: Hardware, goal: Goal, factors: Factors) -> Trial:
    s = Setup(hardware=hardware, backend=p.backend, dtype=cost.form(m, p.dtype), layers=m.layers,
              factors=factors(p.backend, p.dtype, p.ledger.weights))
    f = forecast(m, p, s, goal)
    return Trial(engine, p, s, f, _missed(p, f, goal))


def _best(trials: Sequence[Trial]) -> Trial:
    """The first that misses nothing, else the one that misses least."""
    excess = lambda t: t.binding.reached / t.binding.asked if t.binding else 0.0
    return next((t for t in trials if t.binding is None), min(trials, key=excess))


def _advice(m: ModelConfig, trial: Trial, goal: Goal, binding: Binding | None) -> Advice:
    engine, p, s, f, _ = trial
    draft = _free_guesses(m, p, s, goal)
    free = replace(m, stored=Stored())  # of what the file keeps as it is there is no other form to compare with
    ends = {wider: roofline.advantage_ends(free, "int4", wider, p.kv_dtype, goal.prompt, s)
            for wider in ("int8", "bfloat16")}
    token_bytes = m.kv_token_bytes(p.kv_dtype)
    return Advice(engine=engine, plan=p, forecast=f, draft_tokens=draft, advantage_ends=ends,
                  tokens_fit=(p.ledger.left + p.ledger.kv) // token_bytes,
                  why=_why(m, p, f, goal, draft, token_bytes, s), binding=binding)


def _missed(p: Plan, f: Forecast, goal: Goal) -> Binding | None:
    """The goal that is missed by the largest factor. A chunk that stalls others too long counts as a missed TPOT."""
    missed = []
    if goal.ttft_s:
        missed.append(_Miss(f.ttft.seconds / goal.ttft_s, "ttft", goal.ttft_s, f.ttft.seconds, arithmetic(f.prefill)))
    if goal.tpot_s:
        missed.append(_Miss(f.tpot.seconds / goal.tpot_s, "tpot", goal.tpot_s, f.tpot.seconds, arithmetic(f.decode)))
    if goal.tpot_s and goal.concurrency > 1:
        stall = f.ttft.seconds / -(-goal.prompt // p.max_batch_tokens)
        because = (f"a step with a chunk of at most {p.max_batch_tokens} prompt tokens takes about {ms(stall)}; it may "
                   f"take {STALL:g} times as long as a token")
        missed.append(_Miss(stall / (STALL * goal.tpot_s), "tpot", goal.tpot_s, stall / STALL, because))
    worst = max(missed, default=None)
    if worst is None or worst.factor <= 1:
        return None
    return Binding(constraint=worst.constraint, asked=worst.asked, reached=worst.reached, because=worst.because)


class _Miss(NamedTuple):
    factor: float
    constraint: str
    asked: float
    reached: float
    because: str


def arithmetic(b: Bottleneck) -> str:
    if b.bound == "memory":
        return f"{gb(b.nbytes)} at {b.ceiling / 1e9:.1f} GB/s take {ms(b.floor_s)}"
    return f"{b.ops / 1e9:.1f} G operations at {b.ceiling / 1e9:.0f} G/s take {ms(b.floor_s)}"


def _free_guesses(m: ModelConfig, p: Plan, s: Setup, goal: Goal) -> int:
    """How many drafted tokens a row a decode step verifies at hardly more than its own time."""
    w, start = cost.weights(m, p.dtype), goal.prompt

    def step_s(guesses: int) -> float:
        rows, outputs = [(start, guesses + 1)] * goal.concurrency, goal.concurrency * (guesses + 1)
        return roofline.seconds(cost.step(m, w, p.kv_dtype, rows, outputs), s, "decode").seconds

    alone, count = step_s(0), 0
    while count < MOST_DRAFT and step_s(count + 1) <= FREE * alone:
        count += 1
    return count


def _why(m: ModelConfig, p: Plan, f: Forecast, goal: Goal, draft: int, token_bytes: int,
         s: Setup) -> tuple[str, ...]:
    steps = -(-goal.prompt // p.max_batch_tokens)
    kept = ", integers being run as they are" if m.stored.layers[0] else ""
    return (
        f"weights as {forms(m, p.dtype)}: {gb(p.ledger.weights)}{kept}, the widest form that fits in "
        f"{gb(p.ledger.budget)} and comes nearest to the targets; a token takes {ms(f.tpot.seconds)}",
        f"keys and values as {p.kv_dtype}: {gb(token_bytes)} a token, {gb(p.ledger.kv)} for {goal.concurrency} "
        f"context{'s' if goal.concurrency > 1 else ''} of {goal.context}",
        f"chunks of {p.max_batch_tokens} tokens: the prompt of {goal.prompt} runs in {steps} "
        f"step{'s' if steps > 1 else ''} of about {ms(f.ttft.seconds / steps)}, which is how long others may stall",
        f"{goal.concurrency} at once: a step does {f.decode.intensity:.1f} operations a byte, the machine balances at "
        f"{f.decode.ridge:.1f}",
        f"{draft} drafted tokens a row are free: one more would make a step more than {FREE - 1:.0%} longer",
        f"rates of {s.hardware.name}: {s.hardware.source}; calibration: "
        + (", ".join(f"{k} x{v.median:.2f} of {v.runs} runs" for k, v in s.factors.items()) or "none"),
    )


def _check(m: ModelConfig, goal: Goal) -> None:
    if not 1 <= goal.context <= m.max_positions:
        raise ConfigError(f"--context must be from 1 to {m.max_positions}, the model's own limit, not {goal.context}")
    if not 1 <= goal.prompt <= goal.context:
        raise ConfigError(f"--prompt-tokens must be from 1 to --context {goal.context}, not {goal.prompt}")
    if not 1 <= goal.concurrency <= roofline.MOST_BATCH:
        raise ConfigError(f"--concurrency must be from 1 to {roofline.MOST_BATCH}, not {goal.concurrency}")


def _smaller(goal: Goal) -> Goal:
    if goal.concurrency > 1:
        return replace(goal, concurrency=goal.concurrency // 2)
    return replace(goal, context=goal.context // 2, prompt=max(1, min(goal.prompt, goal.context // 4)))


def _memory_binding(m: ModelConfig, engine: EngineConfig, hardware: Hardware, asked: Goal, goal: Goal,
                    quant: str) -> Binding:
    configured = replace(_narrowest(engine, asked, quant), memory=None)
    needed = plan(m, configured, replace(hardware, free_bytes=1 << 50)).ledger.total
    budget = plan(m, _narrowest(engine, goal, quant), hardware).ledger.budget
    return Binding(constraint="memory", asked=needed, reached=budget, because=(
        f"{asked.concurrency} contexts of {asked.context} need {gb(needed)}, there are {gb(budget)}; "
        f"{goal.concurrency} of {goal.context} fit"))
