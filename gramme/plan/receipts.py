"""Who caused a step's time, and what time costs: seconds shared out to rows, joules and money made of seconds.

The weights are read once a step, whoever is in it: each row alone would have needed all of that, so rows share it
equally; what a row adds, it pays. That is the Shapley value (1953) of the predicted times, the one division that adds
up, treats equals alike and charges nobody for others. Knows no clock, no scheduler and no counter of energy.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gramme.config import ConfigError, ModelConfig, Price, Tariff
from gramme.plan import cost, roofline
from gramme.plan.roofline import Setup
from gramme.request import Spent

HOUR_S, KWH_J = 3600.0, 3.6e6
UNKNOWN_CARD = {"bandwidth": 1008e9, "fp32_accumulate": 165e12}  # its proportions are taken to be an RTX 4090's


class Piece(NamedTuple):
    """What a row ran: so many tokens of each kind from position `start`, and rows of logits."""

    start: int
    outputs: int
    prefill: int
    decode: int
    recomputed: int
    rejected: int

    @property
    def tokens(self) -> int:
        return self.prefill + self.decode + self.recomputed + self.rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What the machine draws at work, and how that is known: "RAPL", "NVML", "declared" or "unknown"."""

    watts: float | None = None
    source: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """None: the power, or the price, is not known."""

    seconds: float
    joules: float | None
    money: float | None


def tariff(m: ModelConfig, w: cost.Weights, kv_dtype: str, s: Setup) -> Tariff:
    """The seconds of `roofline.seconds` taken apart; on a GPU as if memory and arithmetic took turns."""
    bandwidth, compute, attention, elements = (_seconds(s, name) for name in (
        "bandwidth", s.compute, s.attention, "float32"))
    if s.hardware.kind == "cpu":
        elements = roofline.ELEMENT_OPS / s.hardware.rate("float32")
    kv = m.kv_token_bytes(kv_dtype)
    return Tariff(
        step_s=(w.layers + w.vectors) * bandwidth + roofline.host_s(s), head_s=(w.head or w.embed) * bandwidth,
        token_s=2 * cost.layer_elements(m) * compute + m.layers * (12 * m.width + 4 * m.ff_width) * elements
        + (w.embed / m.vocab_size + kv) * bandwidth,
        output_s=2 * m.vocab_size * m.width * compute, pair_s=4 * m.heads * m.head_dim * attention + m.heads * elements,
        key_s=kv / m.layers * bandwidth, windows=tuple(cost.windows(m).items()),
    )


def share(t: Tariff, seconds: float, pieces: Sequence[Piece]) -> list[Spent]:
    """The seconds of one step shared out to its rows; they add up to `seconds` where there is a row."""
    if not pieces:
        return []
    own = [_own_s(t, p) for p in pieces]
    head_s = t.head_s / max(1, sum(p.outputs > 0 for p in pieces))
    fixed = [t.step_s / len(pieces) + head_s * (p.outputs > 0) for p in pieces]
    scale = seconds / (sum(own) + sum(fixed))
    return [_split(p, scale * a, scale * b) for p, a, b in zip(pieces, own, fixed)]


def bill(seconds: float, power: Power, price: Price | None) -> Bill:
    joules = None if power.watts is None else seconds * power.watts
    if price is None:
        money = None
    elif price.unit == "h":
        money = price.amount * seconds / HOUR_S
    else:
        money = None if joules is None else price.amount * joules / KWH_J
    return Bill(seconds=seconds, joules=joules, money=money)


def per_million(seconds_per_token: float, power: Power, price: Price | None) -> str:
    """What a million tokens cost, as people read it."""
    b = bill(1e6 * seconds_per_token, power, price)
    energy = "" if b.joules is None else f", {b.joules / KWH_J:.3g} kWh ({power.source})"
    return f"{b.seconds / HOUR_S:.3g} h of machine{energy}" + ("" if b.money is None else f", {b.money:.3g} of money")


def _seconds(s: Setup, ceiling: str) -> float:
    """Of one byte or operation at the share of the ceiling that we reach; 0 where it is not counted."""
    share_ = roofline.SHARES[s.backend].get(ceiling)
    if share_ is None:
        return 0.0
    try:
        return 1 / (share_ * s.hardware.rate(ceiling))
    except ConfigError:
        return 1 / (share_ * UNKNOWN_CARD[ceiling])


def _own_s(t: Tariff, p: Piece) -> float:
    """What a row adds to a step."""
    n, pairs, keys = p.tokens, 0, 0
    for window, layers in t.windows:
        a, b = cost.seen(p.start, n, window)
        pairs, keys = pairs + layers * a, keys + layers * b
    return n * t.token_s + p.outputs * t.output_s + pairs * t.pair_s + keys * t.key_s


def _split(p: Piece, own_s: float, fixed_s: float) -> Spent:
    """By kind: each token pays alike for itself; a guess does not pay for what the step would have done without it."""
    kept = p.tokens - p.rejected
    each, base = own_s / p.tokens, fixed_s / (kept or p.tokens)
    return Spent(p.prefill * (each + base), p.decode * (each + base), p.recomputed * (each + base),
                 p.rejected * (each if kept else each + base), p.prefill, p.decode, p.recomputed, p.rejected)
