"""What graphics cards can do at most, and what a result measured on one of them says about another. Measures nothing.

A card is described by what its data sheet says: multiprocessors, boost clock, memory bus and VRAM; the rates follow
from the multiply-adds of one multiprocessor a clock. Sources: NVIDIA's architecture whitepapers of the GA102, Ada, RTX
Blackwell, A100 and H100, the H200's data sheet, and the specification pages of cards that these do not list. The rates
so derived equal the whitepapers' tables (tests/plan/test_gpus.py).
"""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gramme.config import ConfigError

Ceiling = Literal["bandwidth", "fp32_accumulate", "fp16_accumulate", "int8"]


@dataclass(frozen=True, slots=True)
class Chip:
    """Dense multiply-adds of one multiprocessor in one clock, by the type of the accumulator."""

    fp32_accumulate: int  # fp16 or bf16 inputs; half the rate on GeForce cards
    fp16_accumulate: int
    int8: int


LAUNCH_S = 1.3e-6  # between two kernels of one CUDA graph, measured on an H100 by the authors of "Look Ma, No Bubbles!"
# How far one engine's share differs between two cards: published pairs of 4090 and 3090 or 3090 Ti differ by 8 to 15 %
# (ExLlamaV2 70 and 61 % of the bandwidth, MLC 76 and 69, TensorRT-LLM 71 and 65, llama.cpp 56 and 52), a 5090 by 20.
SHARE_SPREAD = 0.2
VENDOR = {"NVIDIA", "GEFORCE", "SXM4", "SXM5", "HBM3"}

GEFORCE = Chip(256, 512, 1024)  # Ampere GA10x, Ada and Blackwell GB20x have the same tensor rates a clock
A100 = Chip(1024, 1024, 2048)
HOPPER = Chip(2048, 2048, 4096)


@dataclass(frozen=True, slots=True)
class GPU:
    """Peak figures; what a kernel reaches of them is measured, never assumed."""

    name: str
    vram_bytes: int
    bandwidth: float  # bytes/s
    multiprocessors: int
    clock: float  # Hz, boost
    chip: Chip

    def rate(self, ceiling: Ceiling) -> float:
        """bytes/s for "bandwidth", else operations/s, a multiply-add being two."""
        if ceiling == "bandwidth":
            return self.bandwidth
        madds: int = getattr(self.chip, ceiling)
        return 2.0 * madds * self.multiprocessors * self.clock


def _card(name: str, gib: int, bus_bits: int, gbit_s: float, multiprocessors: int, ghz: float,
          chip: Chip = GEFORCE) -> GPU:
    return GPU(name, gib << 30, bus_bits / 8 * gbit_s * 1e9, multiprocessors, ghz * 1e9, chip)


GPUS = {card.name: card for card in (  # A100 and H100 are the SXM modules with 80 GB
    _card("RTX 3060", 12, 192, 15.0, 28, 1.777),
    _card("RTX 3070", 8, 256, 14.0, 46, 1.725),
    _card("RTX 3080", 10, 320, 19.0, 68, 1.710),
    _card("RTX 3090", 24, 384, 19.5, 82, 1.695),
    _card("RTX 3090 Ti", 24, 384, 21.0, 84, 1.860),
    _card("RTX 4060", 8, 128, 17.0, 24, 2.460),
    _card("RTX 4060 Ti", 16, 128, 18.0, 34, 2.535),
    _card("RTX 4070", 12, 192, 21.0, 46, 2.475),
    _card("RTX 4070 Ti SUPER", 16, 256, 21.0, 66, 2.610),
    _card("RTX 4080", 16, 256, 22.4, 76, 2.505),
    _card("RTX 4090", 24, 384, 21.0, 128, 2.520),
    _card("RTX 5070", 12, 192, 28.0, 48, 2.512),
    _card("RTX 5070 Ti", 16, 256, 28.0, 70, 2.452),
    _card("RTX 5080", 16, 256, 30.0, 84, 2.617),
    _card("RTX 5090", 32, 512, 28.0, 170, 2.407),
    _card("A100", 80, 5120, 3.186, 108, 1.410, A100),
    _card("H100", 80, 5120, 5.235, 132, 1.830, HOPPER),
    _card("H200", 141, 6144, 6.25, 132, 1.830, HOPPER),
)}


def gpu(name: str) -> GPU:
    """The card of that name, also as a driver says it ("NVIDIA GeForce RTX 4090"). Raises ConfigError for others.

    Every word counts, so that a laptop's "RTX 4090 Laptop GPU" is not taken for the desktop card.
    """
    for card in GPUS.values():
        if _words(card.name) == _words(name):
            return card
    raise ConfigError(f"no figures for the graphics card {name!r:.60}; there are: {', '.join(GPUS)}")


def _words(name: str) -> set[str]:
    """The words that tell a card from another; "rtx4070tisuper" has those of "RTX 4070 Ti SUPER"."""
    spaced = re.sub(r"(?<=RTX)(?=\d)|(?<=\d)(?=TI|SUPER)|(?<=TI)(?=SUPER)", " ", name.upper())
    return {w for w in re.findall(r"[A-Z0-9]+", spaced) if not re.fullmatch(r"\d+GB", w)} - VENDOR


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a step: the expected figure, and the range that it should fall in."""

    seconds: float
    low_s: float
    high_s: float


def share(card: GPU, ceiling: Ceiling, amount: float, seconds: float) -> float:
    """Which part of a ceiling was reached: `amount` bytes or operations in `seconds` on `card`."""
    return amount / card.rate(ceiling) / seconds


class Rates(Protocol):
    """Anything whose ceilings are known: a card, or this machine."""

    def rate(self, ceiling: Any) -> float: ...


def predict(card: Rates, work: Mapping[Any, float], shares: Mapping[Any, float], launches: int = 0) -> Prediction:
    """How long a step takes on `card` that reaches the same shares of its ceilings as were measured elsewhere.

    `work` is what the step needs of each ceiling in bytes or operations, `shares` what the sum of kernel times reached
    of each (of a step bound by that ceiling), `launches` the kernels that it starts. The expected time is that of the
    tightest ceiling. The range supposes shares SHARE_SPREAD better, or that much worse with nothing overlapped.
    """
    if missing := work.keys() - shares.keys():
        raise ConfigError(f"no measured share of: {', '.join(sorted(missing))}")
    times = [amount / (card.rate(ceiling) * shares[ceiling]) for ceiling, amount in work.items()]
    floor = max(amount / card.rate(ceiling) for ceiling, amount in work.items())
    gaps = launches * LAUNCH_S
    low = max(floor, max(times) / (1 + SHARE_SPREAD)) + gaps
    return Prediction(max(times) + gaps, low, sum(times) * (1 + SHARE_SPREAD) + gaps)
