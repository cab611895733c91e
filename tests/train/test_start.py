"""A run may go on from a model: its first loss is that model's, its tokenizer too; another shape is refused by name."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gramme.config import ConfigError, EngineConfig  # noqa: E402
from gramme.models.open import EMBEDDED, open_model  # noqa: E402
from gramme.text.tokenizer import load_tokenizer  # noqa: E402
from gramme.train.export import TEXT_FILES  # noqa: E402
from gramme.train.recipe import Files, Recipe, RunConfig  # noqa: E402
from gramme.train.run import starting_weights  # noqa: E402
from gramme.train.trainer import fresh, loss, new_decoder, train  # noqa: E402

pytestmark = pytest.mark.torch

SENTENCE = "The cat is sleeping under the table."


def config(start, **changes):
    m = replace(open_model(EngineConfig()).config, **changes)
    return RunConfig(Files("", {}), {"translate": 1.0}, m, Recipe(steps=1, start=start, length=16, batch_tokens=16))


@pytest.mark.parametrize("start", ["embedded", str(EMBEDDED)])
def test_the_first_loss_is_that_of_the_model(start, tmp_path):
    c = config(start)
    ids = np.array([load_tokenizer(EMBEDDED).encode(" " + SENTENCE)], np.int32)
    batch = ids, np.ones((1, ids.shape[1] - 1), np.float32)
    weights = starting_weights(c, tmp_path)
    train(c.model, lambda i: batch, c.recipe, tmp_path, start=weights)

    first = json.loads((tmp_path / "log.jsonl").read_text())["loss"]
    own = loss(new_decoder(c.model, open_model(EngineConfig()).source), batch, 64).item() / batch[1].sum()
    random = loss(new_decoder(c.model, fresh(c.model, 0)), batch, 64).item() / batch[1].sum()
    assert first == pytest.approx(own, rel=1e-5) and first < random / 2
    assert all((tmp_path / name).read_bytes() == (EMBEDDED / name).read_bytes() for name in TEXT_FILES)


def test_a_model_without_tokenizer_or_template_is_refused_by_file(tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(EMBEDDED, model)
    run.mkdir()
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"chat_template\.jinja"):
        starting_weights(config(str(model)), run)
    assert not list(run.iterdir())


@pytest.mark.parametrize("changes", [{"width": 128}, {"heads": 12, "head_dim": 32}, {"layers": 2}])
def test_a_model_of_another_shape_is_refused_by_name(changes, tmp_path):
    with pytest.raises(ConfigError) as caught:
        starting_weights(config("embedded", **changes), tmp_path)
    assert all(name in str(caught.value) for name in changes) and not list(tmp_path.iterdir())
