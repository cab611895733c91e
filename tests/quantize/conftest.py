import pytest
import small


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    return small.save(tmp_path_factory.mktemp("small"))
