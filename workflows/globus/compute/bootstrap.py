"""Function for a worker of a site's endpoint: passes a call to the project's own Python and returns its answer.

The text of this file is what is registered with Globus Compute. It runs in the endpoint's environment, where this
project is not installed, under any Python version: use the standard library only, no imports of ours, no decorators.
Requests and answers are JSON; nothing is pickled in either direction.

A request names neither interpreter nor environment: both are the endpoint's own, set by the template of its operator.
Endpoints accept this function by its id, so its text stays the same from release to release: see ``registered.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import types

FIND_PROJECT = """
import importlib.metadata, json, pathlib, sys, urllib.parse
folders = list(sys.path)
try:
    source = json.loads(importlib.metadata.distribution("crossfed").read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        folders.append(urllib.parse.unquote(urllib.parse.urlsplit(source["url"]).path))
except importlib.metadata.PackageNotFoundError:
    pass
for folder in map(pathlib.Path, folders):
    if (folder / "pyproject.toml").is_file() and (folder / "apps" / "remote" / "site_worker.py").is_file():
        sys.path.insert(0, str(folder))  # before other packages of the general names "apps" and "data"
        break
from apps.remote import site_worker
"""
STASH = "crossfed_site_workers"  # in sys.modules, which outlives a task; this text is executed anew for each task
PYTHON = "CROSSFED_SITE_PYTHON"  # set by the endpoint's template: the interpreter of the project's environment
REMEDY = "Check the site's python_env, and that the project is installed in it"
OPERATOR = "Ask the operator of the site to run setup_site.py again and to copy its files"


def call_site(request: str) -> str:
    """Run one call at a site.

    Args:
        request: JSON: function and args.

    Returns:
        JSON: result, or error with its kind and place.
    """
    variables = {**os.environ, "PYTHONSAFEPATH": "1"}  # the current folder is no place to import from
    python = variables.get(PYTHON)
    if not python:
        return refusal("EndpointProblem", f"the endpoint does not say in {PYTHON} what may run there", OPERATOR)
    stash = vars(sys.modules.setdefault(STASH, types.ModuleType(STASH)))
    children = stash.setdefault("children", {})
    with stash.setdefault("lock", threading.Lock()):
        try:
            child = running_child(children, python, variables)
        except OSError as error:
            return refusal("EndpointProblem", f"the site cannot start {python}: {error.strerror}", REMEDY)
        if child is None:
            what = f"{python} cannot run crossfed: {import_error(python, variables)}"
            return refusal("EndpointProblem", what, REMEDY)
        return ask(child, request)


def running_child(
    children: dict[str, subprocess.Popen[str]], python: str, variables: dict[str, str]
) -> subprocess.Popen[str] | None:
    """Return the interpreter that is already running, or start one; None if it ends before it is ready."""
    if python in children and children[python].poll() is None:
        return children[python]
    command = [python, "-c", f"{FIND_PROJECT}site_worker.main()", str(os.getpid())]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    assert child.stdout
    if "ready" not in child.stdout.readline():
        child.kill()
        child.wait()
        return None
    children[python] = child
    return child


def ask(child: subprocess.Popen[str], request: str) -> str:
    """Send one request to the interpreter and return its answer."""
    answer = ""
    assert child.stdin and child.stdout
    try:
        child.stdin.write(json.dumps(json.loads(request)) + "\n")  # in one line
        child.stdin.flush()
        answer = child.stdout.readline()
    except OSError:
        pass
    if answer.endswith("\n"):
        return answer
    child.kill()
    what = f"the project's Python at the site ended with code {child.wait()} before it answered"
    return refusal("WorkersLost", what, "Killed, or out of memory? See the output of the site's block")


def import_error(python: str, variables: dict[str, str]) -> str:
    """Return the last line of the interpreter's error output when it fails to import the site worker."""
    command = [python, "-c", FIND_PROJECT]
    ended = subprocess.run(command, env=variables, stderr=subprocess.PIPE, text=True, check=False)
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with code {ended.returncode}"


def refusal(kind: str, what: str, remedy: str) -> str:
    return json.dumps({"error": {"kind": kind, "what": what, "remedy": remedy}})
