"""How ranks are started, and which device each gets."""

from __future__ import annotations

import sys
from importlib import import_module

import psutil
import pytest
import torch
from training_site import PARALLEL

from apps.base.errors import UserMistake
from apps.base.own_packages import ROOT
from apps.ranks import launchers
from apps.ranks.launchers import (
    Rendezvous,
    initialise_mpi,
    join_process_group,
    launch_command,
    launch_environment,
    make_cache_folders,
    open_store,
    own_device,
    rendezvous_address,
    system_launcher,
    unmask_devices,
)
from apps.ranks.rank_info import RankInfo


def test_numbers_of_the_template_are_filled_in():
    launch = ["srun", "--nodes={nodes}", "--ntasks={ranks}", "--ntasks-per-node={ranks_per_node}", "--x={other}"]
    parallel = PARALLEL | {"nodes": 3, "ranks_per_node": 4, "launch": launch}
    assert launch_command(parallel, ["python", "-c", "{ranks}"]) == [
        "srun",
        "--nodes=3",
        "--ntasks=12",
        "--ntasks-per-node=4",
        "--x={other}",
        "python",
        "-c",
        "{ranks}",
    ]


def test_mpiexec_is_that_of_pals_where_the_machine_has_it(tmp_path, monkeypatch):
    """A conda environment has an mpiexec too, and comes first in PATH."""
    pals = tmp_path / "pals"
    for folder in (pals / "1.4/bin", pals / "1.10/bin", pals / "1.9/bin", tmp_path / "conda/bin"):
        folder.mkdir(parents=True)
        (folder / "mpiexec").write_text("#!/bin/sh\n")
        (folder / "mpiexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/conda/bin::{pals}/1.9/bin")
    assert system_launcher("mpiexec", pals) == f"{pals}/1.9/bin/mpiexec"
    monkeypatch.setenv("PATH", f"{tmp_path}/conda/bin")
    assert system_launcher("mpiexec", pals) == f"{pals}/1.10/bin/mpiexec"
    (pals / "default").symlink_to("1.4")
    assert system_launcher("mpiexec", pals) == f"{pals}/default/bin/mpiexec"
    assert system_launcher("/mine/mpiexec", pals) == "/mine/mpiexec"
    assert system_launcher("mpiexec", tmp_path / "none") == "mpiexec"
    assert system_launcher("srun", pals) == "srun"


def test_mpi_is_initialised_for_oneccl_alone(monkeypatch, caplog):
    imported = []
    monkeypatch.setattr(launchers, "import_module", imported.append)
    for kind, mode in (("cpu", "mpi"), ("cuda", "mpi"), ("xpu", "pmi"), ("xpu", "mpi")):
        initialise_mpi(kind, {"CCL_KVS_MODE": mode})
    initialise_mpi("xpu", {})
    assert imported == ["mpi4py.MPI"]
    monkeypatch.setattr(launchers, "import_module", lambda _name: import_module("crossfed_without_mpi4py"))
    initialise_mpi("xpu", {"CCL_KVS_MODE": "mpi"})
    assert "MPI is not initialised for oneCCL" in caplog.text


def test_folders_of_caches_are_made_on_the_node(tmp_path):
    folder = tmp_path / "a" / "miopen"
    make_cache_folders({"MIOPEN_USER_DB_PATH": str(folder), "MIOPEN_CUSTOM_CACHE_DIR": ""})
    make_cache_folders({"MIOPEN_USER_DB_PATH": str(folder)})
    assert folder.is_dir()
    make_cache_folders({"MIOPEN_USER_DB_PATH": "/proc/none"})
    make_cache_folders({})


def test_without_a_template_it_is_torchs_own_launcher():
    command = launch_command(PARALLEL | {"ranks_per_node": 4}, ["program"])
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[-2:] == ["--nproc-per-node=4", "program"]


def test_ranks_find_the_code_and_the_network():
    made = launch_environment({"PYTHONPATH": "/x", "A": "1"}, PARALLEL | {"interface": "hsn0", "nodes": 2}, 7)
    assert made["PYTHONPATH"] == f"{ROOT}:/x"
    assert (made["A"], made["OMP_NUM_THREADS"]) == ("1", "7")
    assert "PMI_RANK" not in launch_environment({"PMI_RANK": "0", "PMI_SIZE": "1"}, PARALLEL, 1)
    assert made["GLOO_SOCKET_IFNAME"] == made["NCCL_SOCKET_IFNAME"] == "hsn0"
    site = launch_environment({"NCCL_SOCKET_IFNAME": "hsn0,hsn1"}, PARALLEL | {"interface": "hsn0", "nodes": 2}, 1)
    assert site["NCCL_SOCKET_IFNAME"] == "hsn0,hsn1"
    assert launch_environment({}, PARALLEL, 1)["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in launch_environment({}, PARALLEL | {"nodes": 2}, 1)


def test_rendezvous_address():
    assert rendezvous_address(PARALLEL) == "127.0.0.1"
    assert rendezvous_address(PARALLEL | {"interface": "lo", "nodes": 2}) == "127.0.0.1"
    assert rendezvous_address(PARALLEL | {"nodes": 2}).count(".") == 3
    with pytest.raises(UserMistake, match=r"no network interface 'hsn9', only .*lo.*ranks.interface"):
        rendezvous_address(PARALLEL | {"interface": "hsn9"})


def test_the_store_listens_at_one_address_and_the_keys_of_ranks_have_the_secret_before_them():
    store = open_store("127.0.0.2")
    ports = [c.laddr.ip for c in psutil.Process().net_connections() if c.laddr.port == store.port and not c.raddr]
    assert ports == ["127.0.0.2"]
    with join_process_group(RankInfo(0, 0), PARALLEL, "cpu", Rendezvous(store.host, store.port, "5ec2e7")):
        keys = store.list_keys()
    assert keys
    assert all(key.startswith("5ec2e7/") for key in keys if key != "init/")


def test_devices_go_by_the_rank_on_the_node(monkeypatch):
    assert own_device("cpu", 3) == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [own_device("cuda", rank) for rank in (0, 3, 5)] == ["cuda:0", "cuda:3", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # a launcher that shows each rank its own alone
    assert own_device("cuda", 3) == "cuda:0"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserMistake, match="no cuda device"):
        own_device("cuda", 0)


@pytest.mark.parametrize(("rocm", "left"), [("7.1", {"ROCR_VISIBLE_DEVICES"}), (None, None)])
def test_rocm_is_not_masked_twice(rocm, left, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", rocm)
    environment = {"CUDA_VISIBLE_DEVICES": "3", "ROCR_VISIBLE_DEVICES": "3"}
    unmask_devices(environment)
    assert set(environment) == (left or {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"})
    alone = {"CUDA_VISIBLE_DEVICES": "3"}
    unmask_devices(alone)
    assert alone == {"CUDA_VISIBLE_DEVICES": "3"}
