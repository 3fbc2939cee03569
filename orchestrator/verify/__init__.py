"""Is the cluster what its profile says, and does the model answer right? Changes nothing.

Read in this order: ``facts`` (what is looked at), ``gather`` (the looking), ``judge`` (facts to
verdicts, pure), ``hardware`` (the same, for machines), ``report`` (checks and their three forms),
``everything`` (all checks at once).
"""

from __future__ import annotations

from orchestrator.verify.everything import verify
from orchestrator.verify.gather import VerifyContext
from orchestrator.verify.report import Check, Report

__all__ = ["Check", "Report", "VerifyContext", "verify"]
