"""Jobs that PBS lists for the user and whose records it prints in odd ways.

``qstat -f -F json`` of several versions puts the variables of a job into its output without escaping them, so that a
job submitted with ``qsub -V`` makes all of it invalid (reports of OpenPBS 19.1 and 20; worked around on ALCF's
machines). A job that was moved to a peer server is in state M, an ended subjob in state X (qstat's manual page).
"""

from __future__ import annotations

import json
from typing import Any

from facilities.pbs_state import Home

VARIABLES = {
    "function": ("BASH_FUNC_module()", '"() {  eval `/usr/bin/modulecmd bash "$@"`\n}"'),
    "zeros": ("RUN_NUMBER", "005"),
    "control": ("PS1", '"\x1b[01;32m\x07"'),
    "plain": ("LANG", '"C"'),
}
MARK = "ODD-VARIABLE"


def odd_jobs(home: Home) -> dict[str, dict[str, Any]]:
    """Return the attributes of the odd jobs by number; the odd variable is a mark until it is printed."""
    jobs = home.read("odd")["jobs"] if home.has("odd") else []
    return {str(90001 + place): record(job) for place, job in enumerate(jobs)}


def record(job: dict[str, Any]) -> dict[str, Any]:
    name, _ = VARIABLES[job["variable"]]
    return {
        "Job_Name": job["name"],
        "Job_Owner": job["owner"],
        "job_state": job["state"],
        "queue": job["queue"],
        "Resource_List": {"nodect": 1, "walltime": "01:00:00"},
        "Variable_List": {"PBS_O_HOME": "/home/me", name: f"{MARK}-{job['variable']}"},
        "comment": "Job run at Sat Nov 28 at 17:00 on (node1:ncpus=1)",
    }


def printed(text: str) -> str:
    """Return an output with the odd variables as PBS prints them."""
    for name, (_, value) in VARIABLES.items():
        text = text.replace(json.dumps(f"{MARK}-{name}"), value).replace(f"{MARK}-{name}", value.strip('"'))
    return text
