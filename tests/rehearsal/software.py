"""What a person finds at a facility: a login shell that prints, modules, Python environments, a copy of the project."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from rehearsal.facility import Facility

PROJECT_PARTS = ("apps", "data", "site_configs", "workflows", "pyproject.toml")

# as at the facilities: the first lines of every login shell are for people
BANNER = """\
echo '*******************************************************************************'
echo '  NOTICE TO USERS: this is {host}, a rehearsal of {name}. {{ "Jobs": none }}'
echo '*******************************************************************************'
echo 'Last maintenance: Monday' >&2
"""
MODULES = """\
# a part of Lmod: it prints to standard error, and knows what the facility's guide names
module() {
  case "${1:-}" in
    use) [ -n "${2:-}" ] ;;
    load) shift; echo "Lmod: loading $*" >&2 ;;
    *) echo "Lmod has detected the following error: unknown subcommand ${1:-}" >&2; return 1 ;;
  esac
}
export -f module
conda() { [ "${1:-}" = activate ]; }
export -f conda
"""
PROFILE = """\
export PATH={commands}:$PATH
export LC_TIME=de_DE.UTF-8  # not installed here, as on many login nodes
{variables}
"""


def write_profile(etc: Path, facility: Facility, commands: str, variables: dict[str, str]) -> None:
    """Write the files that login shells read; no other file of a shell is there."""
    shutil.rmtree(etc / "profile.d", ignore_errors=True)
    (etc / "profile.d").mkdir()
    (etc / "profile.d" / "00-banner.sh").write_text(BANNER.format(host=facility.login, name=facility.name))
    (etc / "profile.d" / "10-modules.sh").write_text(MODULES)
    lines = "\n".join(f"export {name}='{value}'" for name, value in variables.items())
    (etc / "profile.d" / "20-commands.sh").write_text(PROFILE.format(commands=commands, variables=lines))


def copy_project(source: Path, target: Path) -> None:
    """Copy what a checkout has that runs."""
    target.mkdir(parents=True)
    for name in PROJECT_PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source / name, target / name)


def make_environment(folder: Path, packages: str, programs: dict[str, str], project: Path | None) -> None:
    """Make a virtual environment that finds packages in a folder, and the project as if it had been installed.

    Args:
        folder: the environment, created.
        packages: folder of packages that the facility provides.
        programs: text of the packages' own programs by name; they get this environment's Python.
        project: root of the project, for an environment that runs it.
    """
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (site_packages,) = folder.glob("lib/python3.*/site-packages")
    lines = [packages, *([str(project)] if project else [])]
    (site_packages / "facility.pth").write_text("".join(f"{line}\n" for line in lines))
    for name, text in programs.items():
        path = folder / "bin" / name
        path.write_text(f"#!{folder}/bin/python\n{text}")
        path.chmod(0o755)


def python_programs(environment: Path) -> dict[str, str]:
    """Return the programs of an environment that are Python scripts, without their first lines."""
    found = {}
    for path in sorted((environment / "bin").iterdir()):
        if path.is_symlink() or not path.is_file() or not path.stat().st_mode & stat.S_IXUSR:
            continue
        with path.open("rb") as file:
            first = file.readline()
            if first.startswith(b"#!") and b"python" in first:
                found[path.name] = file.read().decode(errors="replace")
    return found


def login_environment(facility: Facility) -> dict[str, str]:
    """Return the environment before a login shell: what sshd sets, and nothing of this machine."""
    terminal = {"TERM": os.environ.get("TERM", "dumb")}
    return {**terminal, "HOME": "/home/user", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}
