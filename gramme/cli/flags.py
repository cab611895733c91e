"""Records whose fields are command-line flags, environment variables and configuration keys at once.

A flag wins over GRAMME_NAME in the environment, which wins over the key in --config FILE (TOML), which wins over the
default. Imports nothing heavy: `gramme --help` must answer at once.
"""
import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from gramme.config import ConfigError

Record = TypeVar("Record")
TRUE, FALSE = ("1", "on", "true", "yes"), ("0", "off", "false", "no")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def options(record: type) -> dict[str, tuple[Field[Any], type]]:
    """The fields that were declared with `config.option`, with the type of their value; a tuple is of strings."""
    hints = get_type_hints(record)
    return {f.name: (f, _plain(hints[f.name])) for f in fields(record) if "help" in f.metadata}


def add_flags(parser: argparse.ArgumentParser, records: Sequence[type]) -> None:
    parser.add_argument("--config", metavar="FILE", help="TOML file whose keys are the flags' names")
    for record in records:
        for name, (f, kind) in options(record).items():
            short = ["-" + f.metadata["short"]] if f.metadata["short"] else []
            parser.add_argument(*short, "--" + name.replace("_", "-"), default=None,
                                help=f.metadata["help"].replace("%", "%%"), **_form(f, kind))


def settle(args: argparse.Namespace, record: type[Record]) -> Record:
    """A record from flags, environment and file. Raises ConfigError naming the variable or key that is wrong.

    args.model, where a verb has one, is EngineConfig's `model`; args.keys are the keys that a file may have.
    """
    file = args.config or os.environ.get("GRAMME_CONFIG")
    from_file = _read_file(file, args.keys) if file else {}
    values = {}
    for f, kind in [*options(record).values(), *((f, str) for f in fields(record) if f.name == "model")]:
        variable = f"GRAMME_{f.name.upper()}"
        if getattr(args, f.name, None) is not None:
            values[f.name] = _parse("--" + f.name.replace("_", "-"), getattr(args, f.name), f, kind)
        elif variable in os.environ:
            values[f.name] = _parse(variable, os.environ[variable], f, kind)
        elif f.name in from_file:
            values[f.name] = _parse(f"{file}: {f.name}", from_file[f.name], f, kind)
    return record(**values)


def _form(f: Field[Any], kind: type) -> dict[str, Any]:
    """How argparse reads the flag."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind is tuple:
        return {"action": "append", "metavar": "STR"}
    choices = f.metadata["choices"] or None
    return {"type": kind, "choices": choices, "metavar": None if choices else kind.__name__.upper()}


def _parse(where: str, value: Any, f: Field[Any], kind: type) -> Any:
    """A value of the field's kind from a flag's value, a variable's text or what TOML holds."""
    if kind is tuple:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(map(str, value))
    if kind is bool:
        text = str(value).lower()
        if text in TRUE or text in FALSE:
            return text in TRUE
        raise ConfigError(f"{where} must be on or off, not {value!r:.40}")
    try:
        if isinstance(value, bool):
            raise TypeError
        parsed = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where} must be of type {kind.__name__}, not {value!r:.40}") from None
    choices = f.metadata.get("choices")
    if choices and parsed not in choices:
        raise ConfigError(f"{where} must be one of {', '.join(choices)}, not {value!r:.40}")
    return parsed


def _read_file(path: str, keys: Collection[str]) -> dict[str, Any]:
    """The file's keys as field names."""
    import tomllib

    try:
        found = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--config {path}: {error!s:.120}") from None
    for key in found:
        if key.replace("-", "_") not in keys:
            raise ConfigError(f"--config {path}: there is no option {key!r:.40}")
    return {key.replace("-", "_"): value for key, value in found.items()}


def _plain(hint: Any) -> type:
    """int | None -> int; tuple[str, ...] -> tuple."""
    if isinstance(hint, UnionType):
        hint = next(t for t in get_args(hint) if t is not type(None))
    return get_origin(hint) or hint
