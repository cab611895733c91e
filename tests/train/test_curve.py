"""A run's log becomes a picture, however short the run was."""
import json

import pytest

pytest.importorskip("matplotlib")

from gramme.train.curve import draw


@pytest.mark.parametrize("steps", [1, 140])
def test_a_log_becomes_a_png(tmp_path, steps):
    log = tmp_path / "log.jsonl"
    records = [{"tokens": 100, "loss": 9 / (n + 1)} | ({"held_out": 5.0} if n % 50 == 0 else {}) for n in range(steps)]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    draw(log, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")
