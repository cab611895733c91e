"""Measured choices: the fastest way is taken, remembered on disk, and a broken memory is made anew."""
import json

import pytest

from gramme.kernels.cuda.choices import Choices, path_of

pytestmark = pytest.mark.torch
WAYS = {"slow": lambda: 3.0, "fast": lambda: 1.0}


def test_the_fastest_way_is_measured_once_and_remembered(tmp_path):
    path, timed = tmp_path / "a" / "card.json", []
    time = lambda run: timed.append(run) or run()
    assert Choices(path, time).best("key", WAYS) == "fast"
    count = len(timed)
    assert Choices(path, time).best("key", WAYS) == "fast" and len(timed) == count
    assert Choices(path, time).best("another", WAYS) == "fast" and len(timed) > count


def test_where_nothing_can_be_measured_the_first_way_is_taken_and_not_remembered(tmp_path):
    path = tmp_path / "card.json"
    assert Choices(path, None).best("key", WAYS) == "slow" and not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 3}', '{"key": "a way that is gone"}', "\0\xff"])
def test_a_broken_memory_is_made_anew(tmp_path, text):
    path = tmp_path / "card.json"
    path.write_text(text)
    assert Choices(path, lambda run: run()).best("key", WAYS) == "fast"
    assert json.loads(path.read_text()) == {"key": "fast"}


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert Choices(tmp_path / "file" / "card.json", lambda run: run()).best("key", WAYS) == "fast"


def test_other_versions_and_other_cards_have_other_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {path_of("A 1", "x"), path_of("A 1", "y"), path_of("B", "x")}
    assert len(paths) == 3 and all(tmp_path in p.parents and " " not in p.name for p in paths)
