"""GET /v1/status: what was decided, what acts and what does not, what it cost, how near the ceiling it is and how far
predictions were off.

Views of records that are made elsewhere. Knows no HTTP.
"""
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from gramme import __version__
from gramme.config import ConfigError, EngineConfig
from gramme.llm.report import Facts, report
from gramme.plan import cost, roofline
from gramme.plan.check import Check
from gramme.plan.receipts import Power, as_json
from gramme.plan.roofline import Setup
from gramme.request import EngineStats
from gramme.serve.messages import Ready


def status(model: str, config: EngineConfig, ready: Ready, s: EngineStats,
           predictions: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds in "receipts" with "other_s" and "idle_s" add up to the time since the engine was ready."""
    facts = Facts(config, ready.model, ready.plan, ready.loaded, s)
    spent = as_json(s.spent, Power(watts=s.watts, source=s.power_source), ready.plan.price)
    return {"model": model, "version": __version__, "report": [asdict(line) for line in report(facts)],
            "receipts": spent | {"other_s": s.other_s, "idle_s": s.idle_s}, "ceiling": ceiling(ready, s),
            "predictions": predictions, "plan": asdict(ready.plan),
            "stats": {name: value for name, value in asdict(s).items() if name != "spent"}}


def predictions(ready: Ready, taken_bytes: int, checks: Sequence[Check],
                foretold_s: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Predicted beside measured; "error" is how much more it took, as a share: of memory, of the latest steps of a
    prompt and of decoding, and the medians of the times to first token that were foretold lately."""
    found: dict[str, Any] = {}
    if taken_bytes and ready.plan.backend != "cuda":
        total = ready.plan.ledger.total
        found["memory"] = {"predicted_bytes": total, "measured_bytes": taken_bytes, "error": taken_bytes / total - 1}
    for c in checks:
        found[c.phase] = {"tokens": c.work.tokens, "predicted_ms": 1e3 * c.predicted.seconds,
                          "measured_ms": 1e3 * c.measured_s, "error": c.error}
    if foretold_s:
        predicted, measured = (median(times) for times in zip(*foretold_s))
        found["ttft"] = {"requests": len(foretold_s), "predicted_ms": 1e3 * predicted, "measured_ms": 1e3 * measured,
                         "error": median(m / p - 1 for p, m in foretold_s),
                         "distance": median(abs(m / p - 1) for p, m in foretold_s)}
    return found


def ceiling(ready: Ready, s: EngineStats) -> dict[str, Any] | None:
    """The tokens/s that the machine's ceilings allow for as many sequences as run now, in contexts as long as theirs.

    None where the machine's rates are not known.
    """
    m, p, hardware = ready.model, ready.plan, ready.loaded.hardware
    if hardware is None:
        return None
    rows = max(1, s.running)
    context = min(max(1, s.pages_used * p.page_size // rows), p.max_model_len)
    work = cost.decode(m, cost.weights(m, p.dtype), p.kv_dtype, [context] * rows)
    try:
        b = roofline.bottleneck(work, Setup(hardware=hardware, backend=p.backend, dtype=cost.form(m, p.dtype),
                                            layers=m.layers))
    except ConfigError:
        return None
    return {"tokens_per_s": rows / b.floor_s, "rows": rows, "context": context, "bound": b.bound,
            "rates": hardware.source}
