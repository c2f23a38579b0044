"""``hierlab twin``: one scene of the synthetic Earth, or a whole data set of it, as files."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import profiles

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Files of the twin, a synthetic Earth whose true classes are known everywhere.",
)


@app.command()
def render(
    sensor: Annotated[str, typer.Argument(help="Who looks: gaofen2, sentinel2, naip, … (a wrong name lists them).")],
    out: Annotated[Path, typer.Argument(metavar="OUT.tif", help="GeoTIFF to write.")],
    window: Annotated[
        tuple[int, int, int, int],
        typer.Option(help="Left, top, width and height in pixels. Any place will do; it may be negative."),
    ] = (0, 0, 512, 512),
    seed: Annotated[int, typer.Option(help="Which Earth.")] = 0,
    region: Annotated[int, typer.Option(help="Which part of it: each has its own climate and way of building.")] = 0,
    year: Annotated[int, typer.Option(help="Which year: crops rotate and towns grow.")] = 2020,
    truth: Annotated[
        bool, typer.Option("--truth", help="The true classes (MM-5B's 18) in place of the image.")
    ] = False,
    legend: Annotated[
        str | None, typer.Option(help="The true classes of another data set: loveda, chesapeake, potsdam, …")
    ] = None,
    product: Annotated[
        str | None,
        typer.Option(help="A coarse, faulty label product: nlcd, from-glc10, esa-worldcover, esri, glc-fcs30."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Make the image on a GPU (cuda); without, the processor makes it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write one georeferenced window: what a sensor sees there, its true classes, or a label product.

    Image and labels of one place, which fit pixel for pixel:

    hierlab twin render gaofen2 image.tif --window 0 0 1024 1024

    hierlab twin render gaofen2 labels.tif --window 0 0 1024 1024 --truth
    """
    from .twin import render_geotiff
    from .twin.sensors import lookup

    console = Console(highlight=False, soft_wrap=True)
    if sum(map(bool, (truth, legend, product))) > 1:
        raise ValueError("--truth, --legend and --product ask for different files: give one of them.")
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"{out} is written as a GeoTIFF: give it a name that ends in .tif.")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already: choose another name, or add --overwrite.")
    found = lookup(sensor)
    x, y, width, height = window
    console.print(f"{found.title}: {width} × {height} pixels of {found.gsd:g} m at ({x}, {y}), year {year}")
    begun = time.perf_counter()
    with console.status("Rendering …"):
        render_geotiff(str(out), found, seed, region, window, truth, year, legend, product, device)
    console.print(f"Written: {out} ({time.perf_counter() - begun:.1f} s)")


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A data set's name, see `hierlab list datasets`.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to fill: new, empty, or begun earlier.")],
    profile: Annotated[
        str | None,
        typer.Option(help="How large: smoke, laptop (the default), gpu, or paper, as large as the real set."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "all",
    seed: Annotated[int, typer.Option(help="Which Earth.")] = 0,
    count: Annotated[int | None, typer.Option(help="So many items a split, instead of the profile's.")] = None,
    size: Annotated[int | None, typer.Option(help="So many pixels a side, instead of the profile's.")] = None,
    state: Annotated[int | None, typer.Option(help="chesapeake: one state, 0 to 5 (default: all).")] = None,
    domain: Annotated[str | None, typer.Option(help="loveda: urban, rural or both.")] = None,
    product: Annotated[str | None, typer.Option(help="poland: from-glc10, esa-worldcover, esri or glc-fcs30.")] = None,
    series: Annotated[str | None, typer.Option(help="whu-h2sr-mt: sentinel2-series or landsat8-series.")] = None,
) -> None:
    """Write a data set of the twin in the folders, names and formats of the real one.

    Stopped half-way, the same command goes on where it was. For a first look:

    hierlab twin export loveda loveda-twin/ --profile smoke
    """
    from .twin.export import export as write
    from .twin.export import sets
    from .twin.presets import SPLITS

    console = Console(highlight=False, soft_wrap=True)
    if split not in (*SPLITS, "all"):
        raise ValueError(f"--split is one of {', '.join(SPLITS)}, all; got '{split}'.")
    profile = profiles.check(profile or profiles.current())
    options = {"state": state, "domain": domain, "product": product, "series": series}
    options = {option: value for option, value in options.items() if value is not None}
    made = sets(name, SPLITS if split == "all" else (split,), profile, seed, size, count, **options)
    for data in made:
        sides = " × ".join(map(str, data.size)) if isinstance(data.size, tuple) else f"{data.size} × {data.size}"
        console.print(f"{data.split:5} {len(data):,} items of {sides} pixels at {data.gsd:g} m")
    begun = time.perf_counter()
    done = write(made, folder, progress=True)
    console.print(
        f"Written: {folder}, {done['written']:,} files in {time.perf_counter() - begun:.0f} s"
        + (f", {done['kept']:,} kept from before" if done["kept"] else "")
    )
