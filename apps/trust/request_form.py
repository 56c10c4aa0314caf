"""The form of a driver's request: one table of its keys and of what each may hold, checked before anything is read.

Whatever becomes part of a path or a command is checked here. A key that the table does not know, one that is missing,
and a value of another type are refused. A test compares the table with the types of apps/training and apps/models.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apps.base.errors import PolicyRefused

Check = Callable[[str, Any], None]  # of a value, given the name of its place
LARGEST = (1 << 63) - 1
LARGEST_BATCH = 1 << 16  # samples: else a single step could be any amount of work
MOST_NODES, MOST_RANKS, MOST_THREADS = 1 << 17, 1 << 10, 1 << 12
SHOWN = 100  # characters of a value in a refusal


@dataclass(frozen=True)
class Fields:
    """An object with these keys and no others.

    Attributes:
        needed: key -> check of its value.
        optional: the same for keys that may be left out.
    """

    needed: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)

    def __call__(self, what: str, value: Any) -> None:
        """Check a value; raise PolicyRefused if it is no such object."""
        if not isinstance(value, dict):
            raise malformed(what, value, "an object")
        known = {**self.needed, **self.optional}
        for key in value:
            if key not in known:
                raise malformed(f"{what}: the unknown key", key, ", ".join(known))
        for key, check in known.items():
            if key in value:
                check(f"{what}.{key}", value[key])
            elif key in self.needed:
                raise malformed(f"{what} without", key, ", ".join(known))


def malformed(what: str, value: Any, allowed: str) -> PolicyRefused:
    """Return the refusal of a request by its form, with the beginning of the value only."""
    return PolicyRefused(rule="request", asked=f"{what} {ascii(value)[:SHOWN]}", allowed=allowed)


def matching(pattern: str, longest: int = 200) -> Check:
    """Return a check for a text that a pattern describes whole."""
    whole = re.compile(rf"(?:{pattern})\Z")

    def check(what: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > longest or not whole.match(value):
            raise malformed(what, value, f"a text of at most {longest} characters like {pattern}")

    return check


def text(what: str, value: Any) -> None:
    """Check a text that can be written in UTF-8 and has no NUL."""
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise malformed(what, value, "a text")


def path(what: str, value: Any) -> None:
    """Check an absolute path: an empty or relative one would mean the process's own folder."""
    text(what, value)
    if not value.startswith("/") or any(ord(letter) < 32 for letter in value):
        raise malformed(what, value, "an absolute path")


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """Return a check for a whole number."""

    def check(what: str, value: Any) -> None:
        if type(value) is not int or not least <= value <= most:
            raise malformed(what, value, f"a whole number from {least} to {most}")

    return check


def real(what: str, value: Any) -> None:
    """Check a finite number that is not negative."""
    if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
        raise malformed(what, value, "a finite number that is not negative")


def truth(what: str, value: Any) -> None:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise malformed(what, value, "true or false")


def one_of(*values: str) -> Check:
    """Return a check for one of some texts."""

    def check(what: str, value: Any) -> None:
        if not isinstance(value, str) or value not in values:
            raise malformed(what, value, ", ".join(values))

    return check


def or_null(check: Check) -> Check:
    """Return a check that also takes null."""
    return lambda what, value: None if value is None else check(what, value)


def listed(check: Check) -> Check:
    """Return a check for a list of such values."""

    def each(what: str, value: Any) -> None:
        if not isinstance(value, list):
            raise malformed(what, value, "a list")
        for entry in value:
            check(what, entry)

    return each


def by_name(check: Check) -> Check:
    """Return a check for an object of such values under any names."""

    def each(what: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise malformed(what, value, "an object")
        for key, entry in value.items():
            text(what, key)
            check(what, entry)

    return each


def words(what: str, value: Any) -> None:
    """Check a text or a list of texts."""
    (text if isinstance(value, str) else listed(text))(what, value)


def no_learning_files(what: str, value: Any) -> None:
    """Refuse a request that names files with training code, whatever the policy lists."""
    raise PolicyRefused(rule="learning_files", asked=f"{what} {ascii(value)[:SHOWN]}", allowed="none in this version")


NAME = matching(r"[A-Za-z0-9_-][A-Za-z0-9_.+-]*")
CAMPAIGN = matching(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.+-]*)?")  # empty: not told
SHA256, TASK_ID = matching("[0-9a-f]{64}"), matching("[0-9a-f]{32}")
TASK = matching(r"[^\x00-\x1f/\\.][^\x00-\x1f/\\]*")  # becomes the name of a file
SOME = whole(least=1)

PLACE = Fields({"site": NAME, "round": whole()})
ADAPTER = Fields(
    {
        "method": NAME,
        "rank": SOME,
        "alpha": real,
        "dropout": real,
        "targets": words,
        "last_layers": or_null(SOME),
    }
)
MODEL = Fields(
    {
        "source": text,
        "dtype": NAME,
        "seed": whole(),
        "adapter": or_null(ADAPTER),
        "tiny": or_null(Fields({"width": SOME, "layers": SOME})),
    },
    {"traffic": one_of("float32", "bfloat16")},
)
DATA = Fields(
    {
        "source": text,
        "tasks": listed(TASK),
        "per_task": or_null(SOME),
        "max_tokens": SOME,
        "prompt": text,
        "loss_on": one_of("answer", "all"),
    }
)
PARALLEL = Fields(
    {
        "nodes": whole(1, MOST_NODES),
        "ranks_per_node": whole(1, MOST_RANKS),
        "sharding": one_of("none", "ddp", "shard_grad_op", "full_shard"),
        "offload": truth,
        "checkpoint_activations": truth,
        "micro_batch": whole(1, LARGEST_BATCH),
        "backend": NAME,
        "launch": listed(text),
        "interface": matching(r"[A-Za-z0-9_.,:-]*", longest=64),
    }
)
WORK = Fields(
    {
        "root": path,
        "out": path,
        "shared": text,
        "model": MODEL,
        "data": DATA,
        "seed": whole(),
        "threads": whole(1, MOST_THREADS),
        "parallel": PARALLEL,
        "code_version": text,
    },
    {"withheld": listed(NAME)},
)
TRAINING = Fields(
    {
        "steps": SOME,
        "batch_size": whole(1, LARGEST_BATCH),
        "accumulate": SOME,
        "learning_rate": real,
        "schedule": one_of("constant", "linear", "cosine"),
        "final_factor": real,
        "warmup_steps": whole(),
        "start_step": whole(),
        "total_steps": whole(),
        "weight_decay": real,
        "clip_norm": or_null(real),
        "proximal_mu": real,
        "precision": one_of("no", "bf16"),
        "device": text,
        "keep_optimizer": truth,
        "checkpoint_s": real,
        "on_walltime": one_of("finish", "return"),
        "until": or_null(real),
    }
)
REQUEST = Fields(
    {"training": TRAINING, "optimizer_from": or_null(TASK_ID), "attempt": whole()},
    {"left_over_from": or_null(TASK_ID), "learning_files": no_learning_files},
)
ARTIFACT = Fields({"sha256": SHA256, "nbytes": whole(), "kind": NAME})
MOVED = {"nbytes_moved": whole(), "started": real, "ended": real}
BASE = Fields(
    {"artifact": ARTIFACT, "master": ARTIFACT, "frozen": matching("(?:[0-9a-f]{64})?"), "store": path, **MOVED},
    {"fetched": listed(SHA256)},
)
SIGNED = Fields({"statement": text, "key": text, "signature": text})
SHARD = Fields(
    {
        "shard_sha256": SHA256,
        "samples": whole(),
        "per_task": by_name(whole()),
        "cut": by_name(by_name(whole())),
        "libraries": by_name(text),
        "host": text,
        "free_bytes": whole(),
        "started": real,
        "ended": real,
    },
    {"signed": SIGNED},
)
ARGUMENTS: Mapping[str, Check] = {
    "place": PLACE,
    "work": WORK,
    "request": REQUEST,
    "base": BASE,
    "shard": SHARD,
    "root": path,
    "out": path,
}
