"""`gramme run --verbose`: the ledger of the first token, predictions beside measurements, and what they teach."""
import json
import math
import re

import pytest

from gramme.cli import verdict
from gramme.cli.main import run
from gramme.llm.llm import LLM
from gramme.plan import calibration
from gramme.plan.hardware import this_machine
from gramme.plan.others import Others
from gramme.request import PARTS, SamplingParams

LONG = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Others, "cores", lambda self: 0.0)  # whatever runs beside the tests
    return tmp_path / "gramme" / "calibration.json"


def said(capsys, *words):
    assert run(["run", "--raw", "--ignore-eos", "--max-model-len", "512", *words]) == 0
    return capsys.readouterr().err


def test_where_the_time_went_and_how_far_the_predictions_were_off(capsys):
    text = said(capsys, "-p", LONG, "-n", "20", "--verbose")
    [line] = [line for line in text.splitlines() if line.startswith("first token")]
    total, *parts = map(float, re.findall(r"(?:first token|[a-z]+) ([\d.e-]+)", line)[: 1 + len(PARTS)])
    assert all(f"{name} " in line for name in PARTS) and sum(parts) == pytest.approx(total, rel=0.05)
    for name in ("memory", "prompt", "a token"):
        assert re.search(rf"^{name} +predicted .* took ", text, re.M), text
    assert "predicted" not in said(capsys, "-p", LONG, "-n", "2")


def test_a_run_teaches_the_next_plan_unless_it_is_short_or_told_not_to(capsys, own_cache, monkeypatch):
    monkeypatch.setattr(calibration, "SANE", (0.0, math.inf))  # however long this process was stopped meanwhile
    said(capsys, "-p", LONG, "-n", "20", "--no-calibration")
    said(capsys, "-p", "a b", "-n", "4")
    assert not own_cache.exists()
    said(capsys, "-p", LONG, "-n", "20")
    assert {r["phase"] for r in json.loads(own_cache.read_text())["records"]} == {"prefill", "decode"}


def test_a_disturbed_run_teaches_nothing_and_says_so(capsys, own_cache, monkeypatch):
    monkeypatch.setattr(Others, "cores", lambda self: 64.0)
    assert "nothing learnt: others took 64.0 cores" in said(capsys, "-p", LONG, "-n", "20", "--verbose")
    assert not own_cache.exists()


def test_what_was_learnt_is_what_is_predicted():
    llm = LLM(kv_tokens=1024, max_model_len=512)
    try:
        params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0)
        [output] = llm.generate(LONG, params)
        before = {c.phase: c for c in verdict.checks(llm.engine, output, True)}
        assert set(before) == {"prefill", "decode"}
        p = llm.engine.plan
        calibration.remember(p.backend, p.dtype, p.ledger.weights, this_machine(), {"prefill": 3.0, "decode": 0.5})
        after = {c.phase: c for c in verdict.checks(llm.engine, output, True)}
        for phase, factor in (("prefill", 3.0), ("decode", 0.5)):
            assert after[phase].predicted.seconds == pytest.approx(factor * before[phase].predicted.seconds)
            assert after[phase].plain_s == before[phase].plain_s and after[phase].measured_s > 0
        ignoring = {c.phase: c.predicted for c in verdict.checks(llm.engine, output, False)}
        assert ignoring == {phase: c.predicted for phase, c in before.items()}
        [again] = llm.generate(LONG, params)
        cached = next(iter(verdict.checks(llm.engine, again, False)))
        assert cached.plain_s < before["prefill"].plain_s, "what was cached is not predicted to be computed"
    finally:
        llm.close()
