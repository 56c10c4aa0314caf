"""Asking Slurm whether it would take the very job that a site's provider would submit, without submitting it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from site_configs.library.providers import NO_ANSWER, SlurmBlocks

PROMISE = re.compile(r"Job \d+ (to start at .+)")


@dataclass(frozen=True)
class Verdict:
    """What Slurm says of a job that is not submitted.

    Attributes:
        promise: when and where it would start, in Slurm's words; empty where it does not tell.
        problem: why it would be refused, in Slurm's words; None: it would be taken.
    """

    promise: str
    problem: str | None


def try_out(provider: SlurmBlocks, command: str) -> Verdict:
    """Slurm's verdict on a provider's job; the job's number in it is none of ours and is left out.

    Args:
        provider: of the site.
        command: starts the worker pool.
    """
    with TemporaryDirectory() as folder:
        asked = provider.write_script(command, Path(folder))
        code, out, error = provider.execute_wait(asked.replace("sbatch ", "sbatch --test-only ", 1))
    words = " ".join(f"{error} {out}".replace("sbatch: ", "").split())
    if code == NO_ANSWER:
        return Verdict("", f"Slurm does not answer: {words}")
    if code:
        return Verdict("", words.removeprefix("error: ") or f"sbatch --test-only ended with {code}")
    promise = PROMISE.search(words)
    return Verdict(promise[1] if promise else "", None)
