"""A driver in a process of its own: runs the steps that a folder has, and leaves there what came of them."""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from pathlib import Path

from prefect_parallelrun.driver.run import run_step


def main(folder: Path) -> None:
    logging.basicConfig(
        filename=folder / "log.txt", level=logging.INFO, format="%(relativeCreated)d %(message)s"
    )
    results = []
    for number, definition in enumerate(pickle.loads((folder / "steps.pickle").read_bytes())):
        definition.validate()
        run = folder / f"run{number}"
        try:
            result = run_step(
                definition,
                run_folder=run,
                run_id=f"{folder.name}-{number}",
                log=logging.getLogger("run"),
            )
            results.append(result)
        except Exception as error:
            logging.getLogger("run").error("%s", traceback.format_exc())
            results.append(error)
    draft = folder / "results.tmp"
    draft.write_bytes(pickle.dumps(results))
    draft.replace(folder / "results.pickle")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
