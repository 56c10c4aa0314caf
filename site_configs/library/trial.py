"""Test of a submission: ask Slurm whether it would accept the job that a provider would submit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from site_configs.library.providers import SlurmBlocks
from site_configs.library.schedulers.commands import NO_ANSWER

PROMISE = re.compile(r"Job \d+ (to start at .+)")


@dataclass(frozen=True)
class Verdict:
    """Slurm's answer about a job that is not submitted.

    Attributes:
        promise: Slurm's text of when and where it would start; empty if there is none.
        problem: Slurm's reason for a refusal; None: it would be accepted.
    """

    promise: str
    problem: str | None


def try_out(provider: SlurmBlocks, command: str) -> Verdict:
    """Return Slurm's verdict on a provider's job, without the job number in it, which is not a job of ours.

    Args:
        provider: provider of the site.
        command: command that starts the worker pool.
    """
    with TemporaryDirectory() as folder:
        submit = provider.write_script(command, Path(folder))
        code, out, error = provider.execute_wait(submit.replace("sbatch ", "sbatch --test-only ", 1))
    text = " ".join(f"{error} {out}".replace("sbatch: ", "").split())
    if code == NO_ANSWER:
        return Verdict("", f"Slurm does not answer: {text}")
    if code:
        return Verdict("", text.removeprefix("error: ") or f"sbatch --test-only ended with {code}")
    promise = PROMISE.search(text)
    return Verdict(promise[1] if promise else "", None)
