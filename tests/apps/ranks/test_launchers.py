"""The rank of a process from the variables of each launcher, and how ranks are started."""

from __future__ import annotations

import sys

import pytest
import torch
from training_site import PARALLEL

from apps.base.errors import TaskError, UserMistake
from apps.base.own_packages import ROOT
from apps.ranks.launchers import (
    RankInfo,
    find_rank,
    launch_command,
    launch_environment,
    own_device,
    rendezvous_address,
    unmask_devices,
)

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
PALS = {"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "1", "PMI_SIZE": "8", "PMI_RANK": "5"}
PMI = {"PMI_RANK": "5", "PMI_LOCAL_RANK": "1", "PMI_SIZE": "8"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}  # Slurm sets these in every job


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN, PALS, PMI, OPEN_MPI])
def test_every_launcher_is_understood(variables):
    assert find_rank(variables, 8) == RankInfo(5, 1)


@pytest.mark.parametrize("variables", [TORCHRUN, PMI, OPEN_MPI, PALS])
def test_the_batch_script_s_own_variables_do_not_count(variables):
    assert find_rank(BATCH_SCRIPT | variables, 8) == RankInfo(5, 1)


def test_srun_with_pmi2_has_no_local_rank_of_pmi():
    assert find_rank({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"}, 8) == RankInfo(5, 1)


@pytest.mark.parametrize("variables", [{}, TORCHRUN, {**SRUN, "SLURM_NTASKS": "x"}, {"RANK": "0", "WORLD_SIZE": "4"}])
def test_another_number_of_ranks_is_an_error(variables):
    with pytest.raises(TaskError, match=r"among 4 ranks.*launch command"):
        find_rank(variables, 4)


def test_the_error_names_what_was_found():
    with pytest.raises(TaskError, match="RANK=5, LOCAL_RANK=1, WORLD_SIZE=8"):
        find_rank(TORCHRUN, 4)


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


def test_without_a_template_it_is_torchs_own_launcher():
    command = launch_command(PARALLEL | {"ranks_per_node": 4}, ["program"])
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[-2:] == ["--nproc-per-node=4", "program"]


def test_ranks_find_the_code_and_the_network():
    made = launch_environment({"PYTHONPATH": "/x", "A": "1"}, PARALLEL | {"interface": "hsn0", "nodes": 2}, 7)
    assert made["PYTHONPATH"] == f"{ROOT}:/x"
    assert (made["A"], made["OMP_NUM_THREADS"]) == ("1", "7")
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
