import pytest
import small

from gramme.cli.main import run as gramme
from gramme.evals import texts

TEXTS = {k: t[:1500] for k, t in texts.shipped("held-out").items()}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    return small.save(tmp_path_factory.mktemp("small"))


@pytest.fixture
def check(tmp_path):
    for language, text in TEXTS.items():
        (tmp_path / f"{language}.txt").write_text(text)
    return [f"--check-text={language}:{tmp_path}/{language}.txt" for language in TEXTS]


@pytest.fixture
def quantise(small_model, tmp_path, check, capsys):
    """(exit code, what was said, the result's path) of the command, with limits that a random model can keep."""
    def command(*more, out="out", model=small_model):
        code = gramme(["quantize", str(model), str(tmp_path / out), "--tokens=512", "--window=64", "--group=32",
                       "--threads=1", "--max-kl", "9", "--max-ppl-increase", "9", "--device=cpu", *check, *more])
        said = capsys.readouterr()
        return code, said.out + said.err, tmp_path / out
    return command
