"""Rehearse the shipped campaign of four machines on this one: real schedulers, separate places, faults, the same bits.

python tests/rehearsal/run.py [--short] [--sites A,B,...] [--faults F,...] [--rounds N] [--steps N] [--keep DIR]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from rehearsal.commands import RehearsalError, namespaces
from rehearsal.faults import FAULTS
from rehearsal.rehearse import rehearse
from rehearsal.separation import missing_programs, needs_user_namespace
from rehearsal.stage import Size, shipped_sites

IN_WORLD = "CROSSFED_REHEARSAL"  # set in the process that has namespaces of its own
FAILED, MISSING = 1, 3
EPILOG = f"""faults, in the order of their rounds:
{chr(10).join(f"  {name:12} {fault.text}" for name, fault in FAULTS.items())}

Exit codes: 0 all versions of the model have the bits of the undisturbed run, 1 not, 2 a mistake in the request,
3 something is not installed or this machine cannot separate places.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/rehearsal/run.py",
        description="Rehearse the shipped four-machine campaign on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="two sites, two rounds, one kill: a few minutes")
    parser.add_argument("--sites", help="of the campaign; the driver is at the first (default: all)")
    parser.add_argument("--faults", help="comma-separated; 'none' for none (default: all)")
    parser.add_argument("--rounds", type=int, help="of the campaign (default: one for each fault, and one)")
    parser.add_argument("--steps", type=int, default=30, help="of training in a round (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the first model (default: 1)")
    parser.add_argument("--memory-gb", type=float, default=3.0, help="cap of the driver's host (default: 3)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files in a new folder (short path)")
    parser.add_argument("--sets", action="append", default=[], metavar="KEY=VALUE", help="more --set of the campaign")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.keep and options.keep.exists():
        return complain(f"{options.keep} exists", 2)
    sites = (options.sites or ("polaris,frontier" if options.short else ",".join(shipped_sites()))).split(",")
    unknown = sorted(set(sites) - set(shipped_sites())) + sorted(set(faults_of(options)) - set(FAULTS))
    if unknown:
        return complain(
            f"unknown: {', '.join(unknown)}; sites {', '.join(shipped_sites())}, faults {', '.join(FAULTS)}", 2
        )
    agent = agent_environment() if len(sites) > 1 else None
    missing = missing_programs(with_globus=len(sites) > 1)
    if agent and not (agent / "bin" / "globus-compute-endpoint").exists():
        missing.append(f"{agent}/bin/globus-compute-endpoint: make endpoint-env")
    user = needs_user_namespace() if not missing else None
    if missing:
        return complain("not installed:\n  " + "\n  ".join(missing), MISSING)
    if user is None:
        return complain("this machine forbids new mount, network and host name namespaces (unshare)", MISSING)
    if os.environ.get(IN_WORLD) != "1":
        return enter_world(user)
    with tempfile.TemporaryDirectory(prefix="cfr", dir="/tmp") as temporary:
        root = options.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        try:
            rounds = options.rounds or (2 if options.short else len(faults_of(options)) + 1)
            size = Size(rounds, options.steps, options.seed, short=options.short)
            alike = rehearse(root, sites, faults_of(options), size, agent, options.memory_gb, options.sets, say)
        except RehearsalError as error:
            return complain(str(error), FAILED)
    return 0 if alike else FAILED


def faults_of(options: argparse.Namespace) -> list[str]:
    if options.faults is None:
        return ["driver"] if options.short else list(FAULTS)
    return [] if options.faults == "none" else options.faults.split(",")


def agent_environment() -> Path:
    from facilities.globus.agents import endpoint_environment

    return endpoint_environment()


def enter_world(user: bool) -> int:
    """Run this program again in namespaces of its own, with which everything ends that it has started."""
    command = [*namespaces(user, "mount", "net", "pid"), "--mount-proc", sys.executable, *sys.argv]
    process = subprocess.Popen(command, env={**os.environ, IN_WORLD: "1"})
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return 130


def say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


def complain(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
