"""A command of PBS with the odd answers of real servers: other jobs of the same user that are hard to read.

``odd.py NAME PROGRAM ARGUMENTS...`` calls the program and changes what it prints. Sources: jobs submitted with
``qsub -V`` are printed as invalid JSON, because the shell functions of a login shell are among their variables (reports
of OpenPBS 19.1 and 20); a job that was moved to another server is in state M, one array in state B (``qstat(1B)``);
ALCF's submission hook writes to standard error.
"""

from __future__ import annotations

import re
import subprocess
import sys

HOOK = "NOTICE: maintenance on Monday from 08:00 { see: https://status.example.org }\n"
STATES = {"9000001": "Q", "9000002[]": "B", "9000003": "M"}
VARIABLE = '"BASH_FUNC_module()":"() {  eval `/usr/bin/modulecmd bash "$@"`\n}"'
RECORD = """\
\t\t"{number}.{server}":{{
\t\t\t"Job_Name":"STDIN",
\t\t\t"Job_Owner":"root@{server}",
\t\t\t"job_state":"{state}",
\t\t\t"queue":"{queue}",
\t\t\t"Resource_List":{{"nodect":1,"walltime":"01:00:00"}},
\t\t\t"Variable_List":{{"PBS_O_HOME":"/home/user",{variable},"RUN_NUMBER":005}}
\t\t}}"""
TEXT = """\
Job Id: {number}.{server}
    Job_Name = STDIN
    Job_Owner = root@{server}
    job_state = {state}
    queue = {queue}
    Resource_List.nodect = 1
    Variable_List = PBS_O_HOME=/home/user,BASH_FUNC_module()=() {{  eval `modulecmd
\tbash "$@"`
}}

"""


def main(name: str, program: str, arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    server = program.split("/")[3]  # /var/spool/MACHINE/...
    wanted = [word for word in arguments if re.match(r"\d", word)]
    others = [n for n in STATES if any(word.split(".")[0] == n for word in wanted)]
    own = [word for word in arguments if word.split(".")[0] not in STATES]
    if name == "qsub":
        sys.stderr.write(HOOK)
    if name not in ("qselect", "qstat") or "-Q" in arguments:
        return subprocess.run([program, *arguments], check=False).returncode
    if others and len(others) == len(wanted):
        sys.stdout.write(shown(name, arguments, "", others, server))
        return 0
    done = subprocess.run([program, *own], stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(shown(name, arguments, done.stdout, others if wanted else list(STATES), server))
    return done.returncode


def shown(name: str, arguments: list[str], text: str, others: list[str], server: str) -> str:
    """Return what the command prints with the other jobs."""
    fields = {"server": f"{server}-pbs-01", "queue": "debug", "variable": VARIABLE}
    if name == "qselect":
        return text + "".join(f"{number}.{fields['server']}\n" for number in others)
    if "json" in arguments:
        records = [RECORD.format(number=n, state=STATES[n], **fields) for n in others]
        return with_records(text, records) if records else text
    if "-f" in arguments:
        return "".join(TEXT.format(number=n, state=STATES[n], **fields) for n in others) + text
    return text


def with_records(text: str, records: list[str]) -> str:
    """Return the JSON of the server with more jobs before its own."""
    start, mark, rest = text.partition('"Jobs": {')
    if not mark:
        start, rest = '{\n\t"timestamp": 1,\n\t', "\n\t}\n}\n"
        return f'{start}"Jobs": {{\n' + ",\n".join(records) + rest
    return start + mark + "\n" + ",\n".join(records) + "," + rest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
