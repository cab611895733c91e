"""Who caused a step's time, and what time costs: seconds shared out to rows, joules and money made of seconds.

The weights are read once a step, whoever is in it: each row alone would have needed all of that, so rows share it
equally; what a row adds, it pays. That is the Shapley value (1953) of the predicted times, the one division that adds
up, treats equals alike and charges nobody for others. Knows no clock, no scheduler and no counter of energy.
"""
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from gramme.config import ConfigError, ModelConfig, Price, Tariff
from gramme.plan import cost, roofline, speeds
from gramme.plan.roofline import Setup
from gramme.plan.units import ms
from gramme.request import Spent

HOUR_S, KWH_J = 3600.0, 3.6e6
KINDS = ("prefill", "decode", "cached", "recomputed", "rejected")
ONE = cost.Work(tokens=1)  # a step of few tokens, its rows aside
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
class Entry:
    """A line of a receipt. None: the power, or the price, is not known."""

    kind: str
    tokens: int
    seconds: float
    joules: float | None
    money: float | None


def tariff(m: ModelConfig, w: cost.Weights, kv_dtype: str, s: Setup) -> Tariff:
    """The seconds of `roofline.seconds` taken apart; on a GPU as if memory and arithmetic took turns."""
    if s.measured:
        return _measured(m, w, kv_dtype, s)
    bandwidth, compute, attention, elements = (_seconds(s, name) for name in (
        "bandwidth", s.compute, s.attention, "float32"))
    if s.hardware.kind == "cpu":
        elements = roofline.ELEMENT_OPS / s.hardware.rate("float32")
    kv = m.kv_token_bytes(kv_dtype)
    return Tariff(
        step_s=(w.layers + w.vectors) * bandwidth + roofline.host_s(s, "decode", ONE),
        head_s=(w.head or w.embed) * bandwidth,
        token_s=2 * cost.layer_elements(m) * compute + m.layers * (12 * m.width + 4 * m.ff_width) * elements
        + (w.embed / m.vocab_size + kv) * bandwidth,
        output_s=2 * m.vocab_size * m.width * compute, pair_s=4 * m.heads * m.head_dim * attention + m.heads * elements,
        key_s=kv / m.layers * bandwidth, windows=tuple(cost.windows(m).items()),
    )


def _measured(m: ModelConfig, w: cost.Weights, kv_dtype: str, s: Setup) -> Tariff:
    """By the speeds of our kernels on this machine, along straight lines."""
    rates, layers, head = s.hardware.rates, cost.layer_elements(m), m.vocab_size * m.width
    once_s, each_s = speeds.line(s.hardware, cost.Product(layers, w.layers, 1, cost.layer_columns(m)))
    kv = m.kv_token_bytes(kv_dtype)
    return Tariff(
        step_s=layers * once_s + w.vectors / rates["bandwidth"] + roofline.host_s(s, "decode", ONE),
        head_s=head * once_s,
        token_s=layers * each_s + m.layers * m.width / rates[speeds.STREAM]
        + 4 * m.layers * speeds.MASKED_KEYS * m.heads * m.head_dim / rates[speeds.ATTENTION]
        + (w.embed / m.vocab_size + kv) / rates["bandwidth"],
        output_s=head * each_s + 1 / rates[speeds.ROW] + m.layers / rates[speeds.LAYER_ROW],
        pair_s=4 * m.heads * m.head_dim / rates[speeds.ATTENTION],
        key_s=2 * m.kv_heads * m.head_dim * speeds.key_element_s(m.head_dim, rates),
        windows=tuple(cost.windows(m).items()),
    )


def share(t: Tariff, seconds: float, pieces: Sequence[Piece], watts: float = 0.0) -> list[Spent]:
    """The seconds of one step shared out to its rows; they add up to `seconds` where there is a row."""
    if not pieces:
        return []
    own = [_own_s(t, p) for p in pieces]
    head_s = t.head_s / max(1, sum(p.outputs > 0 for p in pieces))
    fixed = [t.step_s / len(pieces) + head_s * (p.outputs > 0) for p in pieces]
    scale = seconds / (sum(own) + sum(fixed))
    return [_split(p, scale * a, scale * b, watts) for p, a, b in zip(pieces, own, fixed)]


def receipt(spent: Spent, power: Power, price: Price | None) -> list[Entry]:
    """An entry for each kind of token, then their sum. Joules belong to kinds as seconds do."""
    watts = spent.joules / spent.seconds if spent.seconds else 0.0
    entries = []
    for kind in KINDS:
        seconds = getattr(spent, f"{kind}_s", 0.0)
        entries.append(_entry(kind, getattr(spent, f"{kind}_tokens"), seconds, watts * seconds, power, price))
    tokens = sum(e.tokens for e in entries)
    return [*entries, _entry("total", tokens, spent.seconds, spent.joules, power, price)]


def as_json(spent: Spent, power: Power, price: Price | None) -> dict[str, Any]:
    """{"total": {"tokens", "seconds", "joules", "money"}, the same for each of KINDS, and the "power"}."""
    entries = {e.kind: asdict(e) for e in receipt(spent, power, price)}
    for entry in entries.values():
        del entry["kind"]
    return entries | {"power": asdict(power)}


def money(seconds: float, joules: float | None, price: Price | None) -> float | None:
    """In the price's own currency; None: no price was declared, or it is for energy that nobody knows."""
    if price is None or (price.unit == "kWh" and joules is None):
        return None
    return price.amount * (seconds / HOUR_S if price.unit == "h" else (joules or 0.0) / KWH_J)


def per_million(seconds_per_token: float, power: Power, price: Price | None) -> Entry:
    """What a million tokens cost."""
    seconds = 1e6 * seconds_per_token
    return _entry("million", 10**6, seconds, seconds * (power.watts or 0.0), power, price)


def said(e: Entry) -> str:
    """An entry's cost as people read it."""
    time = f"{e.seconds / HOUR_S:.3g} h" if e.seconds >= HOUR_S else ms(e.seconds)
    words = [f"{time} of machine"]
    if e.joules is not None:
        words.append(f"{e.joules / KWH_J:.3g} kWh" if e.joules >= KWH_J / 100 else f"{e.joules:.3g} J")
    return ", ".join(words if e.money is None else [*words, f"{e.money:.3g} of money"])


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


def _entry(kind: str, tokens: int, seconds: float, joules: float, power: Power, price: Price | None) -> Entry:
    known = None if power.watts is None else joules
    return Entry(kind=kind, tokens=tokens, seconds=seconds, joules=known, money=money(seconds, known, price))


def _split(p: Piece, own_s: float, fixed_s: float, watts: float) -> Spent:
    """By kind: each token pays alike for itself; a guess does not pay for what the step would have done without it."""
    kept = p.tokens - p.rejected
    each, base = own_s / p.tokens, fixed_s / (kept or p.tokens)
    return Spent(p.prefill * (each + base), p.decode * (each + base), p.recomputed * (each + base),
                 p.rejected * (each if kept else each + base), watts * (own_s + fixed_s),
                 p.prefill, p.decode, p.recomputed, p.rejected)
