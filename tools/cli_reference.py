"""Print docs/reference/cli.md, from the commands themselves; tests/test_docs.py compares.

.venv/bin/python tools/cli_reference.py >docs/reference/cli.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from orchestrator.cli import orchestrate

HEAD = """\
# Commands

This page is generated: `python tools/cli_reference.py`. Each command says the same with `--help`.

- Results go to stdout, progress and errors to stderr. With `--json`, stdout is one JSON document.
- Exit codes: 0 done; 1 it failed, or a check did; 2 a file or an argument is wrong; 70 a bug in
  orchestrate (the message names a log file); 130 stopped with Ctrl-C.
- `--profile` takes a name of `profiles/` or a path. Without it: `$ORCHESTRATE_PROFILE`, else what
  `orchestrate profile use` chose.
- Variables that move what is kept: [files.md](files.md).
"""


def reference() -> str:
    """The whole page."""
    sections = [
        section(words, command)
        for words, command in walk(("orchestrate",), orchestrate)
        if not isinstance(command, click.Group)
    ]
    return "\n".join([HEAD, *sections])


def walk(
    words: tuple[str, ...], command: click.Command
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The command and all below it, in the order of --help."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk((*words, name), below)


def section(words: tuple[str, ...], command: click.Command) -> str:
    arguments = [shown for each in command.params if (shown := argument(each))]
    lines = [f"## {' '.join([*words[1:], *arguments])}", ""]
    text = inspect.cleandoc(command.help or "")
    for line in text.splitlines():
        example = line.removeprefix("Example: ")
        lines.append(f"Example: `{example}`" if example != line else line)
    options = [row(each) for each in command.params if isinstance(each, click.Option)]
    if options:
        lines += ["", "| option | meaning |", "|---|---|", *options]
    return "\n".join([*lines, ""])


def argument(parameter: click.Parameter) -> str:
    if not isinstance(parameter, click.Argument) or parameter.name is None:
        return ""
    name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def row(option: click.Option) -> str:
    flags = ", ".join(f"`{flag}`" for flag in option.opts)
    if not option.is_flag:
        flags += f" `{option.metavar or option.type.name.upper()}`"
    meaning = option.help or ""
    if option.show_default and option.default is not None:
        meaning += f" (default {option.default})"
    if option.envvar and option.show_envvar:
        meaning += f" (variable `{option.envvar}`)"
    return f"| {flags} | {meaning.strip()} |"


if __name__ == "__main__":
    print(reference(), end="")
