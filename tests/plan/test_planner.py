"""What fits is accepted and stays within its budget; what does not is refused with changes that do fit."""
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.config import ConfigError, EngineConfig
from gramme.models.dummy import SHAPES
from gramme.plan.hardware import Hardware
from gramme.plan.planner import lines, plan

GB = 10**9
ROOMY = Hardware(cores=2, free_bytes=100 * GB)

shapes = st.sampled_from(sorted(SHAPES))
wishes = st.builds(
    EngineConfig, dtype=st.sampled_from(("auto", "int4", "bfloat16")),
    backend=st.sampled_from(("reference", "cpu", "cuda")),
    max_num_seqs=st.integers(1, 64), max_model_len=st.sampled_from((None, 1, 500, 2048)),
    kv_tokens=st.sampled_from((None, 4096)), page_size=st.sampled_from((4, 16)),
)


@settings(max_examples=200, deadline=None)
@given(shapes, wishes, st.floats(0.05, 60))
def test_a_plan_fits_its_budget_or_is_refused(name, engine, budget_gb):
    hardware = Hardware(cores=2, free_bytes=int(budget_gb * GB))
    try:
        p = plan(SHAPES[name], engine, hardware)
    except ConfigError as error:
        assert "fit" in str(error) and "\n" not in str(error)
        return
    assert p.ledger.total == sum(n for _, n in lines(p.ledger)) <= p.ledger.budget == hardware.free_bytes
    assert (p.pages - 1) * p.page_size >= min(p.max_model_len, engine.kv_tokens or p.max_model_len)


@settings(max_examples=60, deadline=None)
@given(shapes, wishes, st.floats(0.05, 60))
def test_what_a_refusal_proposes_fits(name, engine, budget_gb):
    hardware = Hardware(cores=2, free_bytes=int(budget_gb * GB))
    try:
        plan(SHAPES[name], engine, hardware)
    except ConfigError as error:
        ways = str(error).rpartition("would fit with ")[2]
        if found := re.search(r"--max-model-len (\d+)", ways):
            plan(SHAPES[name], replace(engine, max_model_len=int(found[1])), hardware)
        if found := re.search(r"--dtype (\w+)", ways):
            plan(SHAPES[name], replace(engine, dtype=found[1], max_model_len=engine.max_model_len or 1024), hardware)
        found = re.search(r"([\d.]+) GB of memory", ways)
        more = replace(hardware, free_bytes=int((float(found[1]) + 0.01) * GB) if found else GB)
        plan(SHAPES[name], replace(engine, max_model_len=engine.max_model_len or 1024), more)


def test_what_fits_only_once_it_is_loaded_is_refused_with_what_loading_takes():
    wish = EngineConfig(dtype="int4", backend="cpu", max_model_len=64, max_num_batched_tokens=64)
    with pytest.raises(ConfigError) as refusal:
        plan(SHAPES["1b"], wish, Hardware(cores=2, free_bytes=GB))
    total, loading, enough = (float(n) for n in re.findall(r"= ([\d.]+) MB and ([\d.]+) GB while it is loaded.*with "
                                                           r"([\d.]+) GB", str(refusal.value))[0])
    assert total < 1000 < 1e3 * loading <= 1e3 * enough < 1e3 * loading + 20


def test_a_context_that_is_not_asked_for_shrinks_until_it_fits():
    small = Hardware(cores=2, free_bytes=7 * GB)
    p = plan(SHAPES["mistral-7b"], EngineConfig(backend="cpu", dtype="int4"), small)
    assert 1024 <= p.max_model_len < 32768 and any("do not fit" in note for note in p.notes)
    with pytest.raises(ConfigError, match=f"--max-model-len {p.max_model_len}"):
        plan(SHAPES["mistral-7b"], EngineConfig(backend="cpu", dtype="int4", max_model_len=32768), small)


def test_the_largest_step_is_made_smaller_rather_than_take_the_memory():
    engine = EngineConfig(max_num_seqs=4, max_model_len=2048, backend="reference")
    tight = plan(SHAPES["1b"], engine, Hardware(cores=2, free_bytes=6 * GB))
    roomy = plan(SHAPES["1b"], EngineConfig(max_num_seqs=4, max_model_len=2048), ROOMY)
    assert tight.max_batch_tokens <= roomy.max_batch_tokens == 512


@pytest.mark.parametrize("wish, words", [
    ({"max_model_len": 0}, "1 to 2048"), ({"max_model_len": 4096}, "1 to 2048"), ({"page_size": 24}, "power of two"),
    ({"max_num_seqs": 0}, "at least 1"), ({"max_num_batched_tokens": 8}, "below --max-num-seqs 64"),
    ({"kv_tokens": 0}, "at least 1"), ({"memory": "24"}, "unit"), ({"memory": "0GB"}, "above 0"),
    ({"memory": "1MB"}, "does not fit in 1.0 MB"), ({"kv_tokens": 10**9}, "no --kv-tokens"),
])
def test_a_bad_wish_is_refused_in_a_line_with_its_numbers(wish, words):
    with pytest.raises(ConfigError, match=words):
        plan(SHAPES["1b"], EngineConfig(**wish), ROOMY)


def test_numpy_alone_runs_models_up_to_half_of_the_memory_unless_told():
    """The 1b shape takes 4.40 GB in float32."""
    small, roomy = (Hardware(cores=2, free_bytes=int(gigabytes * GB)) for gigabytes in (8.7, 8.9))
    engine = EngineConfig(max_num_seqs=1)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler .* from a wheel"):
        plan(SHAPES["1b"], engine, small)
    assert plan(SHAPES["1b"], engine, roomy).backend == "reference"
    assert plan(SHAPES["1b"], replace(engine, backend="reference"), small).dtype == "float32"
    assert plan(SHAPES["1b"], engine, replace(small, backends=("cpu", "reference"))).backend == "cpu"
