"""What `gramme doctor` says of the CPU's kernels: the level, the others, who chose, and which gave a wrong answer."""
import json

import pytest

from gramme.cli.main import run
from gramme.config import ConfigError
from gramme.kernels.cpu import known, library

try:
    LEVELS = list(library.levels())
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(autouse=True)
def chosen_anew(monkeypatch):
    monkeypatch.delenv("GRAMME_CPU_LEVEL", raising=False)
    known.best_level.cache_clear()
    yield
    known.best_level.cache_clear()


def level_of(capsys):
    assert run(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out)["cpu_level"], shown.err


def test_the_level_and_the_others_are_shown(capsys):
    level, said = level_of(capsys)
    assert level.startswith(f"{LEVELS[0]} (the best") and all(name in level for name in LEVELS) and said == ""


@pytest.mark.parametrize("name", LEVELS)
def test_a_forced_level_is_taken_and_said_to_be(name, monkeypatch, capsys):
    monkeypatch.setenv("GRAMME_CPU_LEVEL", name)
    assert level_of(capsys)[0].startswith(f"{name} (forced by GRAMME_CPU_LEVEL")


def test_a_level_that_is_not_here_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setenv("GRAMME_CPU_LEVEL", "avx9")
    assert run(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "GRAMME_CPU_LEVEL='avx9'" in said and LEVELS[-1] in said


def test_switched_off_there_is_no_level(monkeypatch, capsys):
    monkeypatch.setenv("GRAMME_CPU_LEVEL", "off")
    assert level_of(capsys)[0] == "none"


@pytest.mark.skipif(len(LEVELS) < 2, reason="this processor runs one level")
def test_a_level_that_gives_a_wrong_answer_is_passed_over_aloud(monkeypatch, capsys):
    monkeypatch.setattr(known, "right", lambda level: level != LEVELS[0])
    level, said = level_of(capsys)
    assert level.startswith(f"{LEVELS[1]} (") and f"the {LEVELS[0]} kernels gave a wrong answer" in said


@pytest.mark.skipif(len(LEVELS) < 2, reason="this processor runs one level")
def test_an_untested_level_is_passed_over_aloud_unless_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(library, "UNTESTED", LEVELS[:1])
    monkeypatch.setattr(known, "UNTESTED", LEVELS[:1])
    level, said = level_of(capsys)
    assert level.startswith(f"{LEVELS[1]} (") and f"the {LEVELS[0]} kernels are untested" in said
    known.best_level.cache_clear()
    monkeypatch.setenv("GRAMME_CPU_LEVEL", LEVELS[0])
    level, said = level_of(capsys)
    assert level.startswith(f"{LEVELS[0]} (") and "untested" in level and said == ""


def test_the_threads_are_those_that_a_run_would_take(capsys, monkeypatch):
    monkeypatch.setattr("gramme.plan.hardware.threads", lambda: 3)
    assert run(["doctor", "--json"]) == 0
    assert "3 threads" in json.loads(capsys.readouterr().out)["backends"]["cpu"]
