"""Tests of the rehearsal itself, and its short form: two facilities as separate places, a killed driver, the same bits.

The whole rehearsal, with four facilities and all faults, is ``make rehearsal``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launcher_variables import APID, LAUNCHERS
from patience import patience

from rehearsal.facility import FACILITIES
from rehearsal.pals import cleaned, split, variables
from rehearsal.separation import needs_user_namespace

RUN = Path(__file__).resolve().parent / "run.py"


@pytest.mark.parametrize("kind", ["aurora", "polaris"])
def test_ranks_get_the_variables_of_the_facility(kind: str) -> None:
    own = variables(kind, rank=3, local_rank=1, node=1, ranks=4, per_node=2, app=APID)
    assert own == LAUNCHERS[kind](3, 4, 2)


def test_ranks_have_no_variable_of_the_launcher_below() -> None:
    below = {"SLURM_PROCID": "1", "PMIX_RANK": "1", "PBS_JOBID": "7.pbs", "PATH": "/bin"}
    assert cleaned(below) == {"PBS_JOBID": "7.pbs", "PATH": "/bin"}


def test_the_launcher_refuses_what_pals_does_not_know() -> None:
    assert split(["-n", "4", "--ppn=2", "--cpu-bind", "list:1-8", "python", "-m", "x"]) == (
        {"n": "4", "ppn": "2", "cpu-bind": "list:1-8"},
        ["python", "-m", "x"],
    )
    with pytest.raises(SystemExit, match="unrecognized option '--bind-to'"):
        split(["--bind-to", "core", "python"])


def test_the_machines_are_those_of_the_shipped_campaign() -> None:
    from rehearsal.stage import shipped_sites

    assert set(shipped_sites()) == set(FACILITIES)


def test_a_mistake_in_the_request() -> None:
    done = subprocess.run([sys.executable, str(RUN), "--sites", "mars"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "unknown: mars" in done.stderr


@pytest.mark.campaign
@pytest.mark.slurm
@pytest.mark.globus
def test_the_short_rehearsal(short_root: Path) -> None:
    if needs_user_namespace() is None:
        pytest.skip("this machine forbids namespaces: nothing can be separated")
    kept = short_root / "rehearsal"
    command = [sys.executable, str(RUN), "--short", "--keep", str(kept)]
    environment = {**os.environ, "CROSSFED_PATIENCE": str(max(1.0, patience(1)))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=patience(600), check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "2 of 2 versions have the bits of the undisturbed run" in done.stdout, done.stdout
