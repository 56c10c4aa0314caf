"""Sentence about a batch job that waits: how long, why, and when it is expected to start."""

from __future__ import annotations

import time

from site_configs.library.schedulers import JobFacts
from site_configs.library.schedulers.waits import meaning_of

REASON_LENGTH = 80  # PBS has whole sentences
SOON_S = 12 * 3600


def queued_text(job_id: str, facts: JobFacts | None, waited_s: float, now: float | None = None) -> str:
    """Return ``queued for 12 min (job 4711, Priority), expected to start about 14:30``.

    Args:
        job_id: id of the job.
        facts: what its scheduler says; None: nothing yet.
        waited_s: seconds since its submission.
        now: UNIX seconds; None: now.
    """
    reason = facts.reason.removeprefix("Not Running:").strip() if facts else ""
    wait = meaning_of(reason)
    parts = [f"job {job_id}", "" if reason == "None" else reason[:REASON_LENGTH]]
    why = ", ".join(filter(None, parts)) + (f": {wait.meaning}" if wait else "")
    expected = facts.expected_start if facts else None
    starts = start_text(expected, now or time.time()) if not (wait and wait.lasting) else "it does not start by itself"
    return ", ".join(filter(None, [f"queued for {waited_s / 60:.0f} min ({why})", starts]))


def wait_hint(facts: JobFacts) -> str:
    """Return a sentence on a wait that is not an ordinary one behind other jobs; empty for that."""
    wait = meaning_of(facts.reason)
    if wait is None:
        return ""
    verb = "does not start by itself" if wait.lasting else "waits"
    reason = facts.reason.removeprefix("Not Running:").strip()[:REASON_LENGTH]
    return f"job {facts.job_id} {verb} ({reason}): {wait.meaning}"


def start_text(expected: float | None, now: float) -> str:
    """Return when a job is expected to start, in this host's time; empty if it is unknown or past."""
    if expected is None or expected <= now:
        return ""
    form = "%H:%M" if expected - now < SOON_S else "%a %d %b %H:%M"
    return f"expected to start about {time.strftime(form, time.localtime(expected))}"
