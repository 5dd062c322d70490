"""Draw one photograph with the tiles of another: two steps, and tasks before and after them.

    cut_photograph(china.jpg)  -> describe-tiles -> match-tiles -> draw_mosaic
    cut_photograph(flower.jpg) ---------------------^

All hand on futures, so Prefect's pages draw this graph. Run it twice: the second time both steps have
nothing to do.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

# Nothing leaves this machine: Prefect reads these when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from PIL import Image
from prefect import flow, task
from sklearn.datasets import load_sample_image

from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunResult, ParallelRunStep

HERE = Path(__file__).resolve().parent
TILE_PIXELS = 16
"""Width and height of a tile."""

SCRIPTS = str(HERE / "scripts" / "chained")

describing = ParallelRunConfig(
    source_directory=SCRIPTS,
    entry_script="describe_tiles.py",
    mini_batch_size=40,
    error_threshold=0,
    output_format="parquet",
    append_row_file_name="looks.parquet",
    process_count_per_node=2,
)

matching = ParallelRunConfig(
    source_directory=SCRIPTS,
    entry_script="match_tiles.py",
    mini_batch_size=40,
    error_threshold=0,
    output_format="csv",
    append_row_file_name="matches.csv",
    process_count_per_node=2,
)


@task(task_run_name="cut-{photograph}")
def cut_photograph(photograph: str, folder: Path) -> FileDataset:
    """Write each tile of a photograph that scikit-learn ships as a PNG file; return all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = Image.fromarray(load_sample_image(photograph))
    for top in range(0, whole.height - TILE_PIXELS + 1, TILE_PIXELS):
        for left in range(0, whole.width - TILE_PIXELS + 1, TILE_PIXELS):
            png = io.BytesIO()
            whole.crop((left, top, left + TILE_PIXELS, top + TILE_PIXELS)).save(png, format="PNG")
            keep(folder / f"{top:03d}-{left:03d}.png", png.getvalue())
    return FileDataset.from_files(folder / "*.png").as_named_input("tiles")


@task(task_run_name="draw-mosaic")
def draw_mosaic(result: ParallelRunResult, tiles: Path, file: Path) -> float:
    """Put the tiles that were found in their places; return the mean distance of a match."""
    matches = result.to_pandas()
    places = [tuple(map(int, Path(name).stem.split("-"))) for name in matches["tile"]]
    height, width = (max(one) + TILE_PIXELS for one in zip(*places, strict=True))
    mosaic = Image.new("RGB", (width, height))
    for (top, left), name in zip(places, matches["match"], strict=True):
        with Image.open(tiles / name) as tile:
            mosaic.paste(tile, (left, top))
    mosaic.save(file)
    return float(matches["distance"].mean())


@flow(name="chained")
def draw_flower_with_china(folder: str) -> None:
    """Cut both photographs, describe the tiles of one, find one of them for each of the other's."""
    data = Path(folder)
    china = cut_photograph.submit("china.jpg", data / "china")
    flower = cut_photograph.submit("flower.jpg", data / "flower")
    described = ParallelRunStep(
        name="describe-tiles",
        parallel_run_config=describing,
        inputs=[china],
        output=str(data / "described"),
    ).submit()
    matched = ParallelRunStep(
        name="match-tiles",
        parallel_run_config=matching,
        inputs=[flower],
        side_inputs=[described],
        arguments=["--described", described],
        output=str(data / "matched"),
    ).submit()
    distance = draw_mosaic.submit(matched, data / "china", data / "mosaic.png").result()

    print(f"mosaic    {data / 'mosaic.png'}, mean distance {distance:.3f}")
    for name, future in (("describe", described), ("match", matched)):
        result = future.result()
        reused = "yes" if result.reused else "no"
        print(
            f"{name:9} {result.items.succeeded:,} of {result.items.total:,} tiles, reused: {reused}"
        )
    print(f"output    {result.append_row_file}")
    print(f"logs      {result.logs_directory}")
    if result.report:
        print(f"report    {result.report}")


def keep(path: Path, content: bytes) -> None:
    """Write the file unless it has this content already, since a new file is processed anew."""
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", default=str(HERE / "data" / "chained"), help="folder for all files"
    )
    draw_flower_with_china(parser.parse_args().data)
