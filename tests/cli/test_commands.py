"""The commands as a person meets them: in processes of their own, interrupted, cut off, asked nonsense."""
import json
import os
import signal
import subprocess
import sys

import pytest

from gramme.cli.main import run

GRAMME = [sys.executable, "-m", "gramme"]
LIMIT_S = 60


def start(*args, command=GRAMME, **more):
    return subprocess.Popen([*command, *args], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True, **more)


def test_help_needs_neither_numpy_nor_torch():
    code = ("import sys; from gramme.__main__ import main; sys.argv = ['gramme', '--help']\n"
            "try: main()\n"
            "except SystemExit: print(sorted({'numpy', 'torch', 'jinja2', 'tokenizers'} & sys.modules.keys()))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S)
    assert out.returncode == 0 and out.stdout.splitlines()[-1] == "[]", out
    assert "serve" in out.stdout


@pytest.mark.parametrize("columns", ["1", "20", "200"])
def test_help_fits_any_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    for verb in ([], ["run"], ["serve"]):
        with pytest.raises(SystemExit):
            run([*verb, "--help"])
    assert "--config" in capsys.readouterr().out


def test_run_prints_the_answer_and_json_ends_with_one_line(capsys):
    assert run(["run", "-p", "Hello", "-n", "4", "--temperature", "0"]) == 0
    shown = capsys.readouterr()
    assert "4 out" in shown.err
    assert run(["run", "-p", "Hello", "-n", "4", "--temperature", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(record) == ["text", "prompt_tokens", "completion_tokens", "ttft_ms", "decode_tok_s", "finish_reason"]
    assert record["text"] == shown.out.removesuffix("\n\n")
    assert (record["completion_tokens"], record["finish_reason"]) == (4, "length")
    assert record["ttft_ms"] > 0 < record["decode_tok_s"]


@pytest.mark.parametrize("argv, words", [
    (["run", "--no-such"], "--no-such"), (["run", "-n", "x"], "--max-tokens"), (["fly"], "fly"), ([], "VERB"),
    (["run", "/no/such/place", "-p", "x"], "/no/such/place"), (["run", "-p", "x", "--config", "/no/file"], "/no/file"),
    (["run", "dummy:huge", "-p", "x"], "dummy:huge"), (["run", "-p", "x", "-n", "-1"], "max_tokens"),
    (["run", "-p", "x", "--temperature", "9"], "temperature"), (["run", "-p", "x", "--dtype", "int3"], "int3"),
    (["run", "-p", "x", "--max-model-len", "1000000"], "1000000"), (["run", "-p", "word " * 2000], "512"),
    (["run", "-p", "x", "--memory", "12"], "12"), (["run", "-p", "x", "--page-size", "3"], "3"),
    (["run", "-p", "x", "--chat-template", "/no/file"], "/no/file"), (["rm", "no/model"], "no/model"),
    (["run", "-p", "", "--raw", "--skip-tokenizer-init"], "tokenizer"), (["show", "no/model"], "gramme pull"),
    (["pull", "nonsense"], "nonsense")])
def test_what_cannot_be_done_is_one_line_and_exit_code_2(argv, words, capsys):
    try:
        code = run(argv)
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2 and words in err and err.count("\n") == 1, err


def test_ctrl_c_ends_an_answer_with_130_and_no_traceback():
    with start("run", "--raw", "-p", "Once", "--ignore-eos") as p:
        assert p.stdout.read(1)
        os.killpg(p.pid, signal.SIGINT)
        _, err = p.communicate(timeout=LIMIT_S)
    assert (p.returncode, err.strip()) == (130, "")


@pytest.mark.parametrize("moment", ["gramme.models.open.open_model", "gramme.text.tokenizer.load_tokenizer",
                                    "gramme.models.load.build", "gramme.plan.hardware.this_machine"])
def test_ctrl_c_while_loading_ends_with_130_and_no_traceback(moment):
    """The signal comes out of the function that is named."""
    module, name = moment.rsplit(".", 1)
    code = (f"import os, signal, sys, {module} as m\n"
            f"def interrupted(*args, **more): os.kill(os.getpid(), signal.SIGINT); print('went on')\n"
            f"m.{name} = interrupted\n"
            "from gramme.__main__ import main\nsys.argv = ['gramme', 'run', '-p', 'x']\nsys.exit(main())")
    with start(command=[sys.executable, "-c", code]) as p:
        out, err = p.communicate(timeout=LIMIT_S)
    assert (p.returncode, out, err.strip()) == (130, "", "")


def test_a_closed_pipe_is_no_error():
    with start("run", "--raw", "-p", "Once", "--ignore-eos") as p:
        assert p.stdout.read(1)
        p.stdout.close()
        assert p.stderr.read() == ""
        assert p.wait(LIMIT_S) == 0


def test_in_a_chat_ctrl_c_ends_the_answer_and_the_conversation_goes_on():
    with start("chat", "--ignore-eos", "--max-model-len", "200") as p:
        p.stdin.write("Translate to French: The train leaves.\n")
        p.stdin.flush()
        assert p.stdout.read(5).startswith("> ")
        os.killpg(p.pid, signal.SIGINT)
        out, err = p.communicate("Traduis en anglais : Il part.\n\n", timeout=LIMIT_S)
    assert p.returncode == 0 and out.count("> ") == 2, (out, err)
    assert "template" not in err and "Traceback" not in err
