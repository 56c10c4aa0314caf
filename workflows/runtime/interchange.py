"""Run Parsl's interchange as a process that can be found by its environment.

Parsl sets the title of its processes, which overwrites the memory that shows the environment of a process, and with it
the campaign's token: ``orphans.find_orphans`` would not see the interchange of a driver that was killed.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    # a user's own files in the script's or the current folder have common names
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(Path(__file__).resolve().parent))]
    sys.modules["setproctitle"] = None  # type: ignore[assignment]  # Parsl then sets no title
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__", alter_sys=True)
