"""Tests whose file imports torch or transformers carry the mark `torch`; the base tier has neither installed."""
import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "module") and {"torch", "transformers"} & vars(item.module).keys():
            item.add_marker(pytest.mark.torch)
