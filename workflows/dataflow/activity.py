"""The current activity of a site in one value, for the display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.training.progress import Progress
from workflows.console.units import plural
from workflows.dataflow.round import LocalRound

if TYPE_CHECKING:
    from workflows.runtime.block_watch import BlockWatch
    from workflows.runtime.kernel import Kernel

AT_WORKER = ("starting", "asking", "queued", "loading", "training")  # phases that need a running batch job


@dataclass(frozen=True)
class SiteActivity:
    """A moment of a site.

    Attributes:
        phase: a key of ``reporting.display.PHASES``, or text of the scheduler or of Globus.
        progress: of the training, where there is one.
        seen_at: UNIX time at which the site was so; None: now.
        watch: of the site's batch jobs; None where it has none.
    """

    phase: str
    progress: Progress | None = None
    seen_at: float | None = None
    watch: BlockWatch | None = None


def activity_of(
    site: str,
    kernel: Kernel,
    newest: LocalRound | None,
    number: int,
    *,
    enrolled: bool,
    asking: bool,
    begun: bool,
    waits: str | None = None,
) -> SiteActivity:
    """Return what a site is doing.

    Args:
        site: its name.
        kernel: knows its executor, its batch jobs and its progress file.
        newest: futures of the site's newest round, if it has one.
        number: of that round.
        enrolled: the site has answered its enrolment.
        asking: a block was requested and has not started.
        begun: the strategy has received its first event.
        waits: why the site is asked again later, if it is.
    """
    watch = kernel.watches.get(site)
    if waits:
        return SiteActivity(waits, watch=watch)
    phase, progress = _phase(site, kernel, newest, number, enrolled=enrolled, asking=asking)
    if watch and phase in AT_WORKER and not watch.running():
        phase, progress = watch.state(), None
    if phase == "ready" and not begun:
        phase = "gathering"
    return SiteActivity(phase, progress, kernel.seen_at(site), watch)


def block_activity(label: str, kernel: Kernel) -> SiteActivity:
    """Return what a block of the server's own work is doing.

    Args:
        label: of its executor.
        kernel: knows its tasks and its batch jobs.
    """
    executor: Any = kernel.kernel.executors[label]
    watch, open_tasks = kernel.watches.get(label), executor.outstanding()
    if watch and not watch.running():
        return SiteActivity(watch.state() if open_tasks or watch.jobs else "idle", watch=watch)
    return SiteActivity(f"{plural(open_tasks, 'task')} to do" if open_tasks else "idle", watch=watch)


def _phase(
    site: str, kernel: Kernel, newest: LocalRound | None, number: int, *, enrolled: bool, asking: bool
) -> tuple[str, Progress | None]:
    globus = kernel.globus
    if asking and (newest is None or newest.update.done()):
        return "asking", None
    if newest is None:
        return ("ready" if enrolled else globus.task_text(site) or "starting"), None
    if newest.update.done():
        return "idle", None
    if newest.manifest.done():
        return globus.transfer_text(site) or "returning", None
    if newest.base.done():
        progress = kernel.progress(site)
        if progress and progress["round"] == number:
            return progress["phase"], progress
        return globus.task_text(site, newest.base) or "queued", None
    return (globus.transfer_text(site) or "staging") if newest.model.done() else "idle", None


def server_activity(models: Sequence[Any], updates: Sequence[Any], evaluations: Sequence[Any]) -> str:
    """Return what the server and the evaluator are doing; empty if they wait for the sites.

    Args:
        models: futures of the global models, the newest last.
        updates: futures of each site's newest update.
        evaluations: futures of all evaluations.
    """
    if not models or (len(models) == 1 and not models[0].done()):
        return "making the first model"
    if not models[-1].done():
        return "aggregating" if all(update.done() for update in updates) else ""
    return "evaluating" if any(not future.done() for future in evaluations[-len(updates) - 1 :]) else ""
