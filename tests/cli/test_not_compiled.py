"""Installed from source where there was no compiler: said by doctor and at every start, with the ways out; it runs."""
import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def gramme(tmp_path):
    """Runs the command in a process of its own, for which no library was ever compiled."""
    env = os.environ | {"GRAMME_CPU_LIBRARY": str(tmp_path / "none.so")}
    env.pop("GRAMME_CPU_LEVEL", None)
    command = [sys.executable, "-m", "gramme"]
    return lambda *args: subprocess.run([*command, *args], env=env, capture_output=True, text=True)


def said(text):
    return all(words in text for words in ("kernels are not compiled", "half of the memory", "C++ compiler", "wheel"))


def test_doctor_says_it_and_what_still_works(gramme):
    facts = json.loads(gramme("doctor", "--json").stdout)
    assert said(facts["cpu_level"]) and "cannot be loaded" in facts["backends"]["cpu"]
    assert facts["backends"]["reference"].startswith("works")


ONE = ("run", "dummy:tiny", "-p", "a", "--max-tokens", "2")


def test_a_start_says_it_in_one_line_and_runs(gramme):
    done = gramme(*ONE)
    assert done.returncode == 0 and sum(map(said, done.stderr.splitlines())) == 1


def test_asked_for_by_name_numpy_is_not_remarked_on_and_the_kernels_are_refused(gramme):
    assert "not compiled" not in gramme(*ONE, "--backend", "reference").stderr
    refused = gramme(*ONE, "--backend", "cpu")
    assert refused.returncode == 2 and "cannot be loaded" in refused.stderr and "wheel" in refused.stderr
