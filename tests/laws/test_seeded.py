"""Each seeded bug makes the test that is named beside it fail: the laws can be broken, and breaking them is seen."""
from pathlib import Path

import engines
import pytest
from seeded import BUGS

ROOT = Path(__file__).parents[2]


def run_tests(*names):
    options = ["-x", "-k", "not cpu and not eager", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    return pytest.main([*options, *(str(ROOT / name) for name in names)])


def test_without_a_bug_they_pass():
    assert run_tests(*{bug.caught_by for bug in BUGS}) == pytest.ExitCode.OK


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.plant.__name__)
def test_the_named_test_fails(bug, monkeypatch, capfd):
    engines.decoder.cache_clear()  # decoders are built with the bug
    bug.plant(monkeypatch)
    outcome = run_tests(bug.caught_by)
    engines.decoder.cache_clear()
    assert outcome == pytest.ExitCode.TESTS_FAILED, f"{bug.what}: {outcome!r} from\n{capfd.readouterr().out}"
