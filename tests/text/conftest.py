import pytest
from tiny import KINDS, save

from gramme.text.template import TemplateRenderer
from gramme.text.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request, directories):
    return load_tokenizer(directories[request.param])


@pytest.fixture(scope="module")
def renderer():
    renderer = TemplateRenderer()
    yield renderer
    renderer.close()
