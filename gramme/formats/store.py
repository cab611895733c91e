"""Where models are on this machine: paths and the Hugging Face cache. The network is used by `pull` alone."""
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from gramme.config import ModelError

WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model*"]
DEFAULT_TAG = "Q4_K_M"  # of a repository of GGUF files, when the user names none


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    name: str
    revision: str
    path: str
    nbytes: int


def cache_directory() -> Path:
    """$HF_HUB_CACHE, $HF_HOME/hub or $XDG_CACHE_HOME/huggingface/hub, ~/.cache by default; as the hub's client."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(caches) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def resolve(model: str, revision: str | None = None) -> Path:
    """The directory or the GGUF file of a model: a path as it stands, a hub id from the cache.

    Raises ModelError saying what to do.
    """
    if os.path.isdir(model):
        return _model_in(Path(model), None)
    if os.path.exists(model):
        return Path(model)
    name, at, tag = _split(model)
    if not _is_hub_id(name):
        raise ModelError(f"{model:.200}: there is no such file or directory, and it is not a hub id such as org/name")
    return _model_in(_snapshot(name, revision or at or "main"), tag)


def pull(model: str, revision: str | None = None) -> Path:
    """Fetch a model from the hub into its cache, with the hub client's own progress bars."""
    name, at, tag = _split(model)
    if not _is_hub_id(name):
        raise ModelError(f"{model:.200} is not a hub id such as org/name or org/name-GGUF:{DEFAULT_TAG}")
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(name, revision=revision or at, cache_dir=cache_directory(),
                                 allow_patterns=_wanted(name, tag))
    except Exception as error:  # the client raises many kinds; each is one line for the user
        raise ModelError(f"{name} could not be fetched: {str(error).splitlines()[0]:.200}") from None
    return _model_in(Path(path), tag)


def config_directory(model: str, revision: str | None = None) -> Path:
    """Where a model's config.json is: a directory, the cache, or fetched from the hub, that one small file alone."""
    if os.path.isdir(model):
        return Path(model)
    name, at, _ = _split(model)
    if not _is_hub_id(name):
        raise ModelError(f"{model:.200}: there is no such directory, and it is not a hub id such as org/name")
    try:
        return _snapshot(name, revision or at or "main")
    except ModelError:
        from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, "config.json", revision=revision or at, cache_dir=cache_directory())
    except Exception as error:  # the client raises many kinds; each is one line for the user
        raise ModelError(f"{name}: config.json could not be fetched: {str(error).splitlines()[0]:.200}") from None
    return Path(path).parent


def _split(model: str) -> tuple[str, str | None, str | None]:
    """org/name[@revision][:tag] -> name, revision, tag."""
    head, _, tag = model.partition(":")
    name, _, revision = head.partition("@")
    return name, revision or None, tag or None


def _wanted(name: str, tag: str | None) -> list[str]:
    if tag is None and not name.lower().endswith("-gguf"):
        return WANTED
    tag = tag or DEFAULT_TAG
    return [f"*{tag.upper()}*.gguf", f"*{tag.lower()}*.gguf"]


def _model_in(directory: Path, tag: str | None) -> Path:
    """The directory itself when it holds a config, else the one of its GGUF files that the tag names."""
    files = sorted(p for p in directory.glob("*.gguf") if not p.name.startswith("mmproj"))
    if tag is None and (not files or any((directory / name).exists() for name in ("config.json", "params.json"))):
        return directory
    word = re.compile(rf"(?:^|[-._]){re.escape(tag or DEFAULT_TAG)}[-._]", re.IGNORECASE)
    named = [p for p in files if word.search(p.name)] or (files if tag is None else [])
    if len(named) != 1:
        raise ModelError(f"{directory}: {len(named)} files fit {tag or DEFAULT_TAG}; it holds "
                         f"{', '.join(p.name for p in files[:8]) or 'no GGUF file'}")
    return named[0]


def installed() -> list[Installed]:
    out = []
    for repo in sorted(cache_directory().glob("models--*")):
        for snapshot in sorted((repo / "snapshots").glob("*")):
            size = sum(p.stat().st_size for p in snapshot.rglob("*") if p.is_file())
            name = repo.name.removeprefix("models--").replace("--", "/")
            out.append(Installed(name=name, revision=snapshot.name, path=str(snapshot), nbytes=size))
    return out


def remove(model: str) -> None:
    """Delete a model from the hub's cache."""
    name = model.partition("@")[0]
    if not _is_hub_id(name) or not (repo := _repository(name)).is_dir():
        raise ModelError(f"{model:.200} is not in the hub's cache; see `gramme list`")
    if repo.is_symlink():
        raise ModelError(f"{repo} is a link to another place; delete it yourself")
    shutil.rmtree(repo)


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", p) and ".." not in p for p in parts)


def _repository(name: str) -> Path:
    return cache_directory() / ("models--" + name.replace("/", "--"))


def _snapshot(name: str, revision: str) -> Path:
    if not re.fullmatch(r"[\w.-]+", revision) or ".." in revision:
        raise ModelError(f"{revision!r:.80} is not a branch, tag or commit")
    ref = _repository(name) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    path = _repository(name) / "snapshots" / commit
    if not re.fullmatch(r"\w[\w.-]*", commit) or not path.is_dir():
        raise ModelError(f"{name}@{revision} is not on this machine; fetch it with: gramme pull {name}")
    return path
