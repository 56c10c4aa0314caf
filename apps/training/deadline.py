"""When a training must end: the batch job it runs in nears its walltime, or somebody asks for the nodes.

Slurm, PBS and Parsl tell a process that it has to go with SIGTERM. Training takes that as a request: it finishes the
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
END_VARIABLES = ("SLURM_JOB_END_TIME", "CROSSFED_BLOCK_END")  # the scheduler's word and that of our batch script
MARGIN_S = 15.0  # between the last save and the end of the block, at least: to tell the driver, and for idle clocks
FIRST_SAVE_S = 30.0  # a training saves this early once, so that the time of a save is known
FORGETTING = 0.1  # how fast the slowest step counts less


def block_end(environment: Mapping[str, str] | None = None) -> float | None:
    """UNIX time at which this process's batch job ends; None where there is no batch job."""
    values = os.environ if environment is None else environment
    ends = []
    for name in END_VARIABLES:
        try:
            ends.append(float(values[name]))
        except KeyError:
            continue
        except ValueError:
            logger.warning("%s is %r, not a time", name, values[name])
    return min((end for end in ends if math.isfinite(end) and end > 0), default=None)


class Deadline:
    """Tells when to save and when to stop.

    Args:
        checkpoint_s: seconds between saves.
        end: UNIX time of the end of the block, or None.
        stop: a request to stop.
        step_s, save_s: seconds that a step and a save took in an earlier attempt; 0 where that is not known.
        clock: tells the UNIX time.
        until: UNIX time at which the order itself is over, or None.
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
        """A step was done. Steps differ with the length of samples: a slow one is remembered for a while."""
        self.step_s = max(seconds, (1 - FORGETTING) * self.step_s + FORGETTING * seconds)

    def saved(self, seconds: float) -> None:
        self.save_s, self.last_save = seconds, self.clock()

    def must_stop(self) -> bool:
        """Whether stopping was asked for, or another step would leave too little time to save and tell."""
        if self.stop.asked:
            return True
        return self.end is not None and self.clock() + self.step_s > self.end - max(2 * self.save_s, MARGIN_S)

    def is_over(self) -> bool:
        """Whether the time is up that the order gave; what is done is the answer then."""
        return self.until is not None and self.clock() >= self.until

    def save_is_due(self) -> bool:
        period = self.checkpoint_s if self.save_s else min(self.checkpoint_s, FIRST_SAVE_S)
        return self.clock() - self.last_save >= period
