"""Command-line flags made from EngineConfig's fields: each is also an environment variable and a configuration key.

A flag wins over GRAMME_NAME in the environment, which wins over the key in --config FILE (TOML), which wins over the
default. Imports nothing heavy: `gramme --help` must answer at once.
"""
import argparse
import os
import tomllib
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from gramme.config import ConfigError, EngineConfig

TRUE, FALSE = ("1", "on", "true", "yes"), ("0", "off", "false", "no")


def options(record: type) -> dict[str, tuple[Field[Any], type]]:
    """The fields that were declared with `config.option`, with the type of their value."""
    hints = get_type_hints(record)
    return {f.name: (f, _plain(hints[f.name])) for f in fields(record) if "help" in f.metadata}


def add_flags(parser: argparse.ArgumentParser, *records: type) -> None:
    parser.add_argument("--config", metavar="FILE", help="TOML file whose keys are the flags' names")
    for name, (f, kind) in _all_options(records or (EngineConfig,)).items():
        flag, text = "--" + name.replace("_", "-"), f.metadata["help"].replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = f.metadata["choices"] or None
            metavar = None if choices else kind.__name__.upper()
            parser.add_argument(flag, type=kind, choices=choices, default=None, help=text, metavar=metavar)


def settle(args: argparse.Namespace, record: type = EngineConfig, *others: type, **fixed: Any) -> Any:
    """A record from flags, environment and file. Raises ConfigError naming the variable or key that is wrong.

    The keys of `others` may stand in the file too.
    """
    from_file = _read_file(args.config)
    known, allowed = options(record), _all_options((record, *others))
    for key in from_file:
        if key.replace("-", "_") not in allowed:
            raise ConfigError(f"{args.config}: there is no option {key!r}")
    values = dict(fixed)
    for name, (f, kind) in known.items():
        variable = f"GRAMME_{name.upper()}"
        if getattr(args, name, None) is not None:
            values[name] = getattr(args, name)
        elif variable in os.environ:
            values[name] = _parse(variable, os.environ[variable], f, kind)
        elif (key := next((k for k in from_file if k.replace("-", "_") == name), None)) is not None:
            values[name] = _parse(f"{args.config}: {key}", from_file[key], f, kind)
    return record(**values)


def _all_options(records: Sequence[type]) -> dict[str, tuple[Field[Any], type]]:
    return {name: option for record in records for name, option in options(record).items()}


def _parse(where: str, value: Any, f: Field[Any], kind: type) -> Any:
    text = str(value).lower()
    if kind is bool:
        if text in TRUE or text in FALSE:
            return text in TRUE
        raise ConfigError(f"{where} must be on or off, not {value!r:.40}")
    try:
        parsed = kind(value)
    except ValueError:
        raise ConfigError(f"{where} must be of type {kind.__name__}, not {value!r:.40}") from None
    if f.metadata["choices"] and parsed not in f.metadata["choices"]:
        raise ConfigError(f"{where} must be one of {', '.join(f.metadata['choices'])}, not {value!r:.40}")
    return parsed


def _read_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}") from None


def _plain(hint: Any) -> type:
    """int | None -> int."""
    return next(t for t in get_args(hint) if t is not type(None)) if isinstance(hint, UnionType) else hint


