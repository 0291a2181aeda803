"""Where a training reports to: wandb, offline unless the environment says otherwise.

`WANDB_MODE=online` or `disabled` work as wandb documents them. Whatever wandb does, the training
goes on: the first failure is a warning, and nothing is sent after it.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

__all__ = ["Monitor", "Stage", "WandbMonitor"]


@runtime_checkable
class Monitor(Protocol):
    """Anything that takes named figures at a step."""

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Record figures."""
        ...


class Stage:
    """One of several trainings that report to one monitor, each with its own names and steps.

    Args:
        monitor: Where the figures go.
        name: Put before every name, with a slash.
    """

    def __init__(self, monitor: "WandbMonitor", name: str) -> None:
        self._monitor = monitor
        self._name = name

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Record figures at a step of this training."""
        named = {f"{self._name}/{key}": value for key, value in values.items()}
        self._monitor.record({**named, f"{self._name}/step": step})


class WandbMonitor:
    """Record one wandb run.

    Args:
        project: The wandb project.
        folder: Where wandb writes its `wandb/` folder.
        name: Name of the run.
        settings: Settings to store with the run.
    """

    def __init__(
        self,
        project: str,
        *,
        folder: str | os.PathLike[str] = ".",
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._run: Any = None
        self._try("init", lambda: self._start(project, Path(folder), name, settings))

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Record figures at a step."""
        self.record({**values, "step": step})

    def record(self, values: Mapping[str, float | int]) -> None:
        """Record figures as they are."""
        if self._run is not None:
            self._try("log", lambda: self._run.log(dict(values)))

    def stage(self, name: str) -> Stage:
        """Open a training of its own within this run; its steps are the axis of its figures."""
        if self._run is not None:
            axis = f"{name}/step"
            self._try("stage", lambda: self._run.define_metric(f"{name}/*", step_metric=axis))
        return Stage(self, name)

    def finish(self) -> None:
        """Close the run; later figures are dropped."""
        if self._run is not None:
            self._try("finish", lambda: self._run.finish())
        self._run = None

    def _start(
        self, project: str, folder: Path, name: str | None, settings: Mapping[str, Any] | None
    ) -> None:
        import wandb  # slow to import, and only used here

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            dir=str(folder),
            name=name,
            config=dict(settings or {}),
            mode=cast(Any, os.environ.get("WANDB_MODE", "offline")),
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )

    def _try(self, action: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  logging must never end a training
            self._run = None
            warnings.warn(
                f"wandb {action} failed, the training goes on without it: {error}", stacklevel=3
            )
