"""Batch jobs that an earlier driver of a run has left in the queues of its sites."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from apps.base.errors import CrossfedError, StorageError
from site_configs.library.schedulers import scheduler_for
from site_configs.library.site import Site
from workflows.records.journal import Journal


def leftover_problem(site: Site, prefix: str, journal: Journal) -> str | None:
    """Cancel the jobs that an earlier driver has left in a site's queue, and return why that is not possible, or None.

    Raises:
        StorageError: the journal cannot be written.
    """
    try:
        cancel_leftovers(site, prefix, journal)
    except StorageError:
        raise
    except CrossfedError as error:
        return error.what
    return None


def leftover_problems(sites: Collection[Site], prefix: str, journal: Journal) -> dict[str, str]:
    """Return the sites whose leftovers are not settled, with the reason; the schedulers are asked side by side."""
    with ThreadPoolExecutor(max_workers=max(1, len(sites))) as pool:
        problems = pool.map(lambda site: leftover_problem(site, prefix, journal), sites)
        return {site.name: problem for site, problem in zip(sites, problems, strict=True) if problem}


def cancel_leftovers(site: Site, prefix: str, journal: Journal) -> None:
    """Cancel the jobs that an earlier driver of this run has left in a site's queue.

    Raises:
        CrossfedError: the scheduler does not answer, or refuses the request: such a job would work in the same storage
            as the next one.
    """
    assert site.block is not None
    scheduler = scheduler_for(site.block.scheduler, site.block.command_environment)
    left = scheduler.find(prefix)
    if left is None:
        raise CrossfedError("the scheduler does not answer", site=site.name, remedy="Try again when it does")
    ids = [job.job_id for job in left]
    kept = scheduler.cancel(ids) if ids else []
    ended = [job_id for job_id in ids if job_id not in kept]
    if ended:
        journal.write("blocks_cancelled", site=site.name, job_ids=ended, reason="left by an earlier driver")
    if kept:
        raise CrossfedError(
            f"jobs of an earlier driver could not be cancelled: {', '.join(kept)}",
            site=site.name,
            remedy="Cancel them by hand, or try again later",
        )
