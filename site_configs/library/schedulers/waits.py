"""Plain meanings of the reasons for which a job waits.

Sources: Slurm's ``job_reasons.c`` and its page on reason codes (25.05); the comments of OpenPBS' scheduler
(``src/scheduler/misc.c``, ``translate_fail_code``, 23.06). A job behind others (Priority, Resources, too few free
nodes) needs no explanation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Wait:
    """Meaning of a reason.

    Attributes:
        meaning: for people.
        lasting: the job does not start by itself, however long it waits.
    """

    meaning: str
    lasting: bool = False


_RULES: tuple[tuple[str, Wait], ...] = (
    (
        r"(?:Assoc|QOS)(?:Grp|Max)\w*RunMinutes\w*|(?:Assoc|QOS)Grp\w*RunMin\w*",
        Wait("the account's running jobs hold as many hours as they may at a time; it starts when some have ended"),
    ),
    (
        r"(?:Assoc|QOS)(?:Grp|Max)\w*(?:Minutes|Billing)\w*|QOSUsageThreshold"
        r"|(?:insufficient|negative|exhausted)\W+(?:\w+\W+){0,3}(?:balance|allocation|hours)",
        Wait("the allocation has too few hours left for it: ask for more hours, or for a shorter block", lasting=True),
    ),
    (
        r"(?:Assoc|QOS)\w*PerJob\w*|(?:Assoc|QOS)MaxWall\w*|PartitionTimeLimit|PartitionNodeLimit|MaxMemPerLimit",
        Wait(
            "it asks for more time or nodes than its queue allows: set a smaller walltime or fewer nodes", lasting=True
        ),
    ),
    (
        r"(?:Assoc|QOS)(?:Grp|Max)\w*Jobs?\w*",
        Wait("a limit on running jobs of one user or account; it starts when another one has ended"),
    ),
    (
        r"(?:Assoc|QOS)(?:Grp|Max)\w*",
        Wait("a limit on the nodes or devices of one user or account; it starts when others are free"),
    ),
    (
        r"Reserved for maintenance|maintenance",
        Wait("nodes are kept free for a maintenance; a walltime that ends before it may start now"),
    ),
    (
        r"ReqNodeNotAvail\w*|NodeDown|NodeNotAvail",
        Wait("nodes that it needs are down, drained or reserved, for a maintenance at times"),
    ),
    (
        r"InvalidAccount|AccountNotAllowed|InvalidQOS|QOSNotAllowed|AssocNotFound|AccountingPolicy",
        Wait("its account or QOS is not valid, or not any more: set sites.SITE.account or queue", lasting=True),
    ),
    (
        r"BadConstraints|can never run|will never run|not enough total nodes",
        Wait("no node of the machine fits its request: set other nodes, constraint or options", lasting=True),
    ),
    (
        r"ReservationDeleted|ReservationInvalid",
        Wait("its reservation does not exist any more: leave the reservation out", lasting=True),
    ),
    (r"Reservation\b|queue not started.*reservation", Wait("its reservation has not begun")),
    (
        r"PartitionDown|PartitionInactive|queue \S* ?(?:is )?not started|queue not started",
        Wait("its queue is stopped by the facility, for a maintenance at times"),
    ),
    (r"Licenses", Wait("a licence that it asks for, such as a file system, is not free or switched off")),
    (
        r"JobHeld\w*|JobHoldMaxRequeue|launch failed requeued held|job (?:is )?held|on hold",
        Wait("it is held: release it with scontrol release or qrls, or cancel it", lasting=True),
    ),
    (r"DependencyNeverSatisfied", Wait("it waits for a job that has failed: cancel it", lasting=True)),
    (
        r"would exceed .*limit|has reached .*limit|limit has been reached|reached (?:server|queue) .*limit",
        Wait("a limit on jobs, nodes or devices of one user, project or queue; it starts when others have ended"),
    ),
    (r"dedicated time", Wait("nodes are kept free for dedicated time; a walltime that ends before it may start now")),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), wait) for pattern, wait in _RULES)


def meaning_of(reason: str) -> Wait | None:
    """Return what a reason of Slurm or a comment of PBS means; None for an ordinary wait behind other jobs."""
    return next((wait for pattern, wait in _COMPILED if pattern.search(reason)), None)
