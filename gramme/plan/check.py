"""What was measured beside what had been predicted for it. Knows no engine and no clock."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gramme.config import ModelConfig, Plan
from gramme.plan import calibration, cost, roofline
from gramme.plan.gpus import Prediction
from gramme.plan.hardware import Hardware
from gramme.plan.roofline import Bottleneck, Setup


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    phase: str  # "prefill" or "decode"
    measured_s: float
    predicted: Prediction  # with what was learnt on this machine
    plain_s: float  # predicted without
    work: cost.Work
    bottleneck: Bottleneck

    @property
    def error(self) -> float:
        """How much longer it took than was predicted, as a share."""
        return self.measured_s / self.predicted.seconds - 1


def prefill(m: ModelConfig, p: Plan, hardware: Hardware, tokens: int, measured_s: float, *, cached: int = 0,
            calibrated: bool = True) -> Check:
    """Of the steps that ran a prompt. Raises ConfigError where a rate of the machine is not known, as `decode` does."""
    works = cost.prefill(m, cost.weights(m, p.dtype), p.kv_dtype, tokens, p.max_batch_tokens, cached)
    return _check(m, p, hardware, "prefill", works, measured_s, calibrated)


def decode(m: ModelConfig, p: Plan, hardware: Hardware, contexts: Sequence[int], measured_s: float, *,
           calibrated: bool = True) -> Check:
    """Of a step that makes one token for each of the sequences."""
    work = cost.decode(m, cost.weights(m, p.dtype), p.kv_dtype, contexts)
    return _check(m, p, hardware, "decode", [work], measured_s, calibrated)


def learn(p: Plan, hardware: Hardware, checks: Iterable[Check]) -> None:
    """For the plans to come."""
    calibration.remember(p.backend, p.dtype, p.ledger.weights, hardware,
                         {c.phase: c.measured_s / c.plain_s for c in checks})


def _check(m: ModelConfig, p: Plan, hardware: Hardware, phase: str, works: Sequence[cost.Work], measured_s: float,
           calibrated: bool) -> Check:
    learnt = calibration.factors(p.backend, p.dtype, p.ledger.weights, hardware) if calibrated else {}
    form = cost.form(m, p.dtype)
    plain, taught = (Setup(hardware=hardware, backend=p.backend, dtype=form, layers=m.layers, factors=factors)
                     for factors in ({}, learnt))
    work = sum(works[1:], works[0])
    return Check(phase=phase, measured_s=measured_s, predicted=roofline.total(works, taught, phase),
                 plain_s=roofline.total(works, plain, phase).seconds, work=work,
                 bottleneck=roofline.bottleneck(work, plain))
