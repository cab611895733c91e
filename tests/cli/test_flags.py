"""A flag, a variable and a key of a file say the same thing; what is wrong with one is said in a line that names it."""
import itertools
from dataclasses import MISSING, fields

import pytest

from gramme.cli.flags import options, settle
from gramme.cli.main import VERBS, every_verb, parser
from gramme.config import ConfigError, EngineConfig
from gramme.serve.options import ServeOptions

ALL = [*VERBS.items(), *((f"{name} {own}", v) for name, verb in VERBS.items() for own, v in verb.measures.items())]
PARSER = parser()
FLAGS = [(verb, record, name) for verb, v in ALL for record in v.records for name in options(record)]


def another(f, kind):
    """Text for a value that is not the field's default, and the value."""
    if f.metadata["choices"]:
        chosen = next(c for c in f.metadata["choices"] if c != f.default)
        return chosen, chosen
    if kind is bool:
        return ("off", False) if f.default else ("on", True)
    return {int: ("7", 7), float: ("0.25", 0.25), str: ("text", "text"), tuple: ("text", ("text",))}[kind]


def parsed(verb, *argv):
    needed = {"eval": ["ppl"], "quantize": ["model", "out"]}.get(verb, [])
    return PARSER.parse_args([*verb.split(), *needed, *argv])


@pytest.mark.parametrize("verb, record, name", FLAGS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_flag_is_a_variable_and_a_key(verb, record, name, monkeypatch, tmp_path):
    f, kind = options(record)[name]
    text, value = another(f, kind)
    flag = f"--{name.replace('_', '-')}"
    flag_args = [flag if value is True else "--no" + flag[1:]] if kind is bool else [flag, text]
    assert getattr(settle(parsed(verb, *flag_args), record), name) == value
    file = tmp_path / "c.toml"
    for key in {name, name.replace("_", "-")}:
        file.write_text(f"{key} = {text if kind in (int, float) else repr(text)}\n")
        assert getattr(settle(parsed(verb, "--config", str(file)), record), name) == value
    monkeypatch.setenv(f"GRAMME_{name.upper()}", text)
    assert getattr(settle(parsed(verb), record), name) == value
    monkeypatch.delenv(f"GRAMME_{name.upper()}")
    assert getattr(settle(parsed(verb), record), name) == f.default


def test_flag_over_variable_over_file_over_default(monkeypatch, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("threads = 3\nport = 5\nmodel = 'm'\n")
    monkeypatch.setenv("GRAMME_CONFIG", str(file))
    assert settle(parsed("run"), EngineConfig).threads == 3
    assert settle(parsed("run"), EngineConfig).model == "m"
    monkeypatch.setenv("GRAMME_THREADS", "2")
    monkeypatch.setenv("GRAMME_MODEL", "n")
    assert settle(parsed("run"), EngineConfig).threads == 2
    assert settle(parsed("run"), EngineConfig).model == "n"
    assert settle(parsed("run", "o", "--threads", "1"), EngineConfig) == EngineConfig(threads=1, model="o")
    assert settle(parsed("serve"), ServeOptions).port == 5


@pytest.mark.parametrize("text, words", [
    ("no_such = 1", "no_such"), ("threads = 'x'", "threads must be of type int"), ("threads = true", "threads"),
    ("threads = [1]", "threads"), ("prefix_caching = 5", "on or off"), ("dtype = 'int3'", "one of auto"),
    ("a =", "c.toml"), ("[threads]\na = 1", "threads"), ("\x00", "c.toml")])
def test_a_wrong_file_is_refused_by_name(text, words, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        settle(parsed("run", "--config", str(file)), EngineConfig)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable, text", [("PORT", "x"), ("PORT", ""), ("METRICS_PREFIX", "other"), ("PORT", "1.5")])
def test_a_wrong_variable_is_refused_by_name(variable, text, monkeypatch):
    monkeypatch.setenv(f"GRAMME_{variable}", text)
    with pytest.raises(ConfigError, match=f"GRAMME_{variable} must be"):
        settle(parsed("serve"), ServeOptions)


def test_no_two_records_of_a_verb_have_a_field_of_the_same_name_and_all_have_defaults():
    for verb in every_verb():
        names = list(itertools.chain(*(options(record) for record in verb.records)))
        assert len(names) == len(set(names))
        assert all(f.default is not MISSING for record in verb.records for f in fields(record))
