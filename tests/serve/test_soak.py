"""The soak in its short form, and a build that leaks on purpose, which it must catch. `make soak` is the long form."""
from canary import Served  # noqa: F401 (puts bench/ on the path)
from soak import soak


def test_nothing_grows_under_load_that_leaves_and_errs():
    result = soak(10, settles_kb=60_000)
    assert not result["fault_count"], result["faults"]
    assert not result["grew"] and not result["crashes"], result
    assert min(result["counts"][kind] for kind in ("ask", "leave", "err", "canary")) > 5, result["counts"]


def test_a_leak_is_caught():
    assert "rss_kb" in soak(6, leak_kb=1000, settles_kb=60_000)["grew"]
