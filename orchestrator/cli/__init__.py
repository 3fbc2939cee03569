"""The command line. Verbs are imported only when called: ``--help`` has to be quick."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

#: verb -> (module, one line for --help). A module has an attribute named like its verb.
COMMANDS = {
    "image": ("orchestrator.cli.image", "Lock, fetch, build and list images."),
    "profile": ("orchestrator.cli.profile", "Check, choose and list cluster profiles."),
    "netboot": ("orchestrator.cli.netboot", "Options that machines need to boot."),
    "model": ("orchestrator.cli.model", "Models: inspect, pull, list, remove."),
    "node": ("orchestrator.cli.node", "Single nodes: power, wait, shell, status."),
    "control": ("orchestrator.cli.control", "The control host, from your laptop."),
    "trust": ("orchestrator.cli.trust", "The cluster's keys: status, rotate, renew."),
    "sim": ("orchestrator.cli.sim", "Simulated machines: throttle links, open a shell."),
    "attach": ("orchestrator.cli.attach", "Write the profile of a cluster that others run."),
    "doctor": ("orchestrator.cli.doctor", "Say what limits a cluster that others run."),
    "up": ("orchestrator.cli.cluster", "Bring the cluster up, from power to a verified answer."),
    "plan": ("orchestrator.cli.plan", "Show what 'up' would change (dry run)."),
    "down": ("orchestrator.cli.cluster", "Undo 'up'."),
    "status": ("orchestrator.cli.cluster", "Show nodes, image, Ray, model and endpoint."),
    "dashboard": (
        "orchestrator.cli.dashboard",
        "Serve a live page of the cluster, on this machine.",
    ),
    "probe": ("orchestrator.cli.probe", "Measure what machines and cables can do."),
    "bench": ("orchestrator.cli.bench", "Load the model, and find the bottleneck."),
    "watch": ("orchestrator.cli.watch", "Keep reconciling the cluster with its profile."),
    "verify": ("orchestrator.cli.cluster", "Check that the cluster is what the profile says."),
    "support-bundle": ("orchestrator.cli.support", "Collect logs and facts for someone else."),
    "ask": ("orchestrator.cli.cluster", "Ask the served model a question."),
    "doc": ("orchestrator.cli.doc", "Print a page of the documentation."),
    "completion": ("orchestrator.cli.doc", "Print a shell's completion."),
}


#: Before or after a verb: run it on the control host.
ON_CONTROL = "--on-control"


class LazyGroup(click.Group):
    """A group that knows its verbs' names and one-line help without importing them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["orchestrator.cli.where"] = list(args)  # for a verb that is sent on
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="orchestrate")
@click.option(
    ON_CONTROL, is_flag=True, help="Run the command on the control host. Works after it, too."
)
def orchestrate(on_control: bool) -> None:
    """From bare machines to a measured LLM inference cluster.

    \b
    orchestrate plan     show what 'up' would change on the nodes
    orchestrate up       bring the active profile's cluster up, then verify it
    orchestrate verify   check it again; changes nothing
    orchestrate down     undo 'up'

    The active profile: --profile NAME_OR_PATH after a verb, else $ORCHESTRATE_PROFILE,
    else what 'orchestrate profile use' chose.
    """


def main(argv: list[str] | None = None) -> Any:
    """Run the command line: user errors become one message, bugs a log file.

    Returns the exit code; None is 0.
    """
    from orchestrator.core.errors import UserError

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        mine = words[: words.index("--")] if "--" in words else words
        if ON_CONTROL in mine:
            words.remove(ON_CONTROL)
            return sys.exit(sent(words))
        return orchestrate.main(args=words, prog_name="orchestrate", standalone_mode=False)
    except click.ClickException as error:
        from io import StringIO

        from orchestrator.core.console import err

        said = StringIO()
        error.show(said)
        err.print(said.getvalue(), end="")
        sys.exit(error.exit_code)
    except UserError as error:
        from orchestrator.core import console

        console.print_error(error.message)
        if error.hint:
            console.err.print(f"  {error.hint}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        from orchestrator.core.console import err

        err.print("interrupted")
        sys.exit(130)  # 128 + SIGINT, as shells count
    except Exception as bug:
        sys.exit(report_bug(bug))


def sent(words: list[str]) -> int:
    """Run a command on the control host of the profile that it names; its exit code."""
    from itertools import pairwise

    from orchestrator.cli.where import run_there
    from orchestrator.models.profiles import active

    named = [new for old, new in pairwise(words) if old == "--profile"]
    named += [word.partition("=")[2] for word in words if word.startswith("--profile=")]
    return run_there(active(named[-1] if named else None), words)


def report_bug(bug: Exception) -> int:
    """Write the traceback to a log file and say in two lines what happened; returns exit code 70.

    70 is EX_SOFTWARE of sysexits.h.
    """
    import tempfile
    import traceback

    from orchestrator.core.console import err
    from orchestrator.core.visible import visible

    with tempfile.NamedTemporaryFile(
        "w", prefix="orchestrate-bug-", suffix=".log", delete=False
    ) as log:
        log.write(visible("".join(traceback.format_exception(bug))))
    err.print(f"error: this is a bug in orchestrate: {type(bug).__name__}: {bug}")
    err.print(f"  The traceback is in {log.name}; please report it.")
    return 70
