"""The solvers of torchdiffeq and torchdyn behind our contract.

Both solve a whole batch on one clock with one step size, so a sample's result depends on its mates.
Here that clock is s in [0, 1] with t = t0 + s (t1 - t0), which gives them backward runs, times by
sample and gradients of the times, and keeps the field from being asked outside the span.
Source: Chen (2018), torchdiffeq; Poli et al. (2021), TorchDyn: implicit models and neural numerical
methods in PyTorch.
"""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.errors import DomainError, MissingExtraError, SolverError, expect_positive
from cflow.ode.problem import Problem, Span
from cflow.ode.solver import Solution, Solver, Status, finite_rows, raise_failures

__all__ = ["Torchdiffeq", "Torchdyn"]


ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")


@dataclass(frozen=True, repr=False)
class OneClock(Solver):
    """A solver of another library, which steps the whole batch at once.

    Attributes:
        method: The library's own name of the method.
        rtol: Relative tolerance of adaptive methods.
        atol: Absolute tolerance of adaptive methods.
        steps: Steps of fixed-step methods.
        max_steps: Steps that an adaptive method may take between two saved times.
        throw: Raise when the solve fails; otherwise the last good states come back with a status
            that all samples share.
    """

    method: str
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 8
    max_steps: int = 1000
    throw: bool = True

    fixed: ClassVar[frozenset[str]]
    variable: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.method not in self.fixed | self.variable:
            raise DomainError(
                f"{name}: method must be one of {sorted(self.fixed | self.variable)}, got "
                f"{self.method!r}"
            )
        expect_positive(name, rtol=self.rtol, atol=self.atol, steps=self.steps)
        expect_positive(name, max_steps=self.max_steps)

    @property
    def per_sample(self) -> bool:
        return False

    @property
    def adaptive(self) -> bool:
        return self.method in self.variable

    def _solve(self, problem: Problem, span: Span) -> Solution:
        name = type(self).__name__
        if problem.project is not None or span.stops or span.dense:
            raise DomainError(
                f"{name}: takes neither a projection, nor stop_at, nor dense=True; use a solver of "
                "cflow.ode"
            )
        clock = _Clock(problem, span)
        shares = [0.0]
        for t in span.save or ():
            share = clock.share(t)
            if share > shares[-1]:
                shares.append(share)
        if shares[-1] < 1.0:
            shares.append(1.0)
        try:
            states = self._integrate(clock, shares)
        except (AssertionError, ArithmeticError) as error:
            return self._failed(problem, span, clock, error)
        y = [leaf[-1] for leaf in states]
        if not bool(finite_rows(y).all()):
            return self._failed(problem, span, clock, None, finite_rows(y))
        if span.save is not None:
            places = [
                min(range(len(shares)), key=lambda k: abs(shares[k] - clock.share(t)))
                for t in span.save
            ]
            y = [leaf[places] for leaf in states]
        status = torch.zeros(problem.batch, dtype=torch.long, device=y[0].device)
        return self._solution(problem, span, clock, y, status, clock.at(1.0))

    @abstractmethod
    def _integrate(self, clock: "_Clock", shares: Sequence[float]) -> list[Tensor]:
        """Return each leaf at each share of the way, `(len(shares), batch, ...)`."""

    def _solution(
        self,
        problem: Problem,
        span: Span,
        clock: "_Clock",
        y: list[Tensor],
        status: Tensor,
        reached: Tensor,
    ) -> Solution:
        ts = span.t1
        if span.save is not None:
            ts = torch.tensor(span.save, dtype=problem.time_dtype)
        count = lambda n: torch.full_like(status, n)
        return Solution(
            problem.tree(y), ts, count(clock.calls), count(clock.accepted), count(clock.rejected),
            status, reached.detach(),
        )  # fmt: skip

    def _failed(
        self,
        problem: Problem,
        span: Span,
        clock: "_Clock",
        error: Exception | None,
        finite: Tensor | None = None,
    ) -> Solution:
        """Report a failure with the last state that the library had accepted."""
        exhausted = error is not None and "max_num_steps" in str(error)
        kind = Status.STEPS_EXHAUSTED if exhausted else Status.STEP_UNDERFLOW
        if finite is not None or clock.broken:
            kind = Status.NON_FINITE
        bad = torch.ones(problem.batch, dtype=torch.bool, device=problem.leaves[0].device)
        bad = bad if finite is None else ~finite
        status = torch.where(bad, int(kind), int(Status.DONE))
        share, y = clock.good
        reached = clock.at(share)
        if self.throw:
            attempts = torch.full_like(status, clock.accepted + clock.rejected)
            try:
                raise_failures(f"{type(self).__name__}({self.method!r})", status, reached, attempts)
            except SolverError as ours:
                raise ours from error
        if span.save is not None:
            y = [leaf.expand(len(span.save), *leaf.shape) for leaf in y]
        return self._solution(problem, span, clock, y, status, reached)


@dataclass(frozen=True, repr=False)
class Torchdiffeq(OneClock):
    """Any method of `torchdiffeq.odeint` by its name, such as "dopri5", "rk4" or "implicit_adams".

    Its tolerances, adaptive or not, are those of the whole batch; "scipy_solver" is SciPy's RK45.

    Example:
        >>> y = Torchdiffeq("dopri5").solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y
        >>> round(y.item(), 3)
        0.368
    """

    fixed: ClassVar[frozenset[str]] = frozenset(
        [
            "euler",
            "midpoint",
            "heun2",
            "heun3",
            "rk4",
            "explicit_adams",
            "implicit_adams",
            "fixed_adams",
        ]
    )
    variable: ClassVar[frozenset[str]] = frozenset(
        ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver"]
    )

    def _integrate(self, clock: "_Clock", shares: Sequence[float]) -> list[Tensor]:
        from torchdiffeq import odeint

        start = tuple(clock.start)
        s = torch.tensor(shares, dtype=clock.dtype, device=start[0].device)
        scipy = self.method == "scipy_solver"
        options: dict[str, Any] = {"step_size": 1.0 / self.steps}
        if scipy:
            options = {"solver": "RK45"}
        elif self.adaptive:
            # Without step_t the last step reaches beyond the end.
            options = {"max_num_steps": self.max_steps, "step_t": s[1:]}
        field = clock if scipy else _Watched(clock) if self.adaptive else _Stepped(clock)
        with warnings.catch_warnings():
            # torchdiffeq hands every SciPy solver an option that RK45 does not know
            warnings.filterwarnings("ignore", message=".*no effect for a chosen solver.*")
            out = odeint(
                field, start, s, rtol=self.rtol, atol=self.atol, method=self.method, options=options
            )
        leaves: Any = out  # a tuple, as the start is one
        own = clock.problem.leaves
        return [leaf.to(o.dtype) for leaf, o in zip(leaves, own, strict=True)]


@dataclass(frozen=True, repr=False)
class Torchdyn(OneClock):
    """A method of `torchdyn.numerics.odeint` by its name; needs the extra `torchdyn`.

    Example:
        >>> Torchdyn("rk4", steps=4).adaptive
        False
    """

    fixed: ClassVar[frozenset[str]] = frozenset(["euler", "midpoint", "rk4"])
    variable: ClassVar[frozenset[str]] = frozenset(["dopri5", "tsit5"])

    def _integrate(self, clock: "_Clock", shares: Sequence[float]) -> list[Tensor]:
        try:
            from torchdyn.numerics import odeint
        except ImportError as error:
            raise MissingExtraError(
                "Torchdyn: torchdyn is not installed; pip install 'cflow[torchdyn]'"
            ) from error
        sizes = [leaf.flatten(1).shape[1] if leaf.dim() > 1 else 1 for leaf in clock.start]
        pack = lambda leaves: torch.cat([x.reshape(len(x), -1) for x in leaves], dim=1)

        def unpack(flat: Tensor) -> list[Tensor]:
            parts = flat.split(sizes, dim=-1)
            return [
                part.reshape(*flat.shape[:-1], *leaf.shape[1:])
                for part, leaf in zip(parts, clock.start, strict=True)
            ]

        grid = list(shares)
        if not self.adaptive:  # its steps run from saved time to saved time
            even = [k / self.steps for k in range(self.steps + 1)]
            far = [t for t in even if min(abs(t - share) for share in shares) > 1e-6]
            grid = sorted([*shares, *far])  # torchdyn refuses times that are nearly the same
        s = torch.tensor(grid, dtype=clock.dtype, device=clock.start[0].device)
        tolerances: dict[str, Any] = {"atol": self.atol, "rtol": self.rtol} if self.adaptive else {}

        def field(t: Tensor, y: Tensor) -> Tensor:
            # torchdyn has no bound on steps, and shrinks them for ever beside a NaN
            if self.adaptive and clock.calls > 8 * self.max_steps:
                raise ArithmeticError("max_num_steps exceeded")
            slopes = pack(clock(t, unpack(y)))
            if clock.broken:
                raise ArithmeticError("the field is not finite")
            return slopes

        _, out = odeint(field, pack(clock.start), s, solver=self.method, **tolerances)
        if not self.adaptive:
            clock.accepted = len(grid) - 1
        kept = out[[grid.index(share) for share in shares]]
        leaves = zip(unpack(kept), clock.problem.leaves, strict=True)
        return [leaf.to(own.dtype) for leaf, own in leaves]


class _Clock:
    """The field on the clock s from 0 to 1, counting what is asked of it."""

    def __init__(self, problem: Problem, span: Span) -> None:
        self.problem, self.span = problem, span
        device, dtype = problem.leaves[0].device, problem.time_dtype
        self.dtype = dtype
        self.t0, self.t1 = (
            torch.as_tensor(t, dtype=dtype, device=device).expand(problem.batch)
            for t in (span.t0, span.t1)
        )
        # Low precision is lifted: these libraries step in the dtype of the state.
        self.start = [leaf.to(torch.promote_types(leaf.dtype, dtype)) for leaf in problem.leaves]
        self.calls = self.accepted = self.rejected = 0
        self.broken = False
        self.good: tuple[float, list[Tensor]] = (0.0, problem.leaves)

    def at(self, share: float | Tensor) -> Tensor:
        """Return the time of each sample at a share of the way."""
        return self.t0 + share * (self.t1 - self.t0)

    def share(self, t: float) -> float:
        """Return the share of the way at which a time stands."""
        t0, t1 = self.span.t0, self.span.t1
        assert not isinstance(t0, Tensor)
        assert not isinstance(t1, Tensor)
        return (t - t0) / (t1 - t0)

    def __call__(self, s: Tensor, y: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return dy/ds."""
        self.calls += 1
        t = self.at(s.clamp(0.0, 1.0))
        own = [x.to(leaf.dtype) for x, leaf in zip(y, self.problem.leaves, strict=True)]
        slopes = self.problem.f(t, own, self.problem.args)
        pace = self.t1 - self.t0
        out = tuple(
            pace.reshape(-1, *(1,) * (k.dim() - 1)).to(x.dtype) * k.to(x.dtype)
            for k, x in zip(slopes, y, strict=True)
        )
        self.broken = not bool(finite_rows([x.detach() for x in out]).all())
        return out

    def note(self, s: Tensor, y: Any) -> None:  # noqa: ANN401
        """Note a state from which a step starts."""
        leaves = [x.detach() for x in y]
        if bool(finite_rows(leaves).all()):
            own = zip(leaves, self.problem.leaves, strict=True)
            self.good = (float(s.detach()), [x.to(leaf.dtype) for x, leaf in own])


class _Stepped:
    """A clock with the callback that torchdiffeq's fixed-step methods look for."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __call__(self, s: Tensor, y: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.clock(s, y)

    def callback_step(self, s: Tensor, y: Any, h: Tensor) -> None:  # noqa: ANN401
        """Note and count a step."""
        self.clock.note(s, y)
        self.clock.accepted += 1


class _Watched:
    """A clock with the callbacks that torchdiffeq's adaptive methods look for."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __call__(self, s: Tensor, y: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.clock(s, y)

    def callback_step(self, s: Tensor, y: Any, h: Tensor) -> None:  # noqa: ANN401
        """Note where a step starts."""
        self.clock.note(s, y)

    def callback_accept_step(self, s: Tensor, y: Any, h: Tensor) -> None:  # noqa: ANN401
        """Count an accepted step."""
        self.clock.accepted += 1

    def callback_reject_step(self, s: Tensor, y: Any, h: Tensor) -> None:  # noqa: ANN401
        """Count a rejected step."""
        self.clock.rejected += 1
