"""Errors about the login at Globus, and the commands that are their remedy."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps.base.errors import REASON_LENGTH, UserMistake

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError

LOGIN = "python workflows/login.py"
SECRETS = "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET"
ACCOUNT_REMEDY = f"Ask the owner to admit the account, or unset {SECRETS} and log in as a person"
PLAIN = re.compile(r"[A-Za-z0-9_.@:+-]{1,200}")
SESSION_LISTS = {  # names of ``login.py --session`` -> of Globus
    "domain": "session_required_single_domain",
    "policy": "session_required_policies",
    "identity": "session_required_identities",
}
MFA = "mfa"


class LoginNeeded(UserMistake):
    """A login or consent that only a person can give; every request under this identity needs it."""


def is_service_account() -> bool:
    """Return True if the environment holds a service account."""
    return bool(os.environ.get("GLOBUS_COMPUTE_CLIENT_ID") and os.environ.get("GLOBUS_COMPUTE_CLIENT_SECRET"))


def login_remedy(options: str = "") -> str:
    """Return what to do about a login that Globus does not accept."""
    return f"Set {SECRETS} to valid values" if is_service_account() else f"Log in: {LOGIN}{options}"


def session_demand(error: GlobusAPIError) -> tuple[str, str] | None:
    """Return what Globus demands of the login for a refused request, and the remedy; None: the refusal is another.

    Such demands come from collections of high assurance and from authentication policies of endpoints: a login of the
    last minutes, with an identity of one institution, or with a second factor.
    """
    wanted: Any = error.info.authorization_parameters
    options = " ".join(_session_options(wanted)) if wanted else ""
    if not options and not (wanted and wanted.session_message):
        return None
    said = " ".join(str(wanted.session_message or error.message or "").split())[:REASON_LENGTH]
    what = f"Globus requires another login: {said or 'a session policy is not met'}"
    if is_service_account():
        return what, f"A service account cannot give it. {ACCOUNT_REMEDY}"
    return what, f"Log in: {LOGIN} {options}".rstrip()


def _session_options(wanted: Any) -> Iterator[str]:
    """Yield the options of ``login.py`` that meet a demand; odd values are left out."""
    for name, key in SESSION_LISTS.items():
        for value in getattr(wanted, key) or ():
            if PLAIN.fullmatch(str(value)):
                yield f"--session {shlex.quote(f'{name}={value}')}"
    if wanted.session_required_mfa:
        yield f"--session {MFA}"
