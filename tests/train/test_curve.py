"""A run's log becomes a picture, however short the run was."""
import json

import pytest

pytest.importorskip("matplotlib")

from gramme.train.curve import draw


@pytest.mark.parametrize("steps", [1, 40])
def test_a_log_becomes_a_png(tmp_path, steps):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"tokens": 100, "loss": 9 / (n + 1)}) + "\n" for n in range(steps)))
    draw(log, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")
