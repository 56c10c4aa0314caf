"""Choice of a queue by the facility's table, so that a request that would be refused is refused before submission."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from site_configs.library.errors import SiteConfigError, did_you_mean
from site_configs.library.site import Queue, SchedulerKind

MINUTE, HOUR, DAY = 60, 3600, 86400
UNIT_S = {"d": DAY, "h": HOUR, "m": MINUTE, "s": 1}
CLOCK = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
RESERVATION = re.compile(r"[RSM]\d+(?:\.[\w.-]+)?")
UNITS = re.compile(r"(?:\s*\d+(?:\.\d+)?\s*[dhms])+\s*")


@dataclass(frozen=True)
class QueueRequest:
    """Number of nodes and walltime of a batch job, and its queue."""

    nodes: int
    walltime_s: int
    queue: str


class QueueRefusedError(SiteConfigError):
    """No queue takes the request; ``nearest`` is the most similar request that is taken."""

    def __init__(self, text: str, nearest: QueueRequest) -> None:
        super().__init__(text)
        self.nearest = nearest


def choose_queue(queues: Sequence[Queue], nodes: int, walltime_s: int, name: str | None = None) -> Queue:
    """Return the queue that takes a block of this size and walltime.

    Several are ordered by: not preemptable; the shortest time limit, because a queue for short jobs moves faster; the
    smallest node limit. Queues on request are taken only by their own name.

    Args:
        queues: table of the facility.
        nodes: nodes per block.
        walltime_s: walltime of a block in seconds.
        name: name of a queue, or what several queues are submitted to; None: any.

    Raises:
        QueueRefusedError: no queue takes it; with the rule that is broken and the nearest request that is taken.
        SiteConfigError: no queue has that name.
    """
    admitting = [queue for queue in _candidates(queues, name) if _admits(queue, nodes, walltime_s)]
    if not admitting:
        raise _refusal(queues, nodes, walltime_s, name)
    return min(admitting, key=_preference)


def longest_walltime(queues: Sequence[Queue], nodes: int, name: str | None = None) -> int:
    """Return the longest walltime, in seconds, for a number of nodes; preemptable queues count only without others.

    Raises:
        QueueRefusedError, SiteConfigError: see ``choose_queue``.
    """
    fitting = [queue for queue in _candidates(queues, name) if queue.min_nodes <= nodes <= queue.max_nodes]
    if not fitting:
        raise _refusal(queues, nodes, HOUR, name)
    return max(queue.max_walltime_s for queue in [q for q in fitting if not q.preemptable] or fitting)


def _candidates(queues: Sequence[Queue], name: str | None) -> list[Queue]:
    if name is None:
        found = [queue for queue in queues if not queue.on_request]
    else:
        found = [q for q in queues if q.name == name or (q.submit_to == name and not q.on_request)]
    if found:
        if all(queue.only_interactive for queue in found):
            raise SiteConfigError(f"queue: {name} takes no batch jobs: {found[0].note} ({found[0].source})")
        return found
    names = list(dict.fromkeys(known for q in queues for known in (q.submit_to, q.name) if known))
    if name is None:
        raise SiteConfigError(f"queue: name one of {', '.join(names)}")
    unlisted = "any other goes into options: -q NAME or --qos=NAME"
    hint = did_you_mean(name, names, f"known: {', '.join(names)}; {unlisted}")
    raise SiteConfigError(f"queue: {name!r} is unknown{hint}")


def _admits(queue: Queue, nodes: int, walltime_s: int) -> bool:
    return queue.min_nodes <= nodes <= queue.max_nodes and queue.min_walltime_s <= walltime_s <= queue.max_walltime_s


def _preference(queue: Queue) -> tuple[bool, int, int]:
    return queue.preemptable, queue.max_walltime_s, queue.max_nodes


def _refusal(queues: Sequence[Queue], nodes: int, walltime_s: int, name: str | None) -> QueueRefusedError:
    named = _candidates(queues, name)
    open_to_all = [queue for queue in queues if not queue.on_request and queue not in named]
    broken, _ = _nearest(named, nodes, walltime_s)
    _, nearest = _nearest([*named, *open_to_all], nodes, walltime_s)
    refused = f"queue {name} does not take" if name else "no queue takes"
    by_name = [q for q in queues if q.on_request and not q.only_interactive and _admits(q, nodes, walltime_s)]
    named_only = "".join(f"; only if it is named: queue {queue.name} ({queue.note})" for queue in by_name[:1])
    return QueueRefusedError(
        f"{refused} {_text(nodes, walltime_s)}: {rule_of(broken)};"
        f" nearest that is taken: {_text(nearest.nodes, nearest.walltime_s)} in queue {nearest.queue}{named_only}",
        nearest,
    )


def _nearest(queues: Sequence[Queue], nodes: int, walltime_s: int) -> tuple[Queue, QueueRequest]:
    """Return the queue whose limits are closest to a request, and the nearest request that it takes."""
    return min(
        ((queue, _closest(queue, nodes, walltime_s)) for queue in queues),
        key=lambda offer: (_distance(offer[1], nodes, walltime_s), _preference(offer[0])),
    )


def _closest(queue: Queue, nodes: int, walltime_s: int) -> QueueRequest:
    return QueueRequest(
        nodes=min(max(nodes, queue.min_nodes), queue.max_nodes),
        walltime_s=min(max(walltime_s, queue.min_walltime_s), queue.max_walltime_s),
        queue=queue.name,
    )


def _distance(offer: QueueRequest, nodes: int, walltime_s: int) -> float:
    """Return the change of a request on a log scale: half the nodes counts as much as half the time."""
    return abs(math.log(offer.nodes / max(nodes, 1))) + abs(math.log(max(offer.walltime_s, 1) / max(walltime_s, 1)))


def rule_of(queue: Queue) -> str:
    """Return a queue's limits as text, with their source and date."""
    noun = "node" if queue.max_nodes == 1 else "nodes"
    nodes = f"{queue.min_nodes}" if queue.min_nodes == queue.max_nodes else f"{queue.min_nodes}-{queue.max_nodes}"
    shortest = f"{format_walltime(queue.min_walltime_s)} to " if queue.min_walltime_s else "up to "
    limits = f"{queue.name} takes {nodes} {noun} for {shortest}{format_walltime(queue.max_walltime_s)}"
    return f"{limits} ({queue.source}, {queue.as_of})"


def _text(nodes: int, walltime_s: int) -> str:
    return f"{nodes} node{'s' * (nodes != 1)} for {format_walltime(walltime_s)}"


def format_walltime(walltime_s: int) -> str:
    """Return hours, minutes and seconds such as ``168:00:00``, a form that both Slurm and PBS take."""
    return f"{walltime_s // HOUR}:{walltime_s % HOUR // MINUTE:02d}:{walltime_s % MINUTE:02d}"


def parse_walltime(value: object) -> int:
    """Return the seconds of a walltime; see ``parse_duration``.

    Raises:
        ValueError: another form; or a bare number below a minute, because schedulers take it for minutes.
    """
    found = parse_duration(value)
    if found < MINUTE and re.fullmatch(r"[\d.]+", str(value).strip()):
        raise ValueError(f"{found} is seconds; write {found}m or 00:{found:02d}:00")
    return found


def parse_duration(value: object) -> int:
    """Return the seconds of ``2:00:00``, ``1-12:00:00``, ``90m``, ``1d 12h`` or a number of seconds.

    YAML itself reads a bare ``2:00:00`` as 7200.

    Raises:
        ValueError: another form; ``2:30`` is refused because it may mean minutes or hours.
    """
    text = str(value).strip().lower()
    if clock := CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        found = days * DAY + hours * HOUR + minutes * MINUTE + seconds
    elif UNITS.fullmatch(text):
        found = round(sum(float(n) * UNIT_S[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)))
    elif re.fullmatch(r"\d+(?:\.0)?", text):
        found = int(float(text))
    else:
        found = 0
    if found < 1:
        raise ValueError(f"{value!r} is not a walltime; write 2:00:00, 90m, 1d 12h or seconds")
    return found


def reserved_queue(
    scheduler: SchedulerKind, queues: Sequence[Queue], nodes: int, walltime_s: int, name: str | None, reservation: str
) -> Queue:
    """Return the row of a block in a reservation, whose own limits replace those of the table.

    A reservation of PBS is a queue; one of Slurm holds nodes for jobs of any queue.

    Args:
        scheduler: kind of the scheduler.
        queues: table of the facility.
        nodes: nodes per block.
        walltime_s: walltime of a block in seconds.
        name: name of a queue of the table; None: any.
        reservation: name or id of the reservation.
    """
    source = f"your reservation {reservation}"
    if scheduler == "pbs":
        return Queue(reservation.split(".")[0], 1, nodes, walltime_s, date.today(), source)
    named = _candidates(queues, name)
    row = min(named, key=lambda queue: (not _admits(queue, nodes, walltime_s), *_preference(queue)))
    return replace(row, min_nodes=1, max_nodes=nodes, max_walltime_s=walltime_s, min_walltime_s=0, source=source)


def is_reservation(name: str | None) -> bool:
    """Return True for the id of a reservation of PBS: an advance, standing or maintenance one."""
    return RESERVATION.fullmatch(name or "") is not None
