"""Command line options that several scripts share."""

from __future__ import annotations

import argparse
from pathlib import Path

from workflows.console.paths import DEFAULT_CAMPAIGN


def add_campaign_options(parser: argparse.ArgumentParser, default: Path | None = DEFAULT_CAMPAIGN) -> None:
    """Add CAMPAIGN.yaml, ``--sites`` and ``--set``.

    Args:
        parser: of the script.
        default: the campaign if the user names none; None if the script must know that none was named.
    """
    parser.add_argument(
        "campaign",
        nargs="?",
        type=Path,
        metavar="CAMPAIGN.yaml",
        default=default,
        help=f"default: {DEFAULT_CAMPAIGN.parent.parent.name}/campaigns/{DEFAULT_CAMPAIGN.name}",
    )
    parser.add_argument(
        "--sites",
        metavar="A,B,...",
        help="sites of the campaign to use; A=CONFIG or FILE.py uses another machine for it",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="change a key: training.steps=10"
    )


def positive_number(text: str) -> float:
    """Parse a number above zero, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return number


def add_model_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a global model of a run."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--round", type=int, metavar="N", help="the global model of this round, or version")
    choice.add_argument("--best", action="store_true", help="the global model with the lowest mean test loss")
