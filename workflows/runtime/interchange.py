"""Run Parsl's interchange so that it can be found by its environment and executes nothing that worker pools send.

Parsl sets the title of its processes, which overwrites the memory that shows the environment of a process, and with it
the campaign's token: ``orphans.find_orphans`` would not see the interchange of a driver that was killed.

It unpickles the messages of worker pools, on the driver's host. Here a message that has more than plain values in it
ends the interchange of its site, and no other.
"""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - of what the driver writes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    # a user's own files in the script's or the current folder have common names
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(Path(__file__).resolve().parent))]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workflows.runtime.worker_messages import NOT_PLAIN, UnreadableMessage, read_values


def read_or_end(content: bytes) -> Any:
    """Return the plain values of a worker pool's message; end this process if it has anything else in it."""
    try:
        return read_values(content)
    except UnreadableMessage as error:
        sys.stderr.write(f"a worker pool has sent a message that is not read: {error}\n")
        sys.stderr.flush()
        os._exit(NOT_PLAIN)


def main() -> None:
    """Read the configuration that the driver writes into this process, and run."""
    sys.modules["setproctitle"] = None  # type: ignore[assignment]  # Parsl then sets no title
    from parsl.executors.high_throughput import interchange

    reader: Any = SimpleNamespace(loads=read_or_end, dumps=interchange.pickle.dumps)
    interchange.pickle = reader
    interchange.Interchange(**pickle.load(sys.stdin.buffer)).start()


if __name__ == "__main__":
    main()
