"""/v1/status and receipts from a real server: every second and every token stands somewhere, in all views alike."""
import json
import re
import subprocess
import sys
import time

import pytest
from canary import TINY, Served

from gramme.llm.energy import rapl
from gramme.serve.process import url

OPTIONS = (*TINY, "--power", "50W", "--price", "0.36/kWh")
ASK = {"prompt": list(range(3, 43)), "max_tokens": 12, "ignore_eos": True, "temperature": 0, "timings": True}
KINDS = ("prefill", "decode", "cached", "recomputed", "rejected")


def status(served):
    code, body = served.get("/v1/status")
    assert code == 200
    return json.loads(body)


def line(served, name):
    return next(e for e in status(served)["report"] if e["name"] == name)


def by_kind(served, name):
    text = served.get("/metrics")[1]
    return {kind: float(value) for kind, value in re.findall(rf'^gramme:{name}_total{{.*kind="(\w+)".*}} (\S+)$', text,
                                                             re.MULTILINE)}


def settled(served):
    """The status once the last answer's step has been counted."""
    served.wait_for(lambda: not status(served)["stats"]["running"])
    return status(served)


def test_receipts_add_up_in_the_answer_in_metrics_and_in_the_status(served):
    before, began_s = settled(served), time.monotonic()
    answers = [served.post("/v1/completions", ASK)[1] for _ in range(3)]
    after, wall_s = settled(served), time.monotonic() - began_s
    receipts = [a["timings"]["receipt"] for a in answers]
    assert receipts[0]["prefill"]["tokens"] == 40 and receipts[1]["cached"]["tokens"] == 32
    for r in receipts:
        assert r["decode"]["tokens"] == 11 and r["power"] == {"watts": 50.0, "source": "declared"}
        for part, of in (("seconds", 1.0), ("joules", 50.0), ("money", 50.0 * 0.36 / 3.6e6)):
            assert sum(r[kind][part] for kind in KINDS) == pytest.approx(r["total"][part])
            assert r["total"][part] == pytest.approx(of * r["total"]["seconds"])
    for kind in KINDS:
        for part in ("seconds", "tokens"):
            grown = after["receipts"][kind][part] - before["receipts"][kind][part]
            assert grown == pytest.approx(sum(r[kind][part] for r in receipts))
        assert by_kind(served, "machine_seconds")[kind] == pytest.approx(after["receipts"][kind]["seconds"])
        assert by_kind(served, "machine_tokens")[kind] == after["receipts"][kind]["tokens"]
    spent = [r["receipts"]["total"]["seconds"] + r["receipts"]["other_s"] for r in (before, after)]
    assert 0 < spent[1] - spent[0] <= wall_s


def test_a_line_changes_with_its_counter(served):
    served.post("/v1/completions", ASK)
    assert line(served, "prefix cache")["state"] == "engaged"
    assert re.search(r"\d+ of \d+ steps replayed|run operation by operation", str(line(served, "recorded steps")))
    assert line(served, "energy")["why"] == "declared" and line(served, "speculation")["state"] == "off"
    grammars = line(served, "grammars")
    assert grammars["state"] == "waiting"
    served.post("/v1/completions", {"prompt": [3], "max_tokens": 4, "structured_outputs": {"choice": ["a", "b"]}})
    assert line(served, "grammars")["state"] == "engaged"


def test_what_was_predicted_stands_beside_what_was_measured(served):
    for i in range(6):
        assert served.post("/v1/completions", ASK | {"prompt": [i + 100] * 40})[0] == 200
    found = status(served)["predictions"]
    assert found.keys() == {"memory", "prefill", "decode", "ttft"}
    assert found["memory"]["predicted_bytes"] == sum(
        n for name, n in status(served)["plan"]["ledger"].items() if name != "budget")
    for name, unit in (("memory", "bytes"), ("prefill", "ms"), ("decode", "ms")):
        predicted, measured = (found[name][f"{which}_{unit}"] for which in ("predicted", "measured"))
        assert predicted > 0 < measured and found[name]["error"] == pytest.approx(measured / predicted - 1)
    assert found["prefill"]["tokens"] == 32 and found["decode"]["tokens"] == 1
    assert found["ttft"]["requests"] >= 6 and found["ttft"]["distance"] >= abs(found["ttft"]["error"]) * 0.5


def test_the_ceiling_is_that_of_the_rows_that_run(served):
    ceiling = status(served)["ceiling"]
    assert ceiling["rows"] == 1 and ceiling["tokens_per_s"] > 0 and ceiling["bound"] in ("memory", "compute")


def test_a_server_that_is_ready_says_what_does_not_act_and_where_it_listens(tmp_path):
    with open(tmp_path / "log", "wb") as log, Served(*TINY, "--no-prefix-caching", "--power", "40W", stderr=log) as s:
        s.wait_for(lambda: "is ready at" in (tmp_path / "log").read_text())
        assert line(s, "energy")["state"] == "engaged", "declared, though nothing has run yet"
    said = [text for text in (tmp_path / "log").read_text().splitlines() if text.startswith("gramme: ")]
    assert said[-1] == f"gramme: dummy:tiny is ready at http://127.0.0.1:{s.port}/"
    assert re.match("gramme: prefix cache +off +asked: off; --no-prefix-caching", said[0]) and len(said) == 2, said


@pytest.mark.skipif(rapl() is not None, reason="this machine's energy counter can be read")
def test_a_price_that_could_never_be_applied_is_refused_at_once():
    done = subprocess.run([sys.executable, "-m", "gramme", "run", "dummy:tiny", "--price", "0.3/kWh", "-p", "x"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--power" in done.stderr


@pytest.mark.parametrize("host, said", [("127.0.0.1", "http://127.0.0.1:8/"), ("0.0.0.0", "http://127.0.0.1:8/"),
                                        ("::1", "http://[::1]:8/"), ("::", "http://[::1]:8/"), ("pc", "http://pc:8/")])
def test_the_address_can_be_opened(host, said):
    assert url(host, 8) == said
