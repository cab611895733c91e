"""How much a language may lose, each by its own limits, from what the user wrote. Knows no model."""
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gramme.config import ConfigError


@dataclass(frozen=True)
class Limits:
    """Of one language: upper ends of 95 % intervals must not lie above them."""

    max_kl: float = 0.05  # nats, mean
    max_ppl_increase: float = 0.04


def read_limits(max_kl: str, max_ppl_increase: str, languages: Collection[str]) -> dict[str, Limits]:
    """By language. Raises ConfigError naming the flag."""
    default = Limits()
    kl = _by_language("--max-kl", max_kl, default.max_kl, languages)
    rise = _by_language("--max-ppl-increase", max_ppl_increase, default.max_ppl_increase, languages)
    return {language: Limits(kl[language], rise[language]) for language in languages}


def said(limits: Mapping[str, Limits]) -> str:
    """As the card has it, in one clause for limits that are the same in every language."""
    one = lambda x: f"a mean KL of {x.max_kl:g} nats and {100 * x.max_ppl_increase:g} % of perplexity"
    if len(set(limits.values())) == 1:
        return f"{one(next(iter(limits.values())))}, for the upper end of the\ninterval, in each language"
    return "for the upper end of the\ninterval " + "; ".join(f"in {name} {one(x)}" for name, x in limits.items())


def _by_language(flag: str, text: str, default: float, languages: Collection[str]) -> dict[str, float]:
    """0.05: all; fr:0.03,en:0.05: each; 0.05,fr:0.03: all but French. Whoever is not named has the default."""
    found: dict[str, float] = {}
    for entry in text.split(","):
        name, _, value = entry.rpartition(":")
        if name and name not in languages:
            raise ConfigError(f"{flag} {text!r:.60}: no text is judged in {name!r:.30}; there are: "
                              f"{', '.join(languages)}")
        if name in found:
            raise ConfigError(f"{flag} {text!r:.60} gives {f'{name} two limits' if name else 'two limits for all'}")
        found[name] = _number(flag, text, value)
    return {language: found.get(language, found.get("", default)) for language in languages}


def _number(flag: str, text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ConfigError(f"{flag} must be a number, or LANGUAGE:NUMBER with commas, not {text!r:.60}")
    return number
