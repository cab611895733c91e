"""`gramme bench run`: prefill and decode of a model in this process, each next to its ceiling and its prediction."""
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from gramme.config import ConfigError, ModelConfig, Plan
from gramme.llm.engine import Engine
from gramme.plan import calibration, check
from gramme.plan.check import Check
from gramme.plan.hardware import Hardware
from gramme.plan.others import Others
from gramme.request import Request, SamplingParams

PREFILL, DECODE, PROMPT = 256, 48, 16  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """`batch` prompts of `prompt` tokens, each answered by `answer` tokens beyond the first."""

    name: str
    prompt: int
    answer: int = 0
    batch: int = 1

    @property
    def phase(self) -> str:
        return "decode" if self.answer else "prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    test: str
    tokens_per_s: float  # median
    seconds: float  # of a token of each sequence, or of the prompt; median
    spread: float  # largest over smallest of the repeats
    repeats_s: tuple[float, ...]  # what `seconds` is the median of
    predicted_s: float
    low_s: float
    high_s: float
    uncalibrated_s: float
    gb_per_s: float
    gop_per_s: float
    bound: str
    share: float  # of the ceiling that bounds it


def tests(prefill: int = PREFILL, decode: int = DECODE, batch: int = 8) -> list[Test]:
    return [Test(name=f"pp{prefill}", prompt=prefill), Test(name=f"tg{decode}", prompt=PROMPT, answer=decode),
            Test(name=f"tg{decode}x{batch}", prompt=PROMPT, answer=decode, batch=batch)]


def bench(engine: Engine, hardware: Hardware, todo: Sequence[Test], repeats: int = 3,
          calibrated: bool = True) -> Iterator[Result]:
    """One result for each test, as it comes; it teaches calibration where `calibrated` and nobody disturbed it."""
    for test in todo:
        _check(test, engine.plan)
        measure(engine, test)  # captures steps, fills caches
        others = Others()
        times = [measure(engine, test) for _ in range(repeats)]
        result = judge(engine.model, engine.plan, hardware, test, times, calibrated)
        if calibrated and not others.disturb(engine.plan.threads):
            calibration.remember(engine.plan.backend, engine.plan.dtype, engine.plan.ledger.weights, hardware,
                                 {test.phase: result.seconds / result.uncalibrated_s})
        yield result


def measure(engine: Engine, test: Test) -> float:
    """Seconds of the whole prompt, or of one token of every sequence once all of them decode."""
    r = random.Random(test.name)
    params = SamplingParams(temperature=0, max_tokens=test.answer + 1, ignore_eos=True)
    made = [0] * test.batch
    began = time.perf_counter()
    for i in range(test.batch):
        prompt = [r.randrange(engine.model.vocab_size) for _ in range(test.prompt)]
        engine.add(Request(id=f"bench-{i}", prompt_token_ids=prompt, params=params))
    steps = 0
    while engine.busy:
        for update in engine.step():
            made[int(update.id[6:])] += len(update.token_ids)
            if update.error:
                raise ConfigError(update.error)
        if min(made) == 0 or not test.answer:
            began = time.perf_counter() if test.answer else began
        else:
            steps += 1
        if steps == 1:  # the step that brought the last first token
            began, first = time.perf_counter(), min(made)
    ended = time.perf_counter()
    return (ended - began) / (test.answer + 1 - first) if test.answer else ended - began


def judge(m: ModelConfig, p: Plan, hardware: Hardware, test: Test, times: Sequence[float],
          calibrated: bool = True) -> Result:
    """What was measured beside what was predicted and what the ceilings allow."""
    c = _checked(m, p, hardware, test, median(times), calibrated)
    return Result(
        test=test.name, tokens_per_s=(test.batch if test.answer else test.prompt) / c.measured_s,
        seconds=c.measured_s, spread=max(times) / min(times), repeats_s=tuple(times), predicted_s=c.predicted.seconds,
        low_s=c.predicted.low_s, high_s=c.predicted.high_s, uncalibrated_s=c.plain_s,
        gb_per_s=c.work.nbytes / c.measured_s / 1e9, gop_per_s=c.work.ops / c.measured_s / 1e9,
        bound=c.bottleneck.bound, share=c.bottleneck.floor_s / c.measured_s,
    )


def _checked(m: ModelConfig, p: Plan, hardware: Hardware, test: Test, seconds: float, calibrated: bool) -> Check:
    if not test.answer:
        return check.prefill(m, p, hardware, test.prompt, seconds, calibrated=calibrated)
    contexts = [test.prompt + test.answer // 2] * test.batch
    return check.decode(m, p, hardware, contexts, seconds, calibrated=calibrated)


def _check(test: Test, p: Plan) -> None:
    if test.prompt + test.answer + 1 > p.max_model_len:
        raise ConfigError(f"{test.name} needs {test.prompt + test.answer + 1} tokens, contexts hold {p.max_model_len}")
    if test.batch > p.max_rows:
        raise ConfigError(f"{test.name} needs {test.batch} rows, a step holds {p.max_rows}: raise --max-num-seqs")


def line(r: Result, source: str) -> str:
    """`source`: of the machine's rates."""
    error, ceiling = r.seconds / r.predicted_s - 1, f"{'assumed ' * (source == 'assumed')}{r.bound} ceiling"
    return (f"{r.test:8} {r.tokens_per_s:9.1f} tokens/s  {r.gb_per_s:6.1f} GB/s  {r.gop_per_s:7.1f} Gop/s  "
            f"{r.share:4.0%} of the {ceiling}  predicted {1e3 * r.predicted_s:8.2f} ms, "
            f"took {1e3 * r.seconds:8.2f} ({error:+.0%})")


def record(results: Sequence[Result], model: str, hardware: Hardware, p: Plan,
           memory: dict[str, float]) -> dict[str, Any]:
    """The last line: what `gramme bench compare` reads."""
    return {"bench": "run", "machine": hardware.name, "rates": dict(hardware.rates), "rates_source": hardware.source,
            "model": model, "backend": p.backend, "dtype": p.dtype, "threads": p.threads,
            "workload": {"tests": [r.test for r in results], "prompt_tokens": PROMPT},
            "memory": memory, "results": {r.test: asdict(r) for r in results}}
