"""`gramme bench run` and `doctor --measure`: shapes of what they say, and what they teach the planner."""
import json
import subprocess
import sys

import pytest

from gramme.bench import run as bench
from gramme.cli.main import run
from gramme.config import ConfigError, EngineConfig
from gramme.kernels.present import available
from gramme.llm.engine import Engine
from gramme.plan import calibration
from gramme.plan.hardware import this_machine


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bench.Others, "cores", lambda self: 0.0)  # whatever runs beside the tests


def last_line(capsys, *words):
    assert run(list(words)) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_has_the_rows_with_ceilings_predictions_and_memory(capsys):
    made = last_line(capsys, "bench", "run", "--repeats", "2", "--max-num-seqs", "8")
    assert list(made["results"]) == ["pp256", "tg48", "tg48x8"]
    for row in made["results"].values():
        assert row["tokens_per_s"] > 0 and row["gb_per_s"] > 0 and row["gop_per_s"] > 0 and row["predicted_s"] > 0
        assert row["bound"] in ("memory", "compute") and row["share"] > 0
    assert 0 < made["memory"]["measured_bytes"] <= made["memory"]["predicted_bytes"] + (20 << 20)


@pytest.mark.skipif("cpu" not in available(), reason="numpy's results have no place of their own")
def test_what_was_not_measured_is_said_and_memory_is_what_was_predicted_for_it():
    """In a process of its own: memory that another test has left free would be taken again."""
    words = (sys.executable, "-m", "gramme", "bench", "run", "--repeats", "1")
    *rows, memory, _, _, _, last = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(rows) == 3 and all("of the assumed " in row for row in rows) and "%)" in memory
    made = json.loads(last)["memory"]
    assert made["predicted_bytes"] - (12 << 20) <= made["measured_bytes"] <= made["predicted_bytes"]


def test_errors_teach_the_next_prediction_unless_told_not_to():
    engine = Engine.load(EngineConfig(max_num_seqs=4, skip_tokenizer_init=True, prefix_caching=False))
    machine, p = this_machine(), engine.plan
    todo = [bench.Test(name="tg4", prompt=4, answer=4)]
    list(bench.bench(engine, machine, todo, 1, calibrated=False))
    assert calibration.factors(p.backend, p.dtype, p.ledger.weights, machine) == {}
    first = next(bench.bench(engine, machine, todo, 1))
    again = bench.judge(engine.model, p, machine, todo[0], [first.seconds])
    assert again.predicted_s == pytest.approx(first.seconds)
    with pytest.raises(ConfigError, match="a step holds 4"):
        next(bench.bench(engine, machine, [bench.Test(name="x", prompt=4, answer=4, batch=5)]))
    with pytest.raises(ConfigError, match="contexts hold"):
        next(bench.bench(engine, machine, [bench.Test(name="x", prompt=10**5)]))


def test_what_was_disturbed_teaches_nothing(monkeypatch):
    monkeypatch.setattr(bench.Others, "cores", lambda self: 64.0)
    engine = Engine.load(EngineConfig(max_num_seqs=4, skip_tokenizer_init=True, prefix_caching=False))
    p = engine.plan
    list(bench.bench(engine, this_machine(), [bench.Test(name="tg4", prompt=4, answer=4)], 1))
    assert calibration.factors(p.backend, p.dtype, p.ledger.weights, this_machine()) == {}


def test_doctor_measures_and_plans_find_it(capsys, monkeypatch):
    monkeypatch.setattr("gramme.cli.doctor.measure_speeds", lambda cores, bandwidth: {})
    monkeypatch.setattr("gramme.cli.doctor.measure", lambda cores: {"bandwidth": 2e10, "float32": 1e11, "int8": 3e11})
    assert "measured" in last_line(capsys, "doctor", "--measure", "--json")["ceilings"]["source"]
    assert this_machine().rate("bandwidth") == 2e10
    assert last_line(capsys, "plan", "dummy:1b", "--json")["hardware"]["rates"].startswith("measured")
