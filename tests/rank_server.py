"""A launcher whose ranks are forks of one process that has imported what they need: they start in no time.

It is to its ranks as srun is: what the worker starts only passes signals and the exit code on, and the ranks run
elsewhere, in a session of their own, which ends when that command is killed. Ranks of one server share the seed of
Python's hashes; tests of the ranks of real launchers are in ``test_kept_ranks.py`` and ``test_train_slurm.py``.

``python rank_server.py serve SOCKET`` forks; ``python rank_server.py SOCKET KIND RANKS PER_NODE SLOW_S PROGRAM...``
launches, with the arguments of ``toy_mpiexec.py``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

HEADER = struct.Struct("!Q")


def ask(path: str, words: list[str]) -> int:
    """Let the server launch ranks with the output, the folder and the environment of this process."""
    request = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [HEADER.pack(len(request))], [1, 2])
        server.sendall(request)
        signal.signal(signal.SIGTERM, lambda *_: server.sendall(b"\1"))
        return (server.recv(1) or b"\1")[0]


def serve(path: str) -> None:
    """Fork a launcher for each request, until this process is ended."""
    import setproctitle

    setproctitle.getproctitle()  # finds the memory of the title, as long as no variable was set
    import_for_ranks()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                launch(connection)
            connection.close()


def import_for_ranks() -> None:
    """Import what a rank does, without work that would start a thread: a fork has the calling thread alone."""
    import gc
    from importlib import import_module

    import transformers

    for name in ("peft", "toy_mpiexec", "torch.distributed.fsdp", "torch.distributed.tensor"):
        import_module(name)
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    import_module("apps.rank")
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    gc.freeze()


def launch(connection: socket.socket) -> None:
    """Launch the ranks of a request, report their end, and end this process."""
    code = b"\1"
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        header, outputs, *_ = socket.recv_fds(connection, HEADER.size, 2)
        with connection.makefile("rb") as stream:
            request = json.loads(stream.read(*HEADER.unpack(header)))
        for opened, number in zip(outputs, (1, 2), strict=True):
            os.dup2(opened, number)
        os.chdir(request["folder"])
        code = bytes([wait_for_ranks(connection, start_ranks(request["environment"], *request["words"]))])
    except Exception:  # noqa: BLE001 - the outermost edge of this process
        traceback.print_exc()
    connection.sendall(code)
    os._exit(0)


def start_ranks(environment: dict[str, str], kind: str, ranks: str, per_node: str, *program: str) -> list[int]:
    """Fork the ranks; return their process ids."""
    from launcher_variables import environment_of

    pids = []
    for rank in range(int(ranks)):
        pids.append(os.fork())
        if pids[-1] == 0:
            become(rank, environment_of(kind, rank, int(ranks), int(per_node), environment), *program)
    return pids


def become(rank: int, environment: dict[str, str], *program: str) -> NoReturn:
    """Turn this process into a rank of a program, with ``rank-NUMBER`` as the first word of its command line."""
    import setproctitle
    from toy_mpiexec import be_rank

    try:
        os.environ.clear()
        os.environ.update(environment)
        setproctitle.setproctitle(" ".join((f"rank-{rank}", *program)))
        be_rank(*program)
    except BaseException:  # noqa: BLE001 - the outermost edge of this process
        traceback.print_exc()
    os._exit(1)


def wait_for_ranks(connection: socket.socket, pids: list[int]) -> int:
    """Pass signals on until all ranks have ended; return the first exit code that is not 0."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    running: dict[Any, int] = {os.pidfd_open(pid): pid for pid in pids}
    codes = []
    while running:
        for ready in select.select([connection, *running], [], [])[0]:
            if ready is connection:
                os.killpg(0, signal.SIGTERM if connection.recv(1) else signal.SIGKILL)
            else:
                codes.append(os.waitstatus_to_exitcode(os.waitpid(running.pop(ready), 0)[1]) & 0xFF)
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
