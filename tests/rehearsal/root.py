"""The file system of a place: the operating system of this machine, and nothing else of it.

A new root is put together in a folder from bind mounts and becomes the root of the mount namespace. What a place writes
is below its own folder; the folders of other places, of the driver and of this project do not exist in it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from rehearsal.commands import RehearsalError, run
from rehearsal.facility import AGENT_PACKAGES, PACKAGES, SYSTEM

TESTS = Path(__file__).resolve().parent.parent
SYSTEM_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
OWN_FOLDERS = ("tmp", "var", "run", "root", "opt")
DEVICES = ("nvidia0", "nvidiactl", "nvidia-uvm", "kfd", "dri")  # hidden: a login node has none, and neither do nodes


def make_root(folder: Path, mounts: Mapping[str, str], packages: Path, agent_environment: Path | None) -> None:
    """Make a root in ``folder/root`` and enter it, in a mount namespace of this process's own.

    Args:
        folder: all files of the place.
        mounts: mount point -> folder below ``folder``, created if absent.
        packages: folder of the packages that the place sees.
        agent_environment: environment of the Globus Compute agent, whose packages the place sees.
    """
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    for name in SYSTEM_FOLDERS:
        _system_folder(Path("/") / name, root / name)
    _own_folders(folder, root)
    for target, name in mounts.items():
        source = folder / name
        source.mkdir(parents=True, exist_ok=True)
        _bind(source, root / target.lstrip("/"))
    for source, target in _software(packages, agent_environment).items():
        _bind(source, root / target.lstrip("/"), read_only=True)
    _kernel_files(root)
    (root / "old").mkdir()
    os.chdir(root)
    run("pivot_root", ".", "old")
    os.chdir("/")
    run("umount", "-l", "/old")
    Path("/old").rmdir()


def _system_folder(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        _bind(source, target, read_only=True)


def _own_folders(folder: Path, root: Path) -> None:
    """Give the place its own copies and folders of what programs write to."""
    for name in OWN_FOLDERS:
        (folder / "own" / name).mkdir(parents=True, exist_ok=True)
        _bind(folder / "own" / name, root / name)
    (folder / "own" / "tmp").chmod(0o1777)
    for name in ("lib", "log", "spool"):
        (folder / "own" / "var" / name).mkdir(exist_ok=True)
    if not (folder / "etc").exists():
        shutil.copytree("/etc", folder / "etc", symlinks=True, ignore=_unreadable)
    _bind(folder / "etc", root / "etc")


def _unreadable(folder: str, names: list[str]) -> set[str]:
    return {n for n in names if not os.access(Path(folder) / n, os.R_OK) and not (Path(folder) / n).is_symlink()}


def _software(packages: Path, agent_environment: Path | None) -> dict[Path, str]:
    """Return what the place sees of this machine's software: packages, the facility's own commands, Python itself."""
    found = {packages: PACKAGES, TESTS: SYSTEM}
    if agent_environment:
        agent_packages = next(iter(sorted(agent_environment.glob("lib/python3.*/site-packages"))), None)
        if agent_packages is None:
            raise RehearsalError(f"{agent_environment} is no Python environment")
        found[agent_packages] = AGENT_PACKAGES
    base = Path(sys.base_prefix)
    if not base.is_relative_to("/usr"):
        found[base] = str(base)
    return found


def _bind(source: Path, target: Path, read_only: bool = False) -> None:
    target.mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", source, target)
    if read_only:  # refused where a flag of the mount is locked; then it is merely writable
        run("mount", "-o", "remount,bind,ro", target, check=False)


def _kernel_files(root: Path) -> None:
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir()
    run("mount", "-t", "proc", "proc", root / "proc")
    run("mount", "-t", "sysfs", "sysfs", root / "sys", check=False)  # of the new network namespace
    run("mount", "--rbind", "/dev", root / "dev")
    run("mount", "-t", "tmpfs", "tmpfs", root / "dev" / "shm", check=False)
    for name in DEVICES:
        device = root / "dev" / name
        if device.exists():
            kind = ("-t", "tmpfs", "tmpfs") if device.is_dir() else ("--bind", "/dev/null")
            run("mount", *kind, device)
