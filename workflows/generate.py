"""Ask the model of a run, finished or not, and the model it started from.

python workflows/generate.py RUN_DIR "QUESTION" ["QUESTION" ...] [--round N | --best] [--tokens 64] [--no-base]
python workflows/generate.py RUN_DIR < questions.txt
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import UserMistake
from apps.base.plain_text import without_controls
from workflows.console.command import EXIT_CODES, carry_out, leave, positive
from workflows.console.options import add_model_choice

if TYPE_CHECKING:
    from workflows.evaluation.generation import Completion


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="generate.py",
        description="Ask the model of a run and the model it started from; of an unfinished run the newest. Answers "
        "are decoded greedily, with the campaign's prompt template. One CPU core needs about 15 seconds for a question "
        "to the demo's model.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run, finished or not: runs/NAME")
    add_model_choice(parser)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="default: the lines of the standard input")
    parser.add_argument("--tokens", type=positive, default=64, metavar="N", help="limit for an answer (default: 64)")
    parser.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: the campaign's)")
    parser.add_argument("--no-base", action="store_false", dest="base", help="leave the base model out")
    return parser.parse_intermixed_args(arguments)  # a question may follow an option


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return carry_out(lambda: generate(options))


def generate(options: argparse.Namespace) -> None:
    """Load the models, generate all answers, print them side by side."""
    from rich.console import Console

    from workflows.evaluation.choice import open_run
    from workflows.evaluation.generation import generate_answers  # loads pydantic
    from workflows.evaluation.loading import configure_libraries, data_spec, load_models

    run = open_run(options.run_dir, options.round, options.best)
    questions = options.questions or questions_from_input()
    configure_libraries(run, options.threads)
    with Console(stderr=True).status("loading the model"):
        models = load_models(run, options.base)
    if run.text:
        Console(stderr=True).print(f"trained: {run.text}", highlight=False)
    with Console(stderr=True).status("answering"):
        answers = {m.name: generate_answers(m, questions, data_spec(run), options.tokens) for m in reversed(models)}
    for number, question in enumerate(questions):
        show(question, {name: given[number] for name, given in answers.items()}, first=number == 0)


def questions_from_input() -> list[str]:
    """Return the non-blank lines of the standard input.

    Raises:
        UserMistake: there are none.
    """
    lines = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin]
    questions = [line for line in lines if line]
    if not questions:
        raise UserMistake(
            "no question", remedy='Give it after the run, python workflows/generate.py RUN_DIR "QUESTION", or on stdin'
        )
    return questions


def show(question: str, answers: dict[str, Completion], first: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if not first:
        console.print()
    console.print(Text.assemble(("question: ", "bold"), question))
    for name, answer in answers.items():
        style = "bold green" if name == "trained" else "bold"
        body = (
            textwrap.indent(without_controls(answer.text), " " * 10).lstrip() or "(nothing)"
        )  # aligns further lines with the first
        console.print(Text.assemble((f"{name + ':':10s}", style), body, (" …" if answer.cut else "", "dim")))


if __name__ == "__main__":
    leave(main)
