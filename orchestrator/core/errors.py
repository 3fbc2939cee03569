"""Errors that are for people: what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix.

    ``message`` says what is wrong and where (file and line, key, node); ``hint`` says what to do.
    The command line prints both without a traceback and exits with ``exit_code``.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class BadInput(UserError):
    """A file or a flag that the user wrote is wrong: exit code 2."""

    exit_code = 2
