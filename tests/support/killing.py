"""Ends the agent in the midst of its work, wherever it runs."""

from __future__ import annotations

#: Python source for `python -c`, with a number N and the agent's source as its words. It kills the
#: process, and nothing else, before its Nth step: a change on disk, or a command.
KILLED = """
import os, signal, subprocess, sys
at, calls = int(sys.argv[1]), 0
def counted(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
for name in (
    "mkdir", "chown", "lchown", "chmod", "fchown", "fchmod", "fsync", "rename", "replace", "unlink"
):
    setattr(os, name, counted(getattr(os, name)))
opened = os.open
creating = counted(opened)
os.open = lambda path, flags, *args, **kwargs: (
    creating if flags & os.O_CREAT else opened
)(path, flags, *args, **kwargs)
subprocess.run = counted(subprocess.run)
exec(compile(sys.argv[2], "agent.py", "exec"))
"""
