"""A recipe that is wrong is refused in one line that names file, table and key; the shipped one is right."""
import io
from pathlib import Path

import pytest

import gramme.train
from gramme.config import ConfigError
from gramme.train.recipe import read_config

NANO = Path(gramme.train.__file__).parent / "recipes" / "nano.toml"


@pytest.mark.parametrize("file", sorted(NANO.parent.glob("*.toml")), ids=lambda file: file.stem)
def test_a_shipped_recipe_is_read(file):
    config = read_config(file)
    assert config.model.vocab_size == 4096 and config.model.tied_embeddings and config.model.eos_token_ids == (1,)
    assert set(config.files.novels) == {"en", "fr"} == set(config.language_weights)
    assert config.recipe.decay_steps < config.recipe.steps


@pytest.mark.parametrize("old, new, words", [
    ("[mix]", "[mixed]", "mix"), ("steps = ", "steeps = ", "[recipe] has no key 'steeps'"),
    ("width = ", "widht = ", "[model]"),
    ("length = 256", "length = 4096", "length 4096"), ("micro_batches = 2", "micro_batches = 0", "micro_batches"),
    ("bf16 = true", 'schedule = "linear"', "wsd or cosine"), ("translate = 0.62", "translate = -1", "share"),
    ("bf16 = true", "question_weight = 2", "from 0 to 1"), ("bf16 = true", 'question_weight = "x"', "from 0 to 1"),
    ("[recipe]", "[recipe", "nano.toml"), ("family = ", "[model.x]\nfamily = ", "model"),
])
def test_a_wrong_recipe_is_refused_by_name(old, new, words, tmp_path):
    text = NANO.read_text().replace("[recipe]", "[recipe]\nlength = 256", 1)
    assert old in text
    (tmp_path / "nano.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "nano.toml")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_progress_says_rate_share_and_time_left():
    pytest.importorskip("torch")
    from gramme.train.progress import Line, operations

    config, out = read_config(NANO), io.StringIO()
    m, record = config.model, {"step": 39, "loss": 2.0, "norm": 1.0, "tokens": 2000, "counted": 800, "s": 0.5}
    layer = 384 * 384 + 2 * 128 * 384 + 384 * 384 + 3 * 384 * 1024  # q, k and v, o, and the three of the MLP
    assert operations(m, record) == 6 * (6 * layer * 2000 + 4096 * 384 * 800)
    line = Line(out, 100, peak=2e11)
    for step in range(40):
        line.show(record | {"step": step}, 5e10)
    assert out.getvalue().splitlines()[-1] == (
        "step 40/100  loss 2.000  norm 1.00  4,000 tokens/s  50% of fp32 peak  0 min 30 s left")
    assert len(out.getvalue().splitlines()) == 2
