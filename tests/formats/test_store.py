"""Names become directories without the network, and nothing outside the hub's cache is ever read by name or deleted."""
import pytest

from gramme.config import ModelError
from gramme.formats import store

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    repo = hub / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "blobs" / "b").write_bytes(bytes(1000))
    (repo / "snapshots" / COMMIT / "model.safetensors").symlink_to("../../blobs/b")
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(tmp_path)
    return hub


def test_the_cache_is_where_the_hubs_client_puts_it(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/a")
    monkeypatch.setenv("HF_HOME", "/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert str(store.cache_directory()) == "/a"
    monkeypatch.delenv("HF_HUB_CACHE")
    assert str(store.cache_directory()) == "/b/hub"
    monkeypatch.delenv("HF_HOME")
    assert str(store.cache_directory()) == "/c/huggingface/hub"


def test_names_resolve_to_snapshots(cache):
    want = cache / "models--org--name" / "snapshots" / COMMIT
    assert store.resolve("org/name") == store.resolve("org/name@main") == store.resolve("org/name", COMMIT) == want
    assert store.resolve(str(want)) == want


@pytest.mark.parametrize("name", [
    "../org", "org/..", "org/a..b", "org/../x", "/etc/nothing", "a/b/c", "org/name/", "", "org", ".org/x", "org/na me",
    "org/name\0", "org/" + "n" * 5000, "org/name\n", "org\\..\\x/name"])
def test_what_is_no_name_is_refused(cache, name):
    with pytest.raises(ModelError, match="not a hub id") as caught:
        store.resolve(name)
    assert len(str(caught.value)) < 400
    with pytest.raises(ModelError):
        store.remove(name)


@pytest.mark.parametrize("revision", ["..", "../..", "a/b", ".", "/x"])
def test_a_revision_cannot_leave_the_repository(cache, revision):
    with pytest.raises(ModelError):
        store.resolve("org/name", revision)
    (cache / "models--org--name" / "refs" / "main").write_text(revision)
    with pytest.raises(ModelError, match="is not on this machine"):
        store.resolve("org/name")


def test_what_is_not_there_says_how_to_fetch_it(cache):
    with pytest.raises(ModelError, match="fetch it with: gramme pull org/other"):
        store.resolve("org/other")


def test_a_gguf_file_is_found_by_its_tag(cache):
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT
    for name in ("name-Q4_K_M.gguf", "name-Q8_0.gguf", "name-IQ4_K_M.gguf", "mmproj-Q8_0.gguf"):
        (snapshot / name).touch()
    assert store.resolve("org/name").name == store.resolve("org/name:q4_k_m").name == "name-Q4_K_M.gguf"
    assert store.resolve("org/name@main:Q8_0").name == "name-Q8_0.gguf"
    assert store.resolve(str(snapshot)).name == "name-Q4_K_M.gguf"
    with pytest.raises(ModelError, match=r"0 files fit Q5_0; it holds name-IQ4_K_M.gguf, name-Q4_K_M.gguf, name-Q8_0"):
        store.resolve("org/name:Q5_0")
    (snapshot / "name-v2-Q8_0.gguf").touch()
    with pytest.raises(ModelError, match="2 files fit Q8_0"):
        store.resolve("org/name:Q8_0")
    (snapshot / "config.json").touch()
    assert store.resolve("org/name") == snapshot
    assert store.resolve(str(snapshot / "name-Q8_0.gguf")) == snapshot / "name-Q8_0.gguf"


def test_a_lone_gguf_file_needs_no_tag(cache):
    (cache / "models--org--name" / "snapshots" / COMMIT / "name-Q6_K.gguf").touch()
    assert store.resolve("org/name").name == "name-Q6_K.gguf"


def test_installed_counts_bytes_and_remove_removes_only_that(cache):
    other = cache / "models--org--other" / "snapshots" / "x"
    other.mkdir(parents=True)
    assert [(m.name, m.revision, m.nbytes) for m in store.installed()] == [
        ("org/name", COMMIT, 1000), ("org/other", "x", 0)]
    store.remove("org/name")
    assert [m.name for m in store.installed()] == ["org/other"]
    with pytest.raises(ModelError, match="not in the hub's cache"):
        store.remove("org/name")


def test_a_repository_that_is_a_link_is_not_followed_by_remove(cache, tmp_path):
    (tmp_path / "precious").mkdir()
    (cache / "models--org--link").symlink_to(tmp_path / "precious")
    with pytest.raises(ModelError, match="link"):
        store.remove("org/link")
    assert (tmp_path / "precious").is_dir()
