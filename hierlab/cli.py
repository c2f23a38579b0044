"""The command line: train, evaluate, map, transfer, list, describe, twin, run, report, bench.

Each command says what it found before any long work, shows progress, and ends with a table and a picture. Bad input
ends with one message and exit code 2, without a traceback.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import _experiments_cli, _transfer_cli, _twin_cli, profiles
from ._show import choose, conclude, console, print_rows, print_table, print_tree_measures

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Land-cover maps that obey a class tree: train on your rasters and labels, evaluate, map.",
    epilog="A first run:  hierlab train --images scene.tif --labels labels.tif --tree mine.yaml --out run/",
)
bench = typer.Typer(
    no_args_is_help=True, help="Measure speed and memory side by side, into a CSV named by the machine."
)
app.add_typer(_twin_cli.app, name="twin")
_experiments_cli.register(app)
_transfer_cli.register(app)
app.add_typer(bench, name="bench")

SEVERAL = ("--images", "--labels", "--series", "--bands", "--rows", "--models")
KINDS = {
    "networks": "what `hierlab train --network` takes",
    "trees": "class trees that come with hierlab",
    "mappings": "which classes of one tree are which of another, for `hierlab transfer`",
    "datasets": "data sets of the built-in twin",
    "experiments": "the papers' tables, for `hierlab run`",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line on ``arguments`` (by default those of the process)."""
    try:
        app(spread(sys.argv[1:] if arguments is None else arguments), prog_name="hierlab")
    except (ValueError, OSError) as error:
        print(f"hierlab: {error}", file=sys.stderr)
        sys.exit(2)


def spread(arguments: list[str]) -> list[str]:
    """Let ``--images A B C`` stand for ``--images A --images B --images C`` (and so on with ``SEVERAL``)."""
    result, option, first = [], None, False
    for argument in arguments:
        if argument.startswith("-"):
            option, first = (argument, True) if argument in SEVERAL else (None, False)
            result.append(argument)
        elif option and not first:
            result += [option, argument]
        else:
            result.append(argument)
            first = False
    return result


Images = Annotated[
    list[Path],
    typer.Option(help="One or more GeoTIFFs. Several single-band files are stacked as the bands of one scene."),
]
Labels = Annotated[list[Path], typer.Option(help="Label rasters: one for each image, or one that covers all.")]
Series = Annotated[
    list[Path] | None,
    typer.Option(
        help="Time series beneath the images, one for each or one for all: a GeoTIFF whose bands are described as "
        '"YYYY-MM-DD name", dates slowest, nodata where clouded. Takes all the files that follow it.'
    ),
]
LabelCrs = Annotated[str | None, typer.Option(help="CRS of the labels, when their file says a wrong one or none.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def train(
    images: Images,
    labels: Labels,
    tree: Annotated[str, typer.Option(help="Class tree: a shipped name (see `hierlab list trees`) or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    network: Annotated[str, typer.Option(help="See `hierlab list networks`.")] = "resnet18-unet",
    series: Series = None,
    head: Annotated[str, typer.Option(help="bhccm (every level of the tree) or flat (leaves only).")] = "bhccm",
    profile: Annotated[
        str | None, typer.Option(help=f"How long to train: {', '.join(profiles.PROFILES)} (default: laptop).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, the weights and the patches.")] = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Training steps, instead of the profile's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches a step, instead of the profile's.")] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a training patch in pixels.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, or bf16-mixed: faster where the chip has bfloat16 (default: 32-true).")
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option(
            help="Share of the patches drawn for a class, all equally often; 0: as they occur (default: 0.5)."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Encoder weights: imagenet (needs the network) or a file.")
    ] = None,
    width: Annotated[float, typer.Option(help="Fraction of the network's channels to keep.")] = 1.0,
    depth: Annotated[float, typer.Option(help="Fraction of the network's blocks to keep.")] = 1.0,
    bands: Annotated[list[str] | None, typer.Option(help="Bands to use, by name or number; all by default.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the labelled pixels held out as blocks.")] = 0.2,
    test: Annotated[float, typer.Option(help="A second held-out share, for `hierlab evaluate`.")] = 0.0,
    block: Annotated[int | None, typer.Option(help="Side of a block in pixels (default: two patches).")] = None,
    label_crs: LabelCrs = None,
    only_present: Annotated[bool, typer.Option("--only-present", help="Drop classes that no label names.")] = False,
    fusion: Annotated[str, typer.Option(help="BHCCM: both, coarse_to_fine, fine_to_coarse or none.")] = "both",
    residual: Annotated[bool, typer.Option("--residual", help="BHCCM's residual variant.")] = False,
    consistency: Annotated[str, typer.Option(help="Reading of L_HPC: path, concat or none.")] = "path",
    alpha: Annotated[float, typer.Option(help="Weight of L_HPC in L_HSC.")] = 2.0,
    weak: Annotated[
        bool, typer.Option("--weak", help="Labels are coarser than the image (paraformer, paraformer-light): PLAT.")
    ] = False,
    rule: Annotated[str, typer.Option(help="Decoding: sigmoid (as printed) or log_softmax.")] = "sigmoid",
) -> None:
    """Train a hierarchical model on rasters and labels."""
    from . import workflow
    from .models import check_series
    from .recipes import of_paper
    from .train import Interrupted, check_run
    from .tree import RULES, ClassTree

    choose("--head", head, ("flat", "bhccm"))
    choose("--consistency", consistency, ("path", "concat", "none"))
    choose("--rule", rule, RULES)
    check_run(out, resume)
    check_series(network, bool(series))
    profile = profiles.check(profile or profiles.current())
    recipe = of_paper(network) if profile == "paper" else None
    recipe = recipe or workflow.DEFAULT_RECIPE.scaled(profile)
    changes = {"steps": steps, "batch_size": batch_size, "patch": patch, "lr": learning_rate}
    changes |= {"precision": precision, "balance": balance}
    changes = {name: value for name, value in changes.items() if value is not None}
    if "steps" in changes:
        changes["warmup_steps"] = min(recipe.warmup_steps, steps // 10)
    recipe = recipe.replace(**changes)
    prepared = workflow.prepare(
        images,
        labels,
        ClassTree.load(tree),
        recipe,
        seed=seed,
        bands=[int(band) if band.isdigit() else band for band in bands] if bands else None,
        label_crs=label_crs,
        validation=validation,
        test=test,
        block=block,
        only_present=only_present,
        series=series or (),
    )
    for line in prepared.describe():
        console.print(line)
    console.print(
        f"model   {network}, {head}; {recipe.steps} steps of {recipe.batch_size}, profile {profile}, seed {seed}"
    )
    try:
        model, config, result = workflow.train(
            prepared,
            network,
            out,
            recipe,
            head=head,
            fusion=fusion,
            residual=residual,
            alpha=alpha,
            consistency=None if consistency == "none" else consistency,
            rule=rule,
            weak=weak,
            weights=weights,
            options={name: value for name, value in {"width": width, "depth": depth}.items() if value != 1},
            seed=seed,
            device=device,
            resume=resume,
            profile=profile,
        )
    except Interrupted as stopped:
        print(f"hierlab: {stopped}", file=sys.stderr)
        raise typer.Exit(130) from stopped
    conclude(prepared, model, config, result, out, device)
    console.print(f"Next: hierlab map {out} SCENE.tif MAP.tif{' --series SERIES.tif' if series else ''}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of `hierlab train`.")],
    images: Images,
    labels: Labels,
    series: Series = None,
    part: Annotated[
        str | None,
        typer.Option(help="train, validation, test or all (default: the held-out blocks, or all)."),
    ] = None,
    label_crs: LabelCrs = None,
    device: Device = "auto",
) -> None:
    """Score a trained model: a table a level, and the measures that know the tree."""
    from . import workflow
    from .metrics import per_class, table
    from .tree import ClassTree

    if part is not None:
        choose("--part", part, ("train", "validation", "test", "all"))
    model, config, data, what = workflow.held_out(
        run, images, labels, part=part, label_crs=label_crs, series=series or ()
    )
    tree = ClassTree.from_dict(config["tree"])
    console.print(f"{int(data.counts.sum()):,} labelled pixels: {what}")
    metrics = workflow.run_evaluation(model, config, data, device=device, progress=True)
    print_table(table(metrics, tree), f"{run}: {what}")
    print_tree_measures(metrics)
    print_table(per_class(metrics, tree), "Classes")
    name = f"evaluation-{data.part if what.startswith('the') else 'all'}-{images[0].stem}"
    workflow.write_json(run / f"{name}.json", {"data": what, "images": list(map(str, images)), "metrics": metrics})
    picture = workflow.map_picture(model, config, data, run / f"{name}.png")
    console.print(f"Written: {run / name}.json, {picture}")


@app.command("map")
def map_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `hierlab train`.")],
    paths: Annotated[list[Path], typer.Argument(metavar="SCENE... OUT", help="The scene's file(s), then the map.")],
    series: Series = None,
    window: Annotated[
        int | None, typer.Option(help="Side of the windows that the network sees (default: as in evaluation).")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Pixels by which windows overlap (default: an eighth).")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.")] = 4,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="32-true, or bf16-mixed: faster where the chip has bfloat16.")
    ] = "32-true",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing map.")] = False,
) -> None:
    """Map a scene: one Cloud-Optimised GeoTIFF, a band a level, always consistent with the tree."""
    from . import workflow
    from .checkpoints import load, pick_device
    from .mapping import map_scene
    from .tree import ClassTree

    if len(paths) < 2:
        raise typer.BadParameter("Give the scene's file(s) and, last, the map to write.", param_hint="SCENE... OUT")
    *images, out = paths
    model, config = load(run)
    tree = ClassTree.from_dict(config["tree"])
    scene, note = workflow.open_for(config, images)
    (beneath,) = workflow.series_for(config, [scene], series or ())
    lines = scene.describe() + ([f"note    {note}"] if note else [])
    for line in lines + (beneath.describe() if beneath is not None else []):
        console.print(line)
    result = map_scene(
        model,
        tree,
        scene,
        out,
        bands=config["bands"],
        window=window or workflow.window_of(config),
        overlap=overlap,
        batch_size=batch_size,
        rule=config["rule"],
        device=pick_device(device),
        precision=precision,
        overwrite=overwrite,
        progress=True,
        series=beneath,
    )
    rows = [
        (level["level"], entry["name"], f"{entry['share']:.1%}", f"{entry['hectares']:,.0f}")
        for level in result["levels"]
        for entry in sorted(level["classes"], key=lambda entry: -entry["pixels"])
        if entry["pixels"]
    ]
    print_rows(("level", "class", "share", "ha"), rows, str(out))
    console.print(
        f"{result['mpx_per_s']:.2f} Mpx/s, {result['windows']} windows ({result['skipped']} without data skipped), "
        f"peak memory {result['peak_rss_mb']:.0f} MB"
    )
    console.print(f"Written: {out}, {workflow.map_preview(scene, out, out.with_name(f'{out.stem}-preview.png'))}")


@app.command("list")
def list_command(
    what: Annotated[str | None, typer.Argument(help=f"{', '.join(KINDS)}; without it, what can be listed.")] = None,
) -> None:
    """List what there is, a line each."""
    if what is None:
        print_rows(("hierlab list …", ""), list(KINDS.items()), "What can be listed")
        return
    choose("WHAT", what, tuple(KINDS))
    if what == "networks":
        from .models import NETWORKS
        from .networks import DECODERS

        print_rows(("network", ""), list(NETWORKS.items()), "Networks")
        console.print(f"Any timm encoder goes with any decoder: <encoder>-<{'|'.join(DECODERS)}>")
    elif what == "trees":
        from .tree import ClassTree, shipped

        trees = [ClassTree.load(name) for name in shipped()]
        print_rows(("tree", "classes", ""), [(t.name, "/".join(map(str, t.sizes)), t.title) for t in trees], "Trees")
    elif what == "mappings":
        from .crosswalk import Crosswalk, shipped

        found = [Crosswalk.load(name) for name in shipped()]
        rows = [(c.name, c.title, f"{c.source.name} -> {c.target.name}") for c in found]
        print_rows(("mapping", "", "source -> target"), rows, "Mappings")
    elif what == "datasets":
        from .twin import PRESETS

        rows = [
            (name, preset.title, preset.sensor or preset.series, preset.tree, _options(preset.values))
            for name, preset in PRESETS.items()
        ]
        print_rows(("data set", "", "sensor", "tree", "options"), rows, "Data sets of the built-in twin")
        console.print("As files: hierlab twin export <data set> DIR")
    else:
        _experiments_cli.list_experiments()


@app.command()
def describe(
    network: Annotated[str, typer.Argument(help="A network's name, e.g. resnet18-unet.")],
    bands: Annotated[int, typer.Option(help="Input bands.")] = 4,
    classes: Annotated[int, typer.Option(help="Classes.")] = 18,
    size: Annotated[int, typer.Option(help="Side of the input in pixels.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters, multiply-accumulates, and the shape of every stage."""
    from .models import describe as count

    result = count(network, bands, classes, size)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    rows = [(s["name"], "×".join(map(str, s["shape"])), f"1/{s['stride']}") for s in result["stages"]]
    print_rows(("stage", "channels×height×width", "scale"), rows, network)
    console.print(f"{result['params'] / 1e6:.2f} M parameters, {result['gmac']:.2f} GMAC for {bands}×{size}×{size}")


@bench.command("map")
def bench_map(
    out: Annotated[Path, typer.Option(help="Folder for the CSV.")] = Path("bench"),
    network: Annotated[str, typer.Option(help="Network to time.")] = "resnet18-unet",
) -> None:
    """Mapping beside the bare forward passes over the same windows, and peak memory by scene size."""
    from .bench import map_bench

    map_bench(network=network, out=out)


@bench.command("twin")
def bench_twin(
    out: Annotated[Path, typer.Option(help="Folder for the CSV.")] = Path("bench"),
    sensor: Annotated[list[str] | None, typer.Option(help="Sensors to measure; all by default.")] = None,
    workers: Annotated[int, typer.Option(help="Measure so many processes side by side, too.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Where these make the images: cuda; by default where all the rest is done.")
    ] = None,
) -> None:
    """The twin's sensors: megapixels a second and core, in a large scene and in scattered chips, and peak memory.

    With --workers, also how many times faster than one core several processes are, and with --device a GPU beside
    them.
    """
    from .bench_twin import twin_bench

    sensors = {"sensors": tuple(sensor)} if sensor else {}
    twin_bench(out, **sensors, device=device, workers=workers)


@bench.command("models")
def bench_models(
    models: Annotated[list[str] | None, typer.Option(help="Published models to measure; all by default.")] = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the CSV; its rows of other measurements stay.")] = Path("bench"),
    batch: Annotated[int, typer.Option(help="Images a pass.")] = 1,
    precision: Annotated[str, typer.Option(help="32-true, or bf16-mixed.")] = "32-true",
) -> None:
    """Time and peak memory of inference and of a training step: published models at published size, flat and BHCCM."""
    from .bench_models import models_bench

    try:
        models_bench(out, models=models, device=device, batch=batch, precision=precision)
    except KeyboardInterrupt as stopped:
        print(f"hierlab: interrupted; the models measured before are in {out}.", file=sys.stderr)
        raise typer.Exit(130) from stopped


def _options(values: dict[str, tuple]) -> str:
    return "; ".join(f"{option}: {', '.join(map(str, choices))}" for option, choices in values.items())
