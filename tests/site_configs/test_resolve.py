"""From a name or a file to a Site, with the user's own settings checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from site_configs.base import Site
from site_configs.resolve import SiteConfigError, available, resolve_site

MACHINE = """
from pathlib import Path
from site_configs.base import Site

def site(name: str, run_dir: Path, *, account: str, nodes: int = 1, scratch: Path = Path("/scratch")) -> Site:
    if nodes > 4:
        raise ValueError("at most 4 nodes (site rule of 2026-08-19)")
    return Site(name=name, machine=f"{account} on {nodes}", route="local", storage_root=scratch / name,
                provider=lambda init: None)
"""


@pytest.fixture
def machine(tmp_path: Path) -> str:
    path = tmp_path / "machine.py"
    path.write_text(MACHINE)
    return str(path)


def test_local_is_there_and_helpers_are_no_machines() -> None:
    assert "local" in available() and not {"base", "resolve"} & set(available())


def test_a_local_site_keeps_its_files_in_the_run(tmp_path: Path) -> None:
    site = resolve_site("polaris", "local", tmp_path, {"threads": 2})
    assert isinstance(site, Site) and site.storage_root == tmp_path / "sites" / "polaris"
    assert site.threads == 2 and site.environment["OMP_NUM_THREADS"] == "2"
    assert resolve_site("polaris", "local", tmp_path, {"storage_root": "/data"}).storage_root == Path("/data")


def test_a_local_provider_starts_one_block_with_the_given_lines(tmp_path: Path) -> None:
    provider = resolve_site("polaris", "local", tmp_path, {}).provider("export A=1")
    assert (provider.init_blocks, provider.max_blocks, provider.worker_init) == (1, 1, "export A=1")


def test_settings_are_the_keyword_arguments_of_the_machine(machine: str, tmp_path: Path) -> None:
    site = resolve_site("x", machine, tmp_path, {"account": "ABC", "nodes": "2", "scratch": "/s"})
    assert site.machine == "ABC on 2" and site.storage_root == Path("/s/x")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"accountt": "A"}, "accountt: unknown setting, did you mean 'account'?"),
        ({"account": "A", "zzz": 1}, "zzz: unknown setting; .* takes: account, nodes, scratch"),
        ({"account": "A", "nodes": "two"}, "nodes: Input should be a valid integer"),
        ({}, "account: Missing required"),
        ({"account": "A", "nodes": 9}, "at most 4 nodes"),
    ],
)
def test_wrong_settings_are_told_with_their_key(machine: str, tmp_path: Path, settings: dict, told: str) -> None:
    with pytest.raises(SiteConfigError, match=told):
        resolve_site("x", machine, tmp_path, settings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "has no function 'site'"),
        ("def site(:", "cannot be loaded: SyntaxError"),
        ("import nothere", "cannot be loaded: ModuleNotFoundError"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("def site(name, run_dir): return 3", "returned 3 instead of a Site"),
        ("def site(name, run_dir): raise RuntimeError('no queue')", "no queue"),
    ],
)
def test_a_file_that_is_no_machine(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.py").write_text(text)
    with pytest.raises(SiteConfigError, match=told):
        resolve_site("x", str(tmp_path / "m.py"), tmp_path, {})


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match="did you mean 'local'"):
        resolve_site("x", "locl", tmp_path, {})
    with pytest.raises(SiteConfigError, match="there is no file"):
        resolve_site("x", "nothere.py", tmp_path, {})
    with pytest.raises(SiteConfigError, match="unknown site config 'base'"):
        resolve_site("x", "base", tmp_path, {})
