"""Kept layouts: the next start says the same without reading a tensor; a changed or broken file is made again."""
import gc
import json
import shutil

import pytest

from gramme.config import ConfigError, ModelError
from gramme.kernels.load import backend
from gramme.llm.llm import LLM
from gramme.models import layouts, load
from gramme.models.open import EMBEDDED
from gramme.request import SamplingParams

try:
    backend("cpu")
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(layouts, "LEAST_BYTES", 0)
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def answer(model, **options):
    llm = LLM(str(model), backend="cpu", max_model_len=256, max_num_seqs=2, **options)
    try:
        return llm.generate("The old man", GREEDY)[0].outputs[0].token_ids
    finally:
        llm.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_the_next_start_reads_no_tensor_and_says_the_same(model, monkeypatch, dtype):
    first = answer(model, dtype=dtype)
    assert [name.startswith("model-") for name, _ in layouts.installed()] == [True]
    monkeypatch.setattr("gramme.models.load._weight", lambda *_: pytest.fail("a matrix was laid out again"))
    assert answer(model, dtype=dtype) == first
    with pytest.raises(BaseException, match="laid out again"):
        answer(model, dtype=dtype, layout_cache=False)


def test_no_larger_than_the_source(model):
    answer(model)
    source = (model / "model.safetensors").stat().st_size
    assert layouts.installed()[0][1] < source * 1.01 + 64 * layouts.PAGE


def test_a_changed_source_is_laid_out_anew_and_the_old_one_goes(model):
    first = answer(model)
    before = layouts.installed()
    weights = bytearray((model / "model.safetensors").read_bytes())
    size = int.from_bytes(weights[:8], "little")
    start, end = json.loads(weights[8 : 8 + size])["model.embed_tokens.weight"]["data_offsets"]
    weights[8 + size + start : 8 + size + end] = bytes(end - start)
    (model / "model.safetensors").write_bytes(weights)
    assert answer(model) != first
    after = layouts.installed()
    assert len(after) == 1 and after != before


@pytest.mark.parametrize("harm", [
    lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-24] + bytes(24),
    lambda b: b[:-24] + (1 << 60).to_bytes(8, "little") + b[-16:],
])
def test_a_broken_file_is_made_again(model, harm):
    first = answer(model)
    path = next(layouts.folder().glob("*.layout"))
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert answer(model) == first and path.read_bytes() == whole


def test_a_start_that_fails_leaves_nothing_behind(model, monkeypatch):
    weigh, calls = load._weight, []

    def fail_late(*args):
        calls.append(args)
        if len(calls) == 5:
            raise ModelError("a wrong shape")
        return weigh(*args)

    monkeypatch.setattr(load, "_weight", fail_late)
    with pytest.raises(ModelError, match="a wrong shape"):
        answer(model)
    gc.collect()
    assert not list(layouts.folder().iterdir())


def test_removed_by_name(model):
    answer(model)
    assert layouts.remove("model") and not layouts.installed() and not layouts.remove("model")
