"""`gramme plan` answers from a config alone, in one line where asked, and refuses in one line."""
import json
import subprocess
import sys

import pytest

from gramme.cli.main import run
from gramme.config import ConfigError, EngineConfig
from gramme.models.dummy import SHAPES
from gramme.models.open import EMBEDDED, open_model
from gramme.plan import cost

KEYS = {"predicted", "ledger", "bottleneck", "recommended", "binding"}


def planned(capsys, *words):
    code = run(["plan", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("words", [
    ("dummy:mistral-7b", "--gpu", "rtx4090", "--ttft", "100ms", "--tpot", "20ms", "--concurrency", "4"),
    ("dummy:1b", "--cpu", "--quant", "w4", "--memory", "2GB", "--context", "1024"), ("--memory", "1GB"),
])
def test_the_line_of_json_has_what_the_text_says(capsys, words):
    code, out, _ = planned(capsys, *words, "--json", "--no-calibration")
    made = json.loads(out)
    assert code == 0 and out.count("\n") == 1 and made.keys() >= KEYS
    assert {"ttft_ms", "tpot_ms"} <= made["predicted"].keys()
    lines = {k: v for k, v in made["ledger"].items() if k not in ("budget", "total", "left")}
    assert sum(lines.values()) == made["ledger"]["total"] <= made["ledger"]["budget"]
    code, text, _ = planned(capsys, *words, "--why", "--no-calibration")
    assert code == 0 and made["recommended"]["dtype"] in text and "GB/s" in text
    assert all(sentence in text for sentence in made["why"])


def test_a_directory_with_a_config_and_no_weights_is_enough(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048}))
    code, out, _ = planned(capsys, str(tmp_path), "--quant", "w4", "--json")
    assert code == 0 and json.loads(out)["ledger"]["weights"] == SHAPES["1b"].weight_bytes("int4")


def test_the_plan_of_integers_counts_what_is_run_whether_the_weights_are_here_or_their_config_alone(capsys, tmp_path):
    opened = open_model(EngineConfig()).config
    assert opened.stored.layers[0], "the embedded model is of floats now: take another"
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    for words in ((), (str(tmp_path),)):
        code, out, _ = planned(capsys, *words, "--json")
        assert code == 0 and json.loads(out)["ledger"]["weights"] == cost.weights(opened, "bfloat16").total
        text = planned(capsys, *words, "--why", "--quant", "w8")[1]
        assert "weights as the file's integers and int8" in text and "below a batch of 1\n" not in text


@pytest.mark.parametrize("words, said", [
    (("dummy:1b", "--gpu", "rtx9999"), "RTX 4090"), (("dummy:1b", "--memory", "0GB"), "unit"),
    (("dummy:1b", "--ttft", "100"), "unit"), (("dummy:1b", "--ttft", "0ms"), "above 0"),
    (("dummy:1b", "--context", "-3"), "1 to 2048"),
    (("dummy:1b", "--concurrency", "0"), "1 to 4096"), (("dummy:9b",), "dummy:9b"), (("no/such/thing",), "no/such"),
    (("dummy:mistral-7b", "--memory", "1GB"), "does not fit in 1.00 GB"),
    (("dummy:1b", "--max-model-len", "512"), "say --context"), (("dummy:1b", "--max-num-seqs", "8"), "--concurrency"),
    (("dummy:1b", "--kv-tokens", "99"), "say --context and --concurrency"),
    (("dummy:1b", "--quant", "w4", "--dtype", "bfloat16"), "exclude each other"),
    (("dummy:1b", "--threads", "-3"), "1 to 1024"), (("dummy:1b", "--threads", "100000"), "1 to 1024"),
])
def test_what_cannot_be_planned_is_one_line_and_exit_2(capsys, words, said):
    code, out, err = planned(capsys, *words)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


@pytest.mark.parametrize("broken", [
    {}, {"hidden_size": 10**30}, {"num_attention_heads": 0}, {"num_key_value_heads": 7}, {"vocab_size": "many"},
    {"num_hidden_layers": None}, {"rms_norm_eps": -1},
])
def test_a_config_with_absurd_or_missing_fields_is_refused_by_name(capsys, tmp_path, broken):
    good = {"architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 128}
    written = good | broken if broken else {"architectures": good["architectures"]}
    (tmp_path / "config.json").write_text(json.dumps(written))
    code, _, err = planned(capsys, str(tmp_path))
    assert code == 2 and "config.json" in err and err.count("\n") == 1


def test_a_target_that_no_configuration_meets_is_an_answer_and_no_error(capsys):
    words = ("dummy:1b", "--gpu", "rtx4090", "--ttft", "1us", "--no-calibration")
    code, text, err = planned(capsys, *words)
    assert code == 0 and err == "" and "cannot be met: ttft" in text and "The nearest:" in text
    made = json.loads(planned(capsys, *words, "--json")[1])
    assert made["binding"]["constraint"] == "ttft" and made["binding"]["asked"] == pytest.approx(1e-6)
    assert made["binding"]["reached"] == pytest.approx(made["predicted"]["ttft_ms"] / 1e3)


def test_it_needs_neither_numpy_nor_torch():
    code = ("import sys; from gramme.cli.main import run; run(['plan', 'dummy:1b', '--json']);"
            "assert not {'numpy', 'torch', 'ml_dtypes'} & sys.modules.keys()")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_refusal_before_loading_is_the_planners(capsys):
    assert run(["run", "dummy:mistral-7b", "--memory", "1GB", "-p", "x"]) == 2
    assert "does not fit in 1.00 GB: weights" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="does not fit"):
        from gramme.llm.llm import LLM

        LLM("dummy:mistral-7b", memory="1GB")
