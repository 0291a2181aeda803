"""The ODE engine beside torchode, torchdiffeq, flow_matching and zuko, in one run.

    python -m experiments.benchmarks.ode                      # half an hour or more on two cores
    python -m experiments.benchmarks.ode --only easy stiff    # some figures
    python -m experiments.benchmarks.ode --smoke              # every path, figures meaningless

Times are medians of interleaved rounds (a b c a b c ...), figures are ratios of such medians, with
the quartiles of the ratio over the rounds. The table says what was wanted of each and whether it
was reached; everything lands in runs/ode_benchmark/report.json.
"""

import tyro

from experiments.benchmarks import run
from experiments.benchmarks.ode import (
    adaptive,
    gradients,
    independence,
    likelihood,
    overhead,
    training,
)
from experiments.benchmarks.settings import Settings

FIGURES: run.Figures = {
    "overhead": overhead.network,
    "single": overhead.single,
    "easy": adaptive.easy,
    "stiff": adaptive.stiff,
    "independence": independence.independence,
    "gradients": gradients.gradients,
    "training": training.training,
    "likelihood": likelihood.likelihood,
}
PACKAGES = ("torch", "torchode", "torchdiffeq", "flow_matching", "zuko", "numpy")


def main(settings: Settings) -> run.Report:
    return run.measure("ode", FIGURES, settings, packages=PACKAGES)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
