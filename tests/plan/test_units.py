"""Sizes and times mean one thing or are refused."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramme.config import ConfigError
from gramme.plan.units import SIZES, parse_bytes, parse_seconds


@pytest.mark.parametrize("text, value", [("24GB", 24 * 10**9), ("24 GiB", 24 * 2**30), ("512mb", 512 * 10**6),
                                         ("0.5KiB", 512), ("1b", 1)])
def test_sizes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text, value", [("100ms", 0.1), ("2 s", 2.0), ("1.5min", 90.0), ("20us", 2e-5)])
def test_times(text, value):
    assert parse_seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "24", "0GB", "-1GB", "1e3GB", "GB", "24G", "nanGB", "24 GB GB", "١GB",
                                  "9" * 400 + "B", "999999999999999999TB"])
def test_a_size_without_one_meaning_is_refused(text):
    with pytest.raises(ConfigError, match="unit"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["24Gb", "512 Mb", "8Gib"])
def test_what_may_be_bits_is_refused(text):
    with pytest.raises(ConfigError, match="may be bits"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "100", "0ms", "1M", "1Ms", "-1s", "100 ms ms"])
def test_a_time_without_one_meaning_is_refused(text):
    with pytest.raises(ConfigError, match="unit"):
        parse_seconds(text)


@given(st.integers(1, 10**5), st.sampled_from(sorted(SIZES)))
def test_a_size_is_number_times_unit(n, unit):
    assert parse_bytes(f"{n}{unit}") == n * SIZES[unit]
