"""`gramme bench serve`, `sweep` and `compare` as a person meets them, against a server of the test and gramme's own."""
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from sham import Sham, stream, token

from gramme.cli.bench_load import engine_flags
from gramme.cli.main import run
from gramme.config import EngineConfig

LIMIT_S = 600  # of a test that hangs
FAST = ["--rate", "inf", "--requests", "8", "--prompt-tokens", "9", "--output-tokens", "3"]


def said(capsys, *words, code=0):
    assert run(["bench", *words]) == code
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def keep_signals():
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.fixture
def sham(keep_signals):
    made = Sham()
    with made.serving() as made.url:
        yield made


def test_serve_measures_any_server_and_ends_with_its_record(sham, capsys, tmp_path):
    out = tmp_path / "r.json"
    lines = said(capsys, "serve", "--url", sham.url, *FAST, "--slo", "ttft:60000", "--out", str(out), "--price", "1/h",
                 "--api-key", "k", "--endpoint", "chat", "--extra-body", '{"x": 1}')
    record = json.loads(lines[-1])
    assert record == json.loads(out.read_text())
    assert (record["completed"], record["failed"], record["total_output_tokens"], record["total_input_tokens"]) == (
        8, 0, 24, 72)
    assert record["predictions"] is None, "another server's are not known"
    assert record["goodput_share"] == 1.0 and record["subject"] == {"server": sham.url, "model": "sham"}
    assert record["cost_per_million_tokens"] == pytest.approx(record["duration"] / 96 * 1e6 / 3600)
    assert all(b["x"] == 1 and b["messages"][0]["role"] == "user" for b in sham.bodies)
    assert any("a million tokens" in line for line in lines) and "8 of 8 requests answered" in lines[0]
    compared = said(capsys, "compare", str(out), str(out))
    assert all(row["ratio"] in (1.0, None) for row in json.loads(compared[-1])["rows"])


def test_a_trace_keeps_its_lengths_and_the_model_may_be_named(sham, capsys, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,30,2\n1,20,4\n2,10,90\n")
    lines = said(capsys, "serve", "--url", sham.url, "--model", "name", "--trace", str(path), "--time-scale", "0.01",
                 "--length-scale", "0.5", "--output-tokens", "7")
    assert [(b["model"], len(b["prompt"].split()) + 1, b["max_tokens"]) for b in sham.bodies] == [
        ("name", 15, 1), ("name", 10, 2), ("name", 5, 7)]
    assert json.loads(lines[-1])["workload"]["rate"] == pytest.approx(100.0)


def test_a_sweep_writes_table_record_and_plot_and_goes_on(sham, capsys, tmp_path):
    words = ("sweep", "--url", sham.url, "--prompt-tokens", "9", "--output-tokens", "2", "--duration", "0.3s",
             "--slo", "ttft:60000", "--out", str(tmp_path / "s"))
    last = json.loads(said(capsys, *words, "--rates", "40,20")[-1])
    assert (last["knee"], last["rates"]) == (40.0, [20.0, 40.0])
    asked = len(sham.bodies)
    assert json.loads(said(capsys, *words, "--rates", "20,40")[-1])["knee"] == 40.0
    assert len(sham.bodies) == asked
    table = (tmp_path / "s.md").read_text()
    assert table.startswith("sham on http") and table.count("\n| ") == 4 and "| 40 |" in table
    assert (tmp_path / "s.png").exists() == (find_spec("matplotlib") is not None)
    assert run(["bench", *words, "--rates", "20", "--load-seed", "1"]) == 2
    assert "load_seed is 0 and 1; choose another --out" in capsys.readouterr().err
    assert run(["bench", "compare", str(tmp_path / "s.json"), str(tmp_path / "s.json")]) == 0


def test_gramme_starts_its_own_server(keep_signals, capsys):
    lines = said(capsys, "serve", "--backend", "reference", "--max-model-len", "64", *FAST)
    record = json.loads(lines[-1])
    assert (record["completed"], record["total_input_tokens"], record["total_output_tokens"]) == (8, 72, 24)
    assert record["prompt_tokens_off"] == record["output_tokens_off"] == record["answers_without_usage"] == 0
    assert record["subject"]["flags"] == "--backend reference --max-model-len 64"
    assert {"memory", "ttft"} <= record["predictions"].keys() and record["predictions"]["ttft"]["requests"] >= 8
    assert any(re.fullmatch(r"TTFT +predicted .*, took .* \(.*%\); off by .* at the median", line) for line in lines)


def test_flags_for_the_server_say_what_differs_from_the_defaults():
    config = EngineConfig(model="m", dtype="int4", prefix_caching=False, deterministic=True, threads=2)
    assert engine_flags(config) == ["--dtype", "int4", "--no-prefix-caching", "--threads", "2", "--deterministic"]


def test_ctrl_c_ends_with_what_was_measured_and_130():
    async def answer(sham, n, body, write):
        if n < 5:
            return await stream(sham, n, body, write)
        await write(token())
        if n == 7:
            os.kill(p.pid, signal.SIGINT)
        await asyncio.sleep(LIMIT_S)

    with Sham(answer).serving() as url:
        p = subprocess.Popen([sys.executable, "-m", "gramme", "bench", "serve", "--url", url, "--rate", "20",
                              "--duration", f"{LIMIT_S}s", "--prompt-tokens", "9", "--output-tokens", "3"],
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = p.communicate(timeout=LIMIT_S)
    record = json.loads(out.splitlines()[-1])
    assert (p.returncode, err) == (130, "") and record["interrupted"]
    assert 0 < record["completed"] <= 5 and record["failed"] == 0 and record["failures"]["interrupted"] >= 3


@pytest.mark.parametrize("argv, words", [
    (["serve", "--url", "x"], "--url must be"), (["serve", "--url", "http://127.0.0.1:1"], "cannot connect"),
    (["serve", "--url", "http://h", "--dtype", "int4"], "--dtype is for gramme's own server"),
    (["serve", "--api-key", "k"], "--url"), (["serve", "--slo", "ttft"], "--slo"), (["serve", "--rate", "0"], "rate"),
    (["serve", "--rate", "1e9"], "more than"), (["serve", "--requests", "0"], "--requests"),
    (["serve", "--time-scale", "2"], "--trace"), (["serve", "--trace", "/no/file"], "/no/file"),
    (["serve", "--duration", "30"], "a unit"), (["serve", "--timeout", "x"], "a unit"),
    (["serve", "--extra-body", "[]"], "JSON object"), (["serve", "--extra-body", "{"], "JSON object"),
    (["serve", "--price", "3"], "price"), (["serve", "--price", "1/kWh"], "--power"),
    (["serve", "--out", "/no/dir/f"], "/no/dir/f"),
    (["serve", "--url", "http://h", "--endpoint", "chat", "--tokenizer", "x"], "completions"),
    (["serve", "/no/such/model"], "/no/such/model"), (["sweep"], "--slo"),
    (["sweep", "--slo", "ttft:1", "--rates", "x"], "--rates"), (["compare", "/no/a", "/no/b"], "/no/a"),
    (["compare", "x"], "b"), (["fly"], "fly"), (["serve", "--no-such"], "--no-such")])
def test_bad_input_is_one_line_and_exit_code_2(argv, words, capsys, keep_signals):
    try:
        code = run(["bench", *argv])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "matplotlib" not in line]
    assert code == 2 and words in err and len(lines) == 1, err
