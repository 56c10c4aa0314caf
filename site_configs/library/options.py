"""Check of a user's own lines for a batch script: what would break the pilot job is refused, with the reason.

Names and letters are those of sbatch's and qsub's manual pages (Slurm 25.05, PBS Professional 2025.1). sbatch takes
each long name shortened as well.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from site_configs.library.errors import SiteConfigError
from site_configs.library.site import SchedulerKind

_FOUND_BY_NAME = "jobs are found by the names that they get here"
_OUTPUT = "the job's output is read from the files that it gets here"
_ONE_JOB = "a block is one job, which asks for work itself"
_WAITS = "the driver would wait, or read another answer than the job's id"
_TWICE = "a job that the scheduler restarts by itself would be two blocks under one name"
SLURM: dict[str, str] = {
    "array": _ONE_JOB,
    "wrap": _ONE_JOB,
    "output": _OUTPUT,
    "error": _OUTPUT,
    "input": _ONE_JOB,
    "job-name": _FOUND_BY_NAME,
    "requeue": _TWICE,
    "nodes": "set nodes",
    "ntasks": "set nodes and ranks_per_node",
    "ntasks-per-node": "set ranks_per_node",
    "cpus-per-task": "the cores of a rank follow from the machine, or from cores",
    "time": "set walltime",
    "time-min": "the job would be shorter than the trainer knows; set walltime",
    "deadline": "the job would end before the trainer knows; set walltime",
    "account": "set account",
    "reservation": "set reservation",
    "dependency": "each block would wait for that job again, and for ever once it is forgotten",
    "hold": "the job would never start by itself",
    "wait": _WAITS,
    "test-only": _WAITS,
    "parsable": _WAITS,
    "quiet": _WAITS,
    "help": _WAITS,
    "version": _WAITS,
    "usage": _WAITS,
    "clusters": "the jobs would be looked for on this cluster; set command_environment or another site",
    "cluster": "the jobs would be looked for on this cluster; set command_environment or another site",
    "export": "the workers and ranks need the variables that are set for them; set environment or setup",
    "export-file": "the workers and ranks need the variables that are set for them; set environment or setup",
}
_SLURM_LETTERS = {
    **{"a": "array", "A": "account", "d": "dependency", "e": "error", "H": "hold", "h": "help", "i": "input"},
    **{"J": "job-name", "M": "clusters", "N": "nodes", "n": "ntasks", "o": "output", "Q": "quiet", "t": "time"},
    **{"V": "version", "W": "wait", "c": "cpus-per-task"},
}
_SLURM_FLAGS = "HQWOskhvV"  # letters without a value, which may stand together
_SLURM_OTHERS = ("nodelist", "nodefile", "extra", "exclude", "exclusive", "comment", "time-limit")
PBS: dict[str, str] = {
    "J": _ONE_JOB,
    "N": _FOUND_BY_NAME,
    "o": _OUTPUT,
    "e": _OUTPUT,
    "j": _OUTPUT,
    "R": _OUTPUT,
    "r": _TWICE,
    "I": "a block is a batch job, without a terminal",
    "X": "a block is a batch job, without a terminal",
    "G": "a block is a batch job, without a terminal",
    "f": _WAITS,
    "z": _WAITS,
    "h": "the job would never start by itself",
    "q": "set queue; a queue that is not in the machine's table stands alone in its item: -q NAME",
    "A": "set account",
    "C": "the job's own lines begin with #PBS",
    "S": "the script is written for bash",
}
_PBS_RESOURCES = {
    "walltime": "set walltime",
    "min_walltime": "the job would be shorter than the trainer knows; set walltime",
    "max_walltime": "the job would be shorter than the trainer knows; set walltime",
    "select": "set nodes, and select or the machine's settings",
    "nodes": "set nodes",
    "nodect": "set nodes",
    "ncpus": "set nodes and cores",
    "ngpus": "set gpus",
}
_PBS_ATTRIBUTES = {
    "depend": "each block would wait for that job again, and for ever once it is forgotten",
    "block": _WAITS,
}
_PBS_FLAGS = "IXVzhfG"
OWN_QUEUE = re.compile(r"(?:#PBS\s+)?-q\s*([\w.@-]+)")


def own_queue(scheduler: SchedulerKind, options: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the queue of PBS that a user's options name, and the other options.

    qsub is told the queue on its command line, so that a line of the script would have no effect. Of two lines of
    sbatch about partition or QOS the last one counts, which is the user's.
    """
    named = [line for line in options if scheduler == "pbs" and OWN_QUEUE.fullmatch(line.strip())]
    found = OWN_QUEUE.fullmatch(named[-1].strip()) if named else None
    return found[1] if found else None, tuple(line for line in options if line not in named)


def checked_options(scheduler: SchedulerKind, options: Sequence[str], written: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the lines of a user without ``#SBATCH`` or ``#PBS``.

    Args:
        scheduler: kind of the scheduler.
        options: lines such as ``-C nvme``, ``--mail-type=END`` or ``-l filesystems=home``.
        written: lines that the machine's file writes.

    Raises:
        SiteConfigError: a line is no option, or would break the pilot job; with the setting that does what is meant.
    """
    lines = tuple(_bare(line) for line in options)
    for line in lines:
        for name, reason in _broken(scheduler, line, written):
            raise SiteConfigError(f"options: {name} cannot be set ({line}): {reason}")
    return lines


def _bare(line: str) -> str:
    bare = re.sub(r"^#(?:SBATCH|PBS)\s+", "", line.strip())
    if "\n" in bare or "\r" in bare:
        raise SiteConfigError(f"options: {bare!r} has a line break; write one option in each item of the list")
    if not bare.startswith("-"):
        raise SiteConfigError(f"options: {bare!r} is no option of a batch script, such as --constraint=nvme or -l x=1")
    return bare


def _broken(scheduler: SchedulerKind, line: str, written: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of a line that are refused, each with the reason."""
    if scheduler == "pbs":
        yield from _broken_pbs(line, written)
        return
    for name, shown in _slurm_options(line):
        if reason := SLURM.get(name):
            yield shown, reason


def _slurm_options(line: str) -> Iterator[tuple[str, str]]:
    """Yield the long name of each option in a line of sbatch, and the option as it is written."""
    for word in _words(line):
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            yield _full_name(name), f"--{name}"
        elif re.match(r"-[A-Za-z]", word):
            letters = re.match(rf"[{_SLURM_FLAGS}]*[A-Za-z]?", word[1:])
            for letter in letters[0] if letters else "":
                yield _SLURM_LETTERS.get(letter, letter), f"-{letter}"


def _full_name(name: str) -> str:
    """Return the refused option that a long name is short for, or the name itself."""
    if name in SLURM or name in _SLURM_OTHERS or len(name) < 2:
        return name
    meant = [full for full in SLURM if full.startswith(name)]
    return meant[0] if meant and not any(full.startswith(name) for full in _SLURM_OTHERS) else name


def _broken_pbs(line: str, written: Sequence[str]) -> Iterator[tuple[str, str]]:
    ours = {name for own in written for letter, value in _pbs_options(own) if letter == "l" for name in _names(value)}
    for letter, value in _pbs_options(line):
        if letter == "k" and "d" not in value:
            yield "-k", _OUTPUT
        elif letter == "l":
            refused = {name: _PBS_RESOURCES[name] for name in _names(value) if name in _PBS_RESOURCES}
            refused |= {name: "set filesystems" for name in _names(value) if name == "filesystems" and name in ours}
            yield from ((f"-l {name}", reason) for name, reason in refused.items())
        elif letter == "W":
            refused = {name: _PBS_ATTRIBUTES[name] for name in _names(value) if name in _PBS_ATTRIBUTES}
            yield from ((f"-W {name}", reason) for name, reason in refused.items())
        elif reason := PBS.get(letter):
            yield f"-{letter}", reason


def _names(value: str) -> list[str]:
    """Return the names of ``select=2:ncpus=4,walltime=1:00:00``."""
    return re.findall(r"(?:^|,)\s*([\w.]+)\s*=?", value)


def _pbs_options(line: str) -> Iterator[tuple[str, str]]:
    """Yield letter and value of each option in a line of qsub."""
    words = _words(line)
    while words:
        word = words.pop(0)
        if not re.match(r"-[A-Za-z]", word):
            continue
        letters = word[1:]
        while letters and letters[0] in _PBS_FLAGS:
            yield letters[0], ""
            letters = letters[1:]
        if letters:
            yield letters[0], letters[1:] or (words.pop(0) if words else "")


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise SiteConfigError(f"options: {line!r} cannot be read: {error}") from None
