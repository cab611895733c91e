"""The texts that a model is calibrated on and judged by: the package's own, or files that the user names."""
from collections.abc import Sequence
from pathlib import Path

from gramme.config import ConfigError

SHIPPED = Path(__file__).parent / "texts"
LANGUAGES = ("fr", "en")
MAX_BYTES = 64 << 20


def shipped(kind: str, languages: Sequence[str] = LANGUAGES) -> dict[str, str]:
    """language -> text; kind is "calibration" or "held-out". Raises ConfigError, with the languages that there are."""
    for language in languages:
        if language not in LANGUAGES:
            raise ConfigError(f"no {kind} text in {language!r:.20} is shipped; there are: {', '.join(LANGUAGES)}")
    return {language: (SHIPPED / f"{kind}.{language}.txt").read_text("utf-8") for language in languages}


def read(named: Sequence[str]) -> dict[str, str]:
    """name -> text, for files given as NAME:FILE or FILE, whose name is then its own; files of one name are joined."""
    out: dict[str, str] = {}
    for entry in named:
        name, path = _split(entry)
        out[name] = out.get(name, "") + _read(path)
    return out


def _split(entry: str) -> tuple[str, Path]:
    name, colon, path = entry.partition(":")
    if colon and name.isidentifier() and not Path(entry).exists():
        return name, Path(path)
    return Path(entry).stem, Path(entry)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes, at most {MAX_BYTES} are read")
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
