"""What the conformance kit hands back: one finding for each check, and a table of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from cflow.errors import DomainError

__all__ = ["Finding", "Report", "judged", "run_checks"]


@dataclass(frozen=True)
class Finding:
    """Say how one check went.

    Args:
        name: The check.
        outcome: Passed, failed or skipped.
        measured: The figure that was measured, or None where the check has none.
        bound: The largest figure that passes.
        message: What is wrong, or why the check was skipped, in one sentence.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    measured: float | None = None
    bound: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Report:
    """Hold the findings of one run of the kit; `str(report)` is a table.

    Example:
        >>> report = Report((Finding("round trip", "passed", 0.0, 1e-9),))
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
        lines = [f"{'check':<{width}}  outcome  measured     bound  message"]
        for f in self.findings:
            measured = "" if f.measured is None else f"{f.measured:.1e}"
            bound = "" if f.bound is None else f"{f.bound:.1e}"
            row = f"{f.name:<{width}}  {f.outcome:<7}  {measured:>8}  {bound:>8}  {f.message}"
            lines.append(row.rstrip())
        return "\n".join(lines)


def run_checks(checks: Iterable[tuple[str, Callable[[], Finding]]]) -> Report:
    """Run checks one by one; a check that raises has failed, and its error is the message."""
    findings = []
    for name, check in checks:
        try:
            findings.append(check())
        except Exception as error:  # noqa: BLE001  any error of a layer is a finding
            first = (str(error).splitlines() or [""])[0]
            findings.append(
                Finding(name, "failed", message=f"raised {type(error).__name__}: {first}")
            )
    return Report(tuple(findings))


def judged(name: str, measured: float, bound: float, wrong: str) -> Finding:
    """Compare a figure with its bound; a figure that is not a number fails."""
    good = measured <= bound
    return Finding(name, "passed" if good else "failed", measured, bound, "" if good else wrong)
