"""Tests of the resolution of a name or a file to a Site, with the user's settings checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from site_configs.library import site as base
from site_configs.library.resolve import SiteConfigError, available, resolve_site, takes
from site_configs.library.site import Site

MACHINE = """
from pathlib import Path
from site_configs.library.site import Site

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


def test_the_machines() -> None:
    assert available() == ["aurora", "frontier", "local", "pbs", "perlmutter", "perlmutter_80gb", "polaris", "slurm"]


def test_a_local_site_keeps_its_files_in_the_run(tmp_path: Path) -> None:
    site = resolve_site("polaris", "local", tmp_path, {"threads": 2})
    assert isinstance(site, Site) and site.storage_root == tmp_path / "sites" / "polaris"
    assert site.threads == 2 and site.environment["OMP_NUM_THREADS"] == "2"
    assert resolve_site("polaris", "local", tmp_path, {"storage_root": "/data"}).storage_root == Path("/data")


def test_a_local_provider_starts_one_block_with_the_given_lines(tmp_path: Path) -> None:
    provider = resolve_site("polaris", "local", tmp_path, {}).provider("export A=1")
    assert (provider.init_blocks, provider.max_blocks, provider.worker_init) == (1, 1, "export A=1")


def test_ranks_of_a_local_site(tmp_path: Path) -> None:
    site = resolve_site("x", "local", tmp_path, {"ranks": 2, "device": "cuda"})
    assert (site.ranks.per_node, site.ranks.launch, site.ranks.backend) == (2, (), "nccl")
    assert resolve_site("x", "local", tmp_path, {}).ranks.per_node == 1
    with pytest.raises(SiteConfigError, match="ranks: Input should be greater than 0"):
        resolve_site("x", "local", tmp_path, {"ranks": 0})


def test_missing_settings_are_reported_with_their_meaning(tmp_path: Path) -> None:
    message = r"polaris needs account \(the project that pays\); storage_root \(a folder at the site.*\. Write it under"
    with pytest.raises(SiteConfigError, match=message):
        resolve_site("argonne", "polaris", tmp_path, {"nodes": 2})
    with pytest.raises(SiteConfigError, match="needs storage_root .*--set sites.argonne.storage_root=VALUE$"):
        resolve_site("argonne", "polaris", tmp_path, {"account": "ABC"})


def test_settings_are_the_keyword_arguments_of_the_machine(machine: str, tmp_path: Path) -> None:
    site = resolve_site("x", machine, tmp_path, {"account": "ABC", "nodes": "2", "scratch": "/s"})
    assert site.machine == "ABC on 2" and site.storage_root == Path("/s/x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accountt": "A"}, "accountt: unknown setting, did you mean 'account'?"),
        ({"account": "A", "zzz": 1}, "zzz: unknown setting; .* takes: account, nodes, scratch"),
        ({"account": "A", "nodes": "two"}, "nodes: Input should be a valid integer"),
        ({}, "needs account. Write it under sites.x, or --set sites.x.account=VALUE"),
        ({"account": None}, "needs account"),
        ({"account": "A", "nodes": 9}, "at most 4 nodes"),
    ],
)
def test_wrong_settings_are_reported_with_their_key(machine: str, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(SiteConfigError, match=message):
        resolve_site("x", machine, tmp_path, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function 'site'"),
        ("def site(:", "cannot be loaded: SyntaxError"),
        ("import nothere", "cannot be loaded: ModuleNotFoundError"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("def site(name, run_dir): return 3", "returned 3 instead of a Site"),
        ("def site(name, run_dir): raise RuntimeError('no queue')", "no queue"),
    ],
)
def test_a_file_that_is_not_a_machine(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.py").write_text(text)
    with pytest.raises(SiteConfigError, match=message):
        resolve_site("x", str(tmp_path / "m.py"), tmp_path, {})


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match="did you mean 'local'"):
        resolve_site("x", "locl", tmp_path, {})
    with pytest.raises(SiteConfigError, match="there is no file"):
        resolve_site("x", "nothere.py", tmp_path, {})
    with pytest.raises(SiteConfigError, match="unknown site config 'base'"):
        resolve_site("x", "base", tmp_path, {})


def test_a_copy_of_a_machines_file_works_from_anywhere(tmp_path: Path) -> None:
    """As the README says; its annotations are names of its own module."""
    for machine, settings in (
        ("polaris", {"account": "A", "storage_root": "/eagle/A"}),
        ("slurm", {"storage_root": "/s"}),
        ("perlmutter_80gb", {"account": "A", "storage_root": "/pscratch/A"}),
        ("local", {}),
    ):
        copy = tmp_path / f"my_{machine}.py"
        copy.write_text((Path(base.__file__).parents[1] / f"{machine}.py").read_text())
        assert resolve_site("x", str(copy), tmp_path / "run", settings).name == "x"


def test_a_machines_settings_are_its_own_and_the_shared_ones() -> None:
    for machine in ("polaris", "aurora", "frontier", "perlmutter", "perlmutter_80gb"):
        for key in (
            "account",
            "storage_root",
            "nodes",
            "walltime",
            "queue",
            "blocks",
            "modules",
            "python_env",
            "address",
        ):
            assert takes(machine, key), (machine, key)
    assert takes("polaris", "filesystems") and not takes("frontier", "filesystems")
    assert takes("slurm", "partition") and takes("pbs", "queue") and not takes("slurm", "queue")
    assert all(takes(cluster, key) for cluster in ("slurm", "pbs") for key in ("cores", "gpus", "launch", "poll_s"))


@pytest.mark.parametrize("machine", ["polaris", "perlmutter_80gb", "slurm", "pbs"])
def test_a_misspelt_shared_setting_is_refused_with_its_name(machine: str, tmp_path: Path) -> None:
    settings = {"storage_root": "/eagle/A", "waltime": "1h"} | ({"account": "A"} if machine[0] == "p" else {})
    with pytest.raises(SiteConfigError, match="waltime: unknown setting, did you mean 'walltime'?"):
        resolve_site("x", machine, tmp_path, settings)
    with pytest.raises(SiteConfigError, match="nodes: Input should be greater than 0"):
        resolve_site(
            "x", machine, tmp_path, {key: settings[key] for key in settings if key != "waltime"} | {"nodes": 0}
        )


def test_a_users_file_may_preset_settings(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from functools import partial\n\nfrom site_configs import slurm\n\n"
        "site = partial(slurm.site, partition='gpu', cores=8)\n"
    )
    site = resolve_site("x", str(mine), tmp_path, {"storage_root": "/s", "nodes": 2})
    assert site.block and (site.block.queue.name, site.block.nodes, site.threads) == ("gpu", 2, 8)
    assert resolve_site("x", str(mine), tmp_path, {"storage_root": "/s", "cores": 4}).threads == 4
    with pytest.raises(SiteConfigError, match=r"mine.py needs storage_root \(a folder at the site"):
        resolve_site("x", str(mine), tmp_path, {})
