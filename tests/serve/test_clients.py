"""The trial of bench/clients.py in small: streams at once in half of their pages bring what each brings alone."""
import pytest
from canary import Served  # noqa: F401 (puts bench/ on the path)

pytest.importorskip("openai")


def test_streams_at_once_in_half_their_pages_bring_the_tokens_of_separate_runs():
    from clients import trial

    result = trial(clients=8, longest=200, answer=100)
    assert result["equal_to_separate_runs"] == result["complete"] == 8
    assert result["preemptions"] > 0 and result["left_behind"] == 0
    assert result["kv_tokens"] <= result["kv_tokens_needed"] // 2 + 1
