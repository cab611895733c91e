"""Sizes, times, powers and prices as people write them. A number without a unit is refused: it is ambiguous."""
import re

from gramme.config import ConfigError, Price, PriceUnit

SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
POWERS = {"mW": 1e-3, "W": 1.0, "kW": 1e3}
PRICES: dict[str, PriceUnit] = {"kWh": "kWh", "h": "h"}
MOST = 1e18


def parse_bytes(text: str) -> int:
    """"24GB", "512 MiB" -> bytes. Raises ConfigError."""
    number, unit = _split(text)
    if unit.endswith("b") and unit != unit.lower():
        raise ConfigError(f"{text!r:.40} may be bits: write {unit[:-1]}B for bytes")
    if unit.upper() not in SIZES or not 1 <= number * SIZES[unit.upper()] <= MOST:
        raise ConfigError(f"a size needs a number above 0 and a unit, such as 24GB or 512MiB, not {text!r:.40}")
    return int(number * SIZES[unit.upper()])


def parse_seconds(text: str) -> float:
    """"100ms", "1.5 s" -> seconds. Raises ConfigError."""
    number, unit = _split(text)
    if unit not in TIMES or not 0 < number * TIMES[unit] <= MOST:
        raise ConfigError(f"a time needs a number above 0 and a unit, such as 100ms or 2s, not {text!r:.40}")
    return number * TIMES[unit]


def parse_watts(text: str) -> float:
    """"65W", "1.2 kW" -> watts. Raises ConfigError."""
    number, unit = _split(text)
    if unit not in POWERS or not 0 < number * POWERS[unit] <= MOST:
        raise ConfigError(f"a power needs a number above 0 and a unit, such as 65W, not {text!r:.40}")
    return number * POWERS[unit]


def parse_price(text: str) -> Price:
    """"0.25/kWh", "1.20 / h" -> a price, its currency being the user's. Raises ConfigError."""
    number, unit = _split(text.replace("/", " ", 1))
    if "/" not in text or unit not in PRICES or not 0 < number <= MOST:
        raise ConfigError(f"a price needs a number above 0 and a unit, such as 0.25/kWh or 1.20/h, not {text!r:.40}")
    return Price(amount=number, unit=PRICES[unit])


def gb(n: float) -> str:
    if n >= 10**9:
        return f"{n / 1e9:.2f} GB"
    return f"{n / 1e6:.1f} MB" if n >= 10**5 else f"{n / 1e3:.1f} KB"


def ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.{1 if seconds >= 0.01 else 2}f} ms"


def minutes(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _split(text: str) -> tuple[float, str]:
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]+)\s*", text)
    return (float(match[1]), match[2]) if match else (0.0, "")
