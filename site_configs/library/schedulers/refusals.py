"""Classes of refused submissions, by the sentences of sbatch and qsub.

Sources: Slurm's ``slurm_errno.c`` and ``job_reasons.c`` (23.11 to 25.05), OpenPBS' ``pbs_messages.c`` (23.06), NERSC's
page on job submission errors, and the wordings that facilities' own submission plugins and hooks use for balances. A
sentence that is in none of them is of no class: it is tried again for a while.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Cause = Literal["limit", "unavailable", "allocation", "request", ""]
LIMIT: Cause = "limit"  # on the number of jobs: it passes when another job has ended
UNAVAILABLE: Cause = "unavailable"  # maintenance, a stopped queue, a scheduler that does not answer: it passes
ALLOCATION: Cause = "allocation"  # the project cannot pay
REQUEST: Cause = "request"  # queue, QOS, account or an option is wrong
PASSING = (LIMIT, UNAVAILABLE)


@dataclass(frozen=True)
class Refusal:
    """Class of a refused submission.

    Attributes:
        cause: class; empty: unknown.
        meaning: what the scheduler's sentence means, for people; empty for an unknown class.
    """

    cause: Cause
    meaning: str


_BALANCE = r"(?:balance|allocations?|node.?hours|core.?hours|hours|budget|credits?|funds|service units|charges?)"
_SPENT = r"(?:exhausted|expired|insufficient|negative|overdrawn|used up|depleted|exceeded|not enough|no remaining)"
# In this order: a sentence about one limit ends with a general one about limits
_RULES: tuple[tuple[Cause, str, str], ...] = (
    (
        REQUEST,
        "the job is larger or longer than this queue allows one job to be",
        r"(?:QOS|Assoc)(?:Grp|Max|Min)\w*PerJob\w*|(?:QOS|Assoc)MaxWall\w*|(?:QOS|Assoc)\w*PerNode\w*|(?:QOS|Assoc)Min\w*",
    ),
    (
        ALLOCATION,
        "the project's allocation is used up",
        r"(?:QOS|Assoc)(?:Grp|Max)\w*Minutes\w*|(?:QOS|Assoc)GrpBilling\b|breached requested QOS usage threshold",
    ),
    (
        LIMIT,
        "a limit on the number of jobs",
        r"would exceed .*limit|Maximum number of jobs|MaxSubmit\w*|SubmitJobs?(?:Per\w+)?Limit|GrpSubmit\w*"
        r"|MaxJobCount limit|(?:QOS|Assoc)(?:Grp|Max)\w*|job submit limit|too many (?:queued )?jobs"
        r"|limit of \d+ (?:queued |submitted |running )?jobs",
    ),
    (
        UNAVAILABLE,
        "the scheduler or the queue takes no jobs now",
        r"unable to contact slurm controller|socket timed out|connection refused|cannot connect to server"
        r"|communication (?:connection|shutdown) failure|message (?:send|receive) failure|connection timed out"
        r"|rate limit exceeded|server shutting down|queue is not enabled|partition not available"
        r"|partition \S+ is (?:down|inactive|drain\w*)|in standby mode|no free connections|connection table full"
        r"|temporarily un|maintenance|could not contact scheduler|munge|authentication error|end of file"
        r"|requested operation is presently disabled|configuration not available now|requested nodes are busy"
        r"|reservation not usable now|licenses currently unavailable|license(?: server)? (?:is )?(?:down|unavailable)"
        r"|did not answer|does not answer|try again|unable to establish configuration source"
        r"|file ?system quota|disk quota exceeded|no space left|error writing script|system error|internal error"
        r"|not accepting (?:new )?jobs|submission\w* (?:is|are) (?:currently )?disabled",
    ),
    (
        ALLOCATION,
        "the project cannot pay for the job",
        rf"{_SPENT}\W+(?:\w+\W+){{0,4}}{_BALANCE}|{_BALANCE}\W+(?:\w+\W+){{0,8}}{_SPENT}"
        rf"|no (?:active|valid|current|remaining) {_BALANCE}|(?:project|account)\W+(?:\S+\W+){{0,4}}{_SPENT}"
        rf"|(?:project|account)\W+(?:\S+\W+){{0,3}}(?:suspended|inactive|not active|closed|ended)"
        r"|remaining balance|out of (?:hours|time|allocation)|no (?:node.)?(?:hours|time) (?:left|remain\w*)",
    ),
    (
        REQUEST,
        "a setting of the site is wrong",
        r"unknown (?:queue|resource|reservation)|invalid (?:qos|partition|account|feature|generic resource|license)"
        r"|invalid (?:wckey|array|job array|user id|time|node name|option|request|select|credential|specification)"
        r"|specification (?:is )?invalid|invalid burst|not permitted|not authorized|unauthorized|access denied"
        r"|permission denied|access to queue is denied|time limit is invalid|more processors requested"
        r"|violates queue and/or server resource limits|unrecognized option|invalid option|unknown option"
        r"|illegal (?:attribute|-\w|option)|usage: (?:qsub|sbatch)|undefined attribute|bad [ug]id"
        r"|reservation is invalid|requested reservation|does not match any supported policy|no partition specified"
        r"|default partition|no default queue|node configuration is not available|size specification|dependency"
        r"|cannot be run|no such file|script size exceeded|resource limit exceeds allowable|violates accounting"
        r"|mutually exclusive|cannot have \"place\"|memory specification|memory required by task"
        r"|requires? (?:an? )?account|must (?:be )?specif\w+|please specify"
        r"|not a valid|is not valid|invalid resource|resource invalid",
    ),
)
_COMPILED = tuple((cause, meaning, re.compile(pattern, re.IGNORECASE)) for cause, meaning, pattern in _RULES)
UNKNOWN_CLASS = Refusal("", "")


def classify(message: str) -> Refusal:
    """Return the class of a scheduler's message about a submission that it has not accepted."""
    for cause, meaning, pattern in _COMPILED:
        if pattern.search(message):
            return Refusal(cause, meaning)
    return UNKNOWN_CLASS
