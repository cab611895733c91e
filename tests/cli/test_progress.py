"""A bar is seen on a terminal only, when there is time to see it, and never wraps."""
import io
import os

import pytest

from gramme.cli import progress
from gramme.cli.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, stream, columns, soon_s=0.0):
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "SOON_S", soon_s)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    bar = Bar("loading")
    for done in range(11):
        bar(done, 10)
    return stream.getvalue()


@pytest.mark.parametrize("columns", [1, 5, 30, 45, 80, 300])
def test_no_line_is_wider_than_the_terminal(monkeypatch, columns):
    lines = drawn(monkeypatch, Terminal(), columns).rstrip("\n").split("\r")[1:]
    assert len(lines) == 11 and all(len(line) < max(columns, 2) for line in lines)
    assert columns < 80 or ("100%" in lines[-1] and "[####" in lines[-1])


def test_nothing_is_drawn_into_a_file_or_before_it_is_worth_it(monkeypatch):
    assert drawn(monkeypatch, io.StringIO(), 80) == ""
    assert drawn(monkeypatch, Terminal(), 80, soon_s=100.0) == ""
