"""`orchestrate doc` and `orchestrate completion`: help beyond --help."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import groupby

import click

from orchestrator.cli import complete
from orchestrator.core.console import out, print_json, print_text

SHELLS = ("bash", "zsh", "fish")
#: Where click looks for a shell's question, by the command's name.
VARIABLE = "_ORCHESTRATE_COMPLETE"
#: Columns of text that read well.
WIDTH = 100


@click.command()
@click.argument("topic", required=False, shell_complete=complete.topics)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doc(topic: str | None, as_json: bool) -> None:
    """Print a page of the documentation. Without TOPIC: list the pages.

    A unique part of a topic's name is enough. Into a pipe, it prints the Markdown source.

    \b
    Example: orchestrate doc
    Example: orchestrate doc first-cluster
    """
    from orchestrator.cli import pages

    if topic is None:
        found = pages.pages()
        if as_json:
            print_json([asdict(page) for page in found])
            return
        width = max(len(page.topic) for page in found)
        for section, group in groupby(found, key=lambda page: page.section):
            out.print(section, style="bold")
            for page in group:
                out.print(f"  {page.topic:<{width}}  {page.title}", markup=False)
        return
    page = pages.find(topic)
    text = page.path.read_text(encoding="utf-8")
    if as_json:
        print_json(asdict(page) | {"text": text})
    elif sys.stdout.isatty():
        click.echo_via_pager(_rendered(text))
    else:
        print_text(text)


def _rendered(text: str) -> str:
    """Markdown for a terminal."""
    from io import StringIO

    from rich.console import Console
    from rich.markdown import Markdown

    page = StringIO()
    width = min(out.width, WIDTH)
    Console(file=page, force_terminal=True, width=width).print(Markdown(text, hyperlinks=False))
    return page.getvalue()


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the shell completion of commands, options, profiles, nodes, images and pages.

    \b
    Example: orchestrate completion bash >~/.local/share/bash-completion/completions/orchestrate
    Example: orchestrate completion fish >~/.config/fish/completions/orchestrate.fish
    In zsh, add to ~/.zshrc: eval "$(orchestrate completion zsh)"
    """
    from click.shell_completion import get_completion_class

    from orchestrator.cli import orchestrate

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(orchestrate, {}, "orchestrate", VARIABLE)
    # Not source(): bash's also asks the bash that is there for its version, on stderr.
    print_text(f"{script.source_template % script.source_vars()}\n")
