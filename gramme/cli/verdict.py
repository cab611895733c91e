"""A run beside its prediction: memory, the prompt, a token; and what the errors teach the next plan."""
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from gramme.config import ConfigError
from gramme.kernels.load import machine
from gramme.kernels.present import available
from gramme.llm.engine import Engine
from gramme.plan import check
from gramme.plan.check import Check
from gramme.plan.hardware import Hardware, this_machine
from gramme.plan.units import gb, ms
from gramme.request import RequestOutput

LEAST_PROMPT, LEAST_ANSWER = 64, 16  # tokens: shorter ones say more about the start of a process than about the machine
NAMES = {"prefill": "prompt", "decode": "a token"}


def checks(engine: Engine, output: RequestOutput, calibrated: bool) -> Iterator[Check]:
    """Of the first sample, as far as there is something to check. Raises ConfigError where the machine is not known."""
    m, prompt, answer = output.metrics, len(output.prompt_token_ids), len(output.outputs[0].token_ids)
    hardware = _hardware(engine)
    if m is None or not m.stamps.flushed_ns:
        return
    if prompt > m.cached_tokens:
        yield check.prefill(engine.model, engine.plan, hardware, prompt, m.stamps.parts()["prefill"] / 1e9,
                            cached=m.cached_tokens, calibrated=calibrated)
    if answer > 1:
        each_s = (m.newest_ns - m.stamps.sampled_ns) / 1e9 / (answer - 1)
        yield check.decode(engine.model, engine.plan, hardware, [prompt + answer // 2], each_s, calibrated=calibrated)


def learn(engine: Engine, output: RequestOutput) -> None:
    """For the plans to come."""
    enough = {"prefill": len(output.prompt_token_ids) - output.metrics.cached_tokens >= LEAST_PROMPT,
              "decode": len(output.outputs[0].token_ids) > LEAST_ANSWER} if output.metrics else {}
    with suppress(ConfigError):
        check.learn(engine.plan, _hardware(engine), [c for c in checks(engine, output, True) if enough[c.phase]])


def lines(engine: Engine, found: Sequence[Check]) -> Iterator[str]:
    total, taken = engine.plan.ledger.total, engine.taken_bytes
    yield f"memory   predicted {gb(total)} at most, took {gb(taken)} ({taken / total - 1:+.0%})"
    for c in found:
        yield f"{NAMES[c.phase]:8} predicted {ms(c.predicted.seconds)}, took {ms(c.measured_s)} ({c.error:+.0%})"


def _hardware(engine: Engine) -> Hardware:
    return machine(engine.plan.backend, replace(this_machine(), backends=available()))
