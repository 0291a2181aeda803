"""Quality against evaluations: flow matching, OT, reflow, distillation, mean flow, layers.

    python -m experiments.fewstep                                # all problems: hours of two cores
    python -m experiments.fewstep --problems digits mnist        # some; see PROBLEMS
    python -m experiments.fewstep --smoke                        # the same road in seconds

Every problem is studied for each seed by `study.py`, MNIST for the first alone. What is finished is
kept in runs/fewstep/, one file a problem and seed, and not done again. The table and the picture
(table.md, quality.png) are made of all that lies there.
"""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import tyro

from experiments.fewstep.jobs import Settings, run
from experiments.fewstep.table import picture, said, written


def main(settings: Settings) -> dict[str, Any]:
    jobs = [
        (name, seed, settings.workers if name == "mnist" else 1, settings)
        for name in settings.problems
        for seed in (settings.seeds[:1] if name == "mnist" else settings.seeds)
    ]
    done = lambda job: settings.out / job[0].replace(" ", "_") / str(job[1]) / "figures.json"
    jobs = [job for job in jobs if not done(job).exists()]
    wide = [job for job in jobs if job[0] == "mnist"]
    narrow = [job for job in jobs if job[0] != "mnist"]
    if settings.workers > 1 and narrow:
        with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
            for finished in as_completed([pool.submit(run, job) for job in narrow]):
                print(said(finished.result()), flush=True)
    else:
        wide = [*narrow, *wide]
    for job in wide:
        print(said(run(job)), flush=True)
    found = [json.loads(path.read_text()) for path in settings.out.glob("*/*/figures.json")]
    table = written(found)
    (settings.out / "table.md").write_text(table)
    print(table)
    picture(found, settings.out / "quality.png")
    return {"studies": found, "table": table}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
