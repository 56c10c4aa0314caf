"""When a training must stop: its batch job nears the walltime, or the nodes are requested back.

Slurm, PBS and Parsl send SIGTERM to a process that has to end. A training treats it as a request: it finishes the
step, saves and stops.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping

from apps.base.stop import StopRequest

logger = logging.getLogger(__name__)
BLOCK_END_VARIABLE = "CROSSFED_BLOCK_END"  # set by our batch scripts: UNIX time of the end of the block
END_VARIABLES = ("SLURM_JOB_END_TIME", BLOCK_END_VARIABLE)
PAST_S = 60.0  # a job may outlive its end for a moment, but not for longer
MARGIN_S = 15.0  # least time between the last save and the end of the block: to report to the driver, and for clocks
FIRST_SAVE_S = 30.0  # where nothing was saved before, the first save comes this early, so that its price is known
FORGETTING = 0.1  # weight of the newest step in the estimate of the slowest one


def block_end(environment: Mapping[str, str] | None = None, now: float | None = None) -> float | None:
    """Return the UNIX time at which this process's batch job ends, or None outside a batch job of ours.

    A shell keeps the variables of an allocation that is over. So they count only beside the one that our batch scripts
    set, and an end in the past is none.

    Args:
        environment: variables to read; None: those of this process.
        now: UNIX time; None: the present.
    """
    values = os.environ if environment is None else environment
    if BLOCK_END_VARIABLE not in values:
        return None
    earliest = (time.time() if now is None else now) - PAST_S
    ends = []
    for name in END_VARIABLES:
        try:
            ends.append(float(values[name]))
        except KeyError:
            continue
        except ValueError:
            logger.warning("%s is %r, not a time", name, values[name])
    return min((end for end in ends if math.isfinite(end) and end > earliest), default=None)


class Deadline:
    """Decides when a training must save and when it must stop.

    Args:
        checkpoint_s: seconds between saves.
        end: UNIX time of the end of the block, or None.
        stop: a request to stop.
        step_s: seconds of a step in an earlier attempt; 0 if unknown.
        save_s: price of a save in seconds, from an earlier attempt or round; 0 if unknown.
        clock: returns the UNIX time.
        until: UNIX time at which the request itself ends, or None.
    """

    def __init__(
        self,
        checkpoint_s: float,
        end: float | None,
        stop: StopRequest,
        step_s: float = 0.0,
        save_s: float = 0.0,
        clock: Callable[[], float] = time.time,
        until: float | None = None,
    ) -> None:
        self.checkpoint_s, self.end, self.stop, self.clock = checkpoint_s, end, stop, clock
        self.step_s, self.save_s, self.until = step_s, save_s, until
        self.last_save = clock()

    def stepped(self, seconds: float) -> None:
        """Record the duration of a step; they differ with the length of samples, so a slow one counts for a while."""
        self.step_s = max(seconds, (1 - FORGETTING) * self.step_s + FORGETTING * seconds)

    def saved(self, seconds: float) -> None:
        """Record the duration of a save that has just finished."""
        self.save_s, self.last_save = seconds, self.clock()

    def must_stop(self) -> bool:
        """Return True if a stop is requested, or another step would leave too little time to save and report."""
        if self.stop.requested:
            return True
        return self.end is not None and self.clock() + self.step_s > self.end - max(2 * self.save_s, MARGIN_S)

    def is_over(self) -> bool:
        """Return True if the request's time is over; the steps done so far are the result then."""
        return self.until is not None and self.clock() >= self.until

    def save_is_due(self, steps_left: int | None = None) -> bool:
        """Return True if it is time for a checkpoint.

        A checkpoint that costs more than what it could save is left out: the rest of the training.

        Args:
            steps_left: steps to the end of the training; None: unknown.
        """
        if steps_left is not None and steps_left * self.step_s <= self.save_s:
            return False
        period = self.checkpoint_s if self.save_s else min(self.checkpoint_s, FIRST_SAVE_S)
        return self.clock() - self.last_save >= period
