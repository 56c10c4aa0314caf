"""Log in at Globus once, so that campaigns that run for days never need a prompt.

python workflows/login.py [--collection UUID]... [--campaign CAMPAIGN.yaml] [--session DEMAND]... [--status] [--logout]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import CrossfedError, UserMistake
from site_configs.library.resolve import SiteConfigError, resolve_site
from workflows.console.command import EXIT_CODES, carry_out, leave, say
from workflows.planning.campaign import machine_settings
from workflows.planning.yaml_file import read_yaml

if TYPE_CHECKING:
    from globus_sdk import GlobusApp
    from globus_sdk.gare import GlobusAuthorizationParameters
    from globus_sdk.login_flows import CommandLineLoginFlowManager

EPILOG = """Logs in for Globus Compute and Globus Transfer, with tokens that are renewed automatically, and requests the
consents that the collections of a campaign need. Opens no browser: shows an address to open anywhere, and asks for
the code that is shown there.

A service account needs no login: set GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET, and check
with --status that Globus accepts it.

"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="login.py",
        description="Log in at Globus, or show the status of the login.",
        epilog=EPILOG + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--collection",
        type=UUID,
        action="append",
        default=[],
        dest="collections",
        metavar="UUID",
        help="request the consents that this collection needs; repeatable",
    )
    parser.add_argument("--campaign", type=Path, metavar="CAMPAIGN.yaml", help="the same for all its collections")
    parser.add_argument(
        "--session",
        action="append",
        default=[],
        metavar="DEMAND",
        help="log in again as Globus demands it: domain=NAME, policy=UUID, identity=UUID or mfa; repeatable",
    )
    parser.add_argument("--status", action="store_true", help="show the identity and what is missing; no prompt")
    parser.add_argument("--logout", action="store_true", help="revoke and delete all tokens")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return carry_out(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Log in, out, or neither, and print the status.

    Raises:
        UserMistake: contradictory options, or no terminal for the login.
        CrossfedError: a login or a consent is missing.
    """
    from workflows.checks.login_status import login_status
    from workflows.globus.identity import globus_app

    if options.status and options.logout:
        raise UserMistake("--status and --logout: choose one")
    if options.session and (options.status or options.logout):
        raise UserMistake("--session goes with a login, not with --status or --logout")
    demand = session_of(options.session)
    if options.logout:
        return log_out()
    collections = [str(collection) for collection in options.collections]
    collections += collections_of(options.campaign) if options.campaign else []
    app = globus_app()
    if not options.status:
        app = log_in(collections, demand)
    fine = True
    for what, problem in login_status(app, collections):
        fine = fine and problem is None
        say(f"ok       {what}" if problem is None else f"MISSING  {what}: {problem}")
    if not fine:
        raise CrossfedError("A login or a consent is missing, see above")


def session_of(demands: Sequence[str]) -> GlobusAuthorizationParameters | None:
    """Return what a new login must meet; None: nothing in particular.

    Args:
        demands: ``domain=NAME``, ``policy=UUID``, ``identity=UUID`` or ``mfa``, as error messages name them.

    Raises:
        UserMistake: a demand has another form.
    """
    from globus_sdk.gare import GlobusAuthorizationParameters

    from workflows.globus.remedies import MFA, SESSION_LISTS

    if not demands:
        return None
    wanted: dict[str, Any] = {}
    for demand in demands:
        name, _, value = demand.partition("=")
        if demand == MFA:
            wanted["session_required_mfa"] = True
        elif name in SESSION_LISTS and value:
            wanted.setdefault(SESSION_LISTS[name], []).append(value)
        else:
            raise UserMistake(f"--session {demand}: use {'=..., '.join(SESSION_LISTS)}=... or {MFA}")
    return GlobusAuthorizationParameters(**wanted, prompt="login")


def log_in(collections: Sequence[str], demand: GlobusAuthorizationParameters | None = None) -> GlobusApp:
    """Prompt for the logins and consents that are missing.

    Reading what a collection needs takes a login: the first time there may be two prompts.

    Args:
        collections: ids.
        demand: log in again, although there is a login, so that the session meets this.

    Raises:
        UserMistake: there is no terminal, or a service account has no session.
    """
    from workflows.checks.login_status import identity_text, require_collections, require_services
    from workflows.globus.identity import ServiceAccountApp, globus_app
    from workflows.globus.remedies import ACCOUNT_REMEDY, LoginNeeded

    app = globus_app(terminal_login())
    if isinstance(app, ServiceAccountApp):
        if demand:
            raise UserMistake("a service account cannot meet a session policy", remedy=ACCOUNT_REMEDY)
        return app
    require_services(app, names=True)
    app.login(auth_params=demand)
    try:
        identity_text(app)
        require_collections(app, collections)
    except LoginNeeded:  # the stored tokens were revoked or have expired
        app.login(force=True)
        require_collections(app, collections)
    app.login()
    return app


def log_out() -> None:
    from workflows.checks.login_status import require_services
    from workflows.globus.identity import ServiceAccountApp, globus_app

    app = globus_app()
    if isinstance(app, ServiceAccountApp):
        say("A service account keeps its tokens in memory: there is nothing to delete. Unset its secret.")
        return
    require_services(app)
    held = app.token_storage.token_storage.get_token_data_by_resource_server()
    app.logout(sweep=True)
    say("Logged out: all tokens are revoked and deleted" if held else "There was no login")


def terminal_login() -> type[CommandLineLoginFlowManager]:
    """Return the login flow for a terminal; the terminal is needed only if something is missing."""
    from globus_sdk.login_flows import CommandLineLoginFlowManager

    class TerminalLogin(CommandLineLoginFlowManager):
        def print_authorize_url(self, authorize_url: str) -> None:
            if not sys.stdin.isatty():
                raise UserMistake(
                    "a login needs a terminal for its code",
                    remedy="Run this command in a terminal, or use a service account (see --help)",
                )
            say(f"Open this address in a browser on any machine, and log in:\n\n{authorize_url}\n")

        def prompt_for_code(self) -> str:
            say("Paste the code that is shown there:")
            with self._handle_input_errors():
                return input().strip()

    return TerminalLogin


def collections_of(campaign: Path) -> list[str]:
    """Return the collections that a campaign names: the driver's own, and those of its sites.

    Raises:
        UserMistake: no such file, or a site with invalid settings.
    """
    raw = read_yaml(campaign)
    found = [str((raw.get("globus") or {}).get("collection") or "")]
    for name, entry in (raw.get("sites") or {}).items():
        config = (entry or {}).get("config") or name
        try:
            site = resolve_site(name, config, Path("runs") / "login", machine_settings(entry))
        except SiteConfigError as error:
            raise UserMistake(f"{campaign}: sites.{name}: {error}") from None
        if site.collection and site.carrier == "globus":
            found.append(site.collection.id)
    return [collection for collection in dict.fromkeys(found) if collection]


if __name__ == "__main__":
    leave(main)
