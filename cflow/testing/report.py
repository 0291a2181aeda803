"""What the conformance kit hands back: one finding for each check, and a table of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from cflow.errors import DomainError

__all__ = ["Check", "Finding", "Report", "judged", "run_checks", "skipped"]


@dataclass(frozen=True)
class Finding:
    """Say how one check went.

    Args:
        name: The check.
        outcome: Passed, failed or skipped.
        measured: The figure that was measured, or None where the check has none.
        bound: The largest figure that passes.
        message: What was found true, what is wrong, or why the check was skipped, in one sentence.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    measured: float | None = None
    bound: float | None = None
    message: str = ""


class Check(NamedTuple):
    """Hold a check that waits to be run.

    Attributes:
        name: A few words.
        claim: What is true where it passes, in one sentence.
        run: Measures it; the finding's own name may stay empty.
    """

    name: str
    claim: str
    run: Callable[[], Finding]


@dataclass(frozen=True)
class Report:
    """Hold the findings of one run of the kit; `str(report)` is a table.

    Example:
        >>> found = Finding("round trip", "passed", 2e-16, 1e-9, "pull undoes push")
        >>> report = Report((found, Finding("context", "skipped", message="there is none")))
        >>> print(report)
        outcome  check       measured    bound  what was found
        passed   round trip   2.0e-16  1.0e-09  pull undoes push
        skipped  context                        there is none
        1 passed, 0 failed, 1 skipped
        >>> report.passed
        True
    """

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed."""
        return tuple(f for f in self.findings if f.outcome == "failed")

    def raise_if_failed(self) -> None:
        """Raise with the whole table where a check failed.

        Raises:
            DomainError: A check failed.
        """
        if self.failures:
            raise DomainError(f"conformance kit: {len(self.failures)} checks failed\n{self}")

    def __str__(self) -> str:
        width = max((len(f.name) for f in self.findings), default=5)
        lines = [f"outcome  {'check':<{width}}  measured    bound  what was found"]
        for f in self.findings:
            measured = "" if f.measured is None else f"{f.measured:.1e}"
            bound = "" if f.bound is None else f"{f.bound:.1e}"
            row = f"{f.outcome:<7}  {f.name:<{width}}  {measured:>8}  {bound:>7}  {f.message}"
            lines.append(row.rstrip())
        counts = [
            f"{sum(f.outcome == outcome for f in self.findings)} {outcome}"
            for outcome in ("passed", "failed", "skipped")
        ]
        return "\n".join([*lines, ", ".join(counts)])


def run_checks(checks: Iterable[Check]) -> Report:
    """Run checks one by one; a check that raises has failed, and its error is the message."""
    findings = []
    for check in checks:
        try:
            found = check.run()
        except Exception as error:  # noqa: BLE001  any error of a layer is a finding
            first = (str(error).splitlines() or [""])[0]
            found = Finding("", "failed", message=f"raised {type(error).__name__}: {first}")
        message = found.message or (check.claim if found.outcome == "passed" else "")
        findings.append(replace(found, name=check.name, message=message))
    return Report(tuple(findings))


def judged(measured: float, bound: float, wrong: str) -> Finding:
    """Compare a figure with its bound; a figure that is not a number fails."""
    good = measured <= bound
    return Finding("", "passed" if good else "failed", measured, bound, "" if good else wrong)


def skipped(why: str) -> Finding:
    """Return the finding of a check that does not apply."""
    return Finding("", "skipped", message=why)
