"""Typed reading of a model's config.json: a field, its type, its bounds, its default, on one line each."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gramme.config import ModelError

REQUIRED = object()


@dataclass(frozen=True)
class Fields:
    """Every read raises ModelError naming the file, the field and the value when it is not as it should be."""

    file: str
    raw: Mapping[str, Any]

    def integer(self, key: str, default: Any = REQUIRED, low: int = 1, high: int = 1 << 24) -> Any:
        value = self._get(key, default)
        if value is default:
            return value
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, value, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: Any = REQUIRED, low: float = 0, high: float = 1e12) -> Any:
        value = self._get(key, default)
        if value is default:
            return value
        if type(value) not in (int, float) or not low < value <= high:
            raise self.error(key, value, f"a number above {low:g}, up to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.error(key, value, "true or false")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """An integer or a list of them; missing and null are ()."""
        value = self.raw.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(v) is int and 0 <= v < 1 << 31 for v in values):
            raise self.error(key, value, "a token id or a list of them")
        return tuple(values)

    def error(self, key: str, value: Any, what: str) -> ModelError:
        return ModelError(f"{self.file}: {key} must be {what}, not {value!r:.60}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            if default is REQUIRED:
                raise ModelError(f"{self.file}: {key} is missing")
            return default
        return value
