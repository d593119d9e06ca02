"""Finds what is wrong with a machine, and the command that fixes it: ``jaxvision doctor``.

`examine` collects the facts of the machine without judging them. Each check reads only the facts and yields findings.
To add a check, add a function to `CHECKS`.
"""

from jaxvision.doctor.checks import CHECKS, Finding, findings
from jaxvision.doctor.facts import Facts, Gpu, Holder, examine, summary

__all__ = ["CHECKS", "Facts", "Finding", "Gpu", "Holder", "examine", "findings", "summary"]
