"""Layers beside zuko, nflows and normflows, in one run.

    python -m experiments.benchmarks.layers                     # some minutes on two cores
    python -m experiments.benchmarks.layers --only training     # some figures
    python -m experiments.benchmarks.layers --smoke             # every path, figures meaningless

Times are medians of interleaved rounds, figures are ratios of such medians, with the quartiles of
the ratio over the rounds; everything lands in runs/layers_benchmark/report.json.
"""

import tyro

from experiments.benchmarks import run
from experiments.benchmarks.layers import sampling, training
from experiments.benchmarks.settings import Settings

FIGURES: run.Figures = {
    "training": training.training,
    "sampling": sampling.sampling,
}
PACKAGES = ("torch", "zuko", "nflows", "normflows", "numpy")


def main(settings: Settings) -> run.Report:
    return run.measure("layers", FIGURES, settings, packages=PACKAGES)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
