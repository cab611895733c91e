"""How long a step takes: its work against a machine's ceilings. Knows no scheduler and measures nothing."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gramme.config import INTEGER_BITS, ModelConfig
from gramme.plan import cost, speeds
from gramme.plan.gpus import SHARE_SPREAD, Prediction, predict
from gramme.plan.hardware import Hardware

LAUNCHES_A_LAYER = 8  # on a GPU; a captured step still pays for the gaps between its kernels
MOST_BATCH = 4096
WORTH = 0.95  # a form pays as long as it takes at most this part of a wider one's time

# What our kernels reach of each ceiling where this machine has no record of its own. "cuda": the median of published
# engines on consumer cards (test_published_speeds.py). "reference" unpacks integers in float64: not for speed.
SHARES: dict[str, dict[str, float]] = {
    "cpu": {"bandwidth": 0.8, "float32": 0.6, "int8": 0.75},
    "cuda": {"bandwidth": 0.75, "fp32_accumulate": 0.7, "fp16_accumulate": 0.6, "int8": 0.5},
    "eager": {"bandwidth": 0.6, "float32": 0.5, "int8": 0.05, "fp32_accumulate": 0.5},
    "reference": {"bandwidth": 0.6, "float32": 0.5, "int8": 0.01},
}
HOST_S = {"cpu": 0.15e-3, "cuda": 0.3e-3, "eager": 1e-3, "reference": 1e-3}  # Python's part of a step
# Of a layer: steps that decode are replayed by one call, prompts, each of its own length, go operation by operation.
LAYER_S = {"cpu": (0.03e-3, 0.5e-3), "cuda": (0.0, 0.0), "eager": (0.5e-3, 0.5e-3), "reference": (0.3e-3, 0.3e-3)}
REPLAYED_TOKENS = 64
ELEMENT_OPS = 120  # an element between products costs as much as so many operations of float32 products at their best


@dataclass(frozen=True, slots=True)
class Factor:
    """Measured over predicted time on this machine: the median of some runs, and their extremes."""

    median: float = 1.0
    low: float = 1.0
    high: float = 1.0
    runs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the time of a step depends on, besides its work."""

    hardware: Hardware
    backend: str
    dtype: str  # of most layers' weights, see `cost.form`
    layers: int
    factors: Mapping[str, Factor] = field(default_factory=dict)  # by phase: "prefill", "decode"

    @property
    def compute(self) -> str:
        """The ceiling of products with weights."""
        if self.hardware.kind == "gpu":
            return "fp32_accumulate"
        return "int8" if self.dtype in INTEGER_BITS else "float32"

    @property
    def measured(self) -> bool:
        """Whether the speeds of the kernels themselves are known, not only the machine's ceilings."""
        return self.backend == "cpu" and speeds.known(self.hardware)

    @property
    def attention(self) -> str:
        return "fp32_accumulate" if self.hardware.kind == "gpu" else "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What bounds a step, with the arithmetic."""

    bound: str  # "memory" or "compute"
    nbytes: float
    ops: float
    intensity: float  # operations a byte
    ridge: float  # operations a byte where both ceilings take equally long
    ceiling: float  # of what bounds, in bytes/s or operations/s
    floor_s: float  # at the ceiling


def ceiling_times(work: cost.Work, s: Setup) -> tuple[float, float]:
    """Seconds that memory and arithmetic take at their ceilings."""
    rate = s.hardware.rate
    return work.nbytes / rate("bandwidth"), work.matmul_ops / rate(s.compute) + work.attention_ops / rate(s.attention)


def bottleneck(work: cost.Work, s: Setup) -> Bottleneck:
    memory_s, compute_s = ceiling_times(work, s)
    bound = "memory" if memory_s >= compute_s else "compute"
    return Bottleneck(
        bound=bound, nbytes=work.nbytes, ops=work.ops, intensity=work.intensity, floor_s=max(memory_s, compute_s),
        ridge=s.hardware.rate(s.compute) / s.hardware.rate("bandwidth"),
        ceiling=s.hardware.rate("bandwidth" if bound == "memory" else s.compute),
    )


def seconds(work: cost.Work, s: Setup, phase: str) -> Prediction:
    """Of one step in phase "prefill" or "decode", as calibrated: by the measured speeds of the kernels where they are
    known, else its tightest ceiling at the shares that we reach elsewhere."""
    if s.measured:
        middle = speeds.work_s(work, s.hardware)
        low = max(middle / (1 + SHARE_SPREAD), *ceiling_times(work, s))
        return _calibrated(Prediction(middle, low, middle * (1 + SHARE_SPREAD)), s, phase, work)
    shares = SHARES[s.backend]
    attention = work.attention_ops * s.hardware.rate(s.compute) * shares[s.compute]
    attention /= s.hardware.rate(s.attention) * shares[s.attention]  # in operations of the other kind
    amounts = {"bandwidth": work.nbytes, s.compute: work.matmul_ops + attention}
    if s.hardware.kind == "gpu":
        return _calibrated(predict(s.hardware, amounts, shares, s.layers * LAUNCHES_A_LAYER), s, phase, work)
    # On a CPU the core that waits for a weight is the one that multiplies it: little overlaps, so times add up.
    times = [amount / (s.hardware.rate(name) * shares[name]) for name, amount in amounts.items()]
    times.append(work.elements * ELEMENT_OPS / s.hardware.rate("float32"))
    low = max(max(times) / (1 + SHARE_SPREAD), *ceiling_times(work, s))
    return _calibrated(Prediction(sum(times), low, sum(times) * (1 + SHARE_SPREAD)), s, phase, work)


def total(works: Sequence[cost.Work], s: Setup, phase: str) -> Prediction:
    parts = [seconds(work, s, phase) for work in works]
    return Prediction(sum(p.seconds for p in parts), sum(p.low_s for p in parts), sum(p.high_s for p in parts))


def advantage_ends(m: ModelConfig, dtype: str, wider: str, kv_dtype: str, context: int, s: Setup) -> int | None:
    """The smallest batch from which decoding with `dtype` is not faster than with `wider`; None: it always pays."""
    narrow, wide = (cost.weights(m, form) for form in (dtype, wider))

    def pays(batch: int) -> bool:
        contexts = [context] * batch
        a = seconds(cost.decode(m, narrow, kv_dtype, contexts), _as(s, dtype), "decode").seconds
        b = seconds(cost.decode(m, wide, kv_dtype, contexts), _as(s, wider), "decode").seconds
        return a < WORTH * b

    batch = 1
    while batch <= MOST_BATCH and pays(batch):
        batch *= 2
    if batch > MOST_BATCH:
        return None
    low, high = batch // 2, batch  # pays at low, not at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return high


def _as(s: Setup, dtype: str) -> Setup:
    return Setup(hardware=s.hardware, backend=s.backend, dtype=dtype, layers=s.layers)


def host_s(s: Setup, phase: str, work: cost.Work) -> float:
    """Seconds of a step that neither bytes nor operations explain."""
    called = phase == "prefill" or work.tokens > REPLAYED_TOKENS
    if s.measured:
        return speeds.host_s(work.rows, s.layers, called, s.hardware.rates)
    return HOST_S[s.backend] + s.layers * LAYER_S[s.backend][called]


def _calibrated(p: Prediction, s: Setup, phase: str, work: cost.Work) -> Prediction:
    host = host_s(s, phase, work)
    f = s.factors.get(phase, Factor())
    if not f.runs:
        spread = 2.0 if s.hardware.source == "assumed" else 1.0
        return Prediction(p.seconds + host, p.low_s / spread + host, p.high_s * spread + host)
    middle = f.median * (p.seconds + host)
    return Prediction(middle, min(f.low, 0.9 * f.median) * (p.seconds + host),
                      max(f.high, 1.1 * f.median) * (p.seconds + host))
