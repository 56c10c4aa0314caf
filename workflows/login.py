"""Log in at Globus once, so that campaigns that run for days never have to ask.

python workflows/login.py [--collection UUID]... [--campaign CAMPAIGN.yaml] [--status] [--logout]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from workflows.console.command import EXIT_CODES, carry_out, say

if TYPE_CHECKING:
    from globus_sdk import GlobusApp
    from globus_sdk.login_flows import CommandLineLoginFlowManager

WORDS = """Logs in for Globus Compute and Globus Transfer, with tokens that renew themselves, and asks for the consents
that the collections of a campaign need. Opens no browser: shows an address to open anywhere, and asks for the
code that is shown there.

A service account needs no login: set GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET, and see
with --status whether Globus takes it.

"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="login.py",
        description="Log in at Globus, or see who is logged in.",
        epilog=WORDS + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--collection",
        type=UUID,
        action="append",
        default=[],
        dest="collections",
        metavar="UUID",
        help="ask for the consents that this collection needs; repeatable",
    )
    parser.add_argument("--campaign", type=Path, metavar="CAMPAIGN.yaml", help="the same for all its collections")
    parser.add_argument("--status", action="store_true", help="say who is logged in and what is missing; ask nothing")
    parser.add_argument("--logout", action="store_true", help="take back and forget all tokens")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return carry_out(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Log in, out, or neither, and say how things stand.

    Raises:
        UserMistake: something is missing, or there is nobody to ask.
    """
    from apps.base.errors import CrossfedError, UserMistake
    from workflows.checks.login_status import login_status
    from workflows.globus.identity import globus_app

    if options.status and options.logout:
        raise UserMistake("--status and --logout: choose one")
    if options.logout:
        return log_out()
    collections = [str(collection) for collection in options.collections]
    collections += collections_of(options.campaign) if options.campaign else []
    app = globus_app()
    if not options.status:
        app = log_in(collections)
    fine = True
    for what, problem in login_status(app, collections):
        fine = fine and problem is None
        say(f"ok       {what}" if problem is None else f"MISSING  {what}: {problem}")
    if not fine:
        raise CrossfedError("Not all is there")


def log_in(collections: Sequence[str]) -> GlobusApp:
    """Ask a person for whatever is missing.

    What a collection needs can only be asked by somebody who is logged in: the first login may be two.

    Raises:
        UserMistake: there is no terminal to ask at.
    """
    from workflows.checks.login_status import identity_text, require_collections, require_services
    from workflows.globus.identity import LoginNeeded, ServiceAccountApp, globus_app

    app = globus_app(asker())
    if isinstance(app, ServiceAccountApp):
        return app
    require_services(app, names=True)
    app.login()
    try:
        identity_text(app)
        require_collections(app, collections)
    except LoginNeeded:  # what is held was taken back, or has lapsed
        app.login(force=True)
        require_collections(app, collections)
    app.login()
    return app


def log_out() -> None:
    from workflows.checks.login_status import require_services
    from workflows.globus.identity import ServiceAccountApp, globus_app

    app = globus_app()
    if isinstance(app, ServiceAccountApp):
        say("A service account keeps its tokens in memory: there is nothing to forget. Unset its secret.")
        return
    require_services(app)
    held = app.token_storage.token_storage.get_token_data_by_resource_server()
    app.logout(sweep=True)
    say("Logged out: all tokens are taken back and forgotten" if held else "Nobody was logged in")


def asker() -> type[CommandLineLoginFlowManager]:
    """What asks a person at the terminal.

    It only looks for the terminal when it has something to ask: where nothing is missing, none is needed.
    """
    from globus_sdk.login_flows import CommandLineLoginFlowManager

    from apps.base.errors import UserMistake

    class AtTheTerminal(CommandLineLoginFlowManager):
        def print_authorize_url(self, authorize_url: str) -> None:
            if not sys.stdin.isatty():
                raise UserMistake(
                    "there is no terminal to ask for the code of a login",
                    remedy="Start this command in one, or use a service account (see --help)",
                )
            say(f"Open this address in a browser on any machine, and log in:\n\n{authorize_url}\n")

        def prompt_for_code(self) -> str:
            say("Paste the code that is shown there:")
            with self._handle_input_errors():
                return input().strip()

    return AtTheTerminal


def collections_of(campaign: Path) -> list[str]:
    """The collections that a campaign names: the driver's own, and those of its sites.

    Raises:
        UserMistake: no such file, or a site that cannot be made.
    """
    from apps.base.errors import UserMistake
    from site_configs.library.resolve import SiteConfigError, resolve_site
    from workflows.planning.campaign_file import read_yaml

    raw = read_yaml(campaign)
    found = [str((raw.get("globus") or {}).get("collection") or "")]
    for name, entry in (raw.get("sites") or {}).items():
        settings = {key: value for key, value in (entry or {}).items() if key not in ("config", "tasks", "data")}
        try:
            site = resolve_site(name, (entry or {}).get("config") or name, Path("runs") / "login", settings)
        except SiteConfigError as error:
            raise UserMistake(f"{campaign}: sites.{name}: {error}") from None
        if site.collection and site.carrier == "globus":
            found.append(site.collection.id)
    return [collection for collection in dict.fromkeys(found) if collection]


if __name__ == "__main__":
    sys.exit(main())
