"""``hierlab transfer``: a trained hierarchical model, carried over to another class tree."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import profiles
from ._show import choose, conclude, console


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("transfer")(transfer_command)


def transfer_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `hierlab train`, with the head bhccm.")],
    images: Annotated[list[Path], typer.Option(help="One or more GeoTIFFs with the bands of the run.")],
    labels: Annotated[list[Path], typer.Option(help="Label rasters of the new tree: one an image, or one for all.")],
    mapping: Annotated[
        str,
        typer.Option(help="Which new classes are which old ones: a name (`hierlab list mappings`) or a YAML file."),
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    tree: Annotated[
        str | None, typer.Option(help="The new class tree: a shipped name or a YAML file (default: the mapping's).")
    ] = None,
    cdks: Annotated[bool, typer.Option("--cdks/--no-cdks", help="Share branch 2's features with branch 1.")] = True,
    cdsa: Annotated[bool, typer.Option("--cdsa/--no-cdsa", help="Align upper levels with branch 2.")] = True,
    merge: Annotated[
        str, typer.Option(help="CDKS: outputs (as published), steps (as in the text) or none.")
    ] = "outputs",
    others: Annotated[
        str, typer.Option(help="CDSA: channels of unmapped classes: keep (as in the text) or complement.")
    ] = "keep",
    start: Annotated[
        str, typer.Option(help="Where branch 1 starts: source, imagenet, random or a file of weights.")
    ] = "source",
    profile: Annotated[
        str | None, typer.Option(help=f"How long to train: {', '.join(profiles.PROFILES)} (default: laptop).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, the new weights and the patches.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Training steps, instead of the profile's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches a step, instead of the profile's.")] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a training patch in pixels.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true or bf16-mixed.")] = None,
    balance: Annotated[float | None, typer.Option(help="Share of the patches drawn for a class.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the labelled pixels held out as blocks.")] = 0.2,
    test: Annotated[float, typer.Option(help="A second held-out share, for `hierlab evaluate`.")] = 0.0,
    block: Annotated[int | None, typer.Option(help="Side of a block in pixels (default: two patches).")] = None,
    label_crs: Annotated[str | None, typer.Option(help="CRS of the labels, when their file says a wrong one.")] = None,
    labels_first: Annotated[
        bool, typer.Option("--labels-first", help="CDSA teaches only what the labels leave open.")
    ] = False,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="CDSA teaches the upper levels where no label is, too.")
    ] = False,
    consistency: Annotated[str, typer.Option(help="Reading of L_HPC: path, concat or none.")] = "path",
    alpha: Annotated[float, typer.Option(help="Weight of L_HPC in L_HSC.")] = 1.0,
    rule: Annotated[str, typer.Option(help="Decoding: sigmoid (as printed) or log_softmax.")] = "sigmoid",
) -> None:
    """Carry a trained model over to another class tree (TransLU), with few labels of the new one.

    hierlab transfer run/ --images s2.tif --labels crops.tif --tree crops --mapping landuse-to-crops --out run2/
    """
    from . import transfer as stage2
    from .train import Interrupted, check_run
    from .translu import MERGES, OTHERS
    from .tree import RULES, ClassTree

    choices = {"--merge": (merge, MERGES), "--others": (others, OTHERS), "--rule": (rule, RULES)}
    choices["--consistency"] = (consistency, ("path", "concat", "none"))
    for name, (value, known) in choices.items():
        choose(name, value, known)
    check_run(out, resume)
    profile = profiles.check(profile or profiles.current())
    recipe = stage2.recipe_for(profile)
    given = {"steps": steps, "batch_size": batch_size, "patch": patch, "lr": learning_rate}
    given |= {"precision": precision, "balance": balance}
    changes = {name: value for name, value in given.items() if value is not None}
    if steps is not None:
        changes["warmup_steps"] = min(recipe.warmup_steps, steps // 10)
    recipe = recipe.replace(**changes)
    prepared, crosswalk = stage2.prepare(
        run,
        images,
        labels,
        mapping,
        recipe,
        tree=ClassTree.load(tree) if tree else None,
        seed=seed,
        label_crs=label_crs,
        validation=validation,
        test=test,
        block=block,
    )
    for line in [*stage2.describe(run, prepared, crosswalk), *prepared.describe()]:
        console.print(line)
    parts = " and ".join(name for name, on in (("CDKS", cdks), ("CDSA", cdsa)) if on) or "neither CDKS nor CDSA"
    console.print(f"model   TransLU with {parts}; {recipe.steps} steps of {recipe.batch_size}, profile {profile}")
    try:
        model, config, result = stage2.transfer(
            run,
            prepared,
            crosswalk,
            out,
            recipe,
            cdks=cdks,
            cdsa=cdsa,
            merge=merge,
            others=others,
            start=start,
            alpha=alpha,
            consistency=None if consistency == "none" else consistency,
            labels_first=labels_first,
            everywhere=everywhere,
            rule=rule,
            seed=seed,
            device=device,
            resume=resume,
            profile=profile,
        )
    except Interrupted as stopped:
        print(f"hierlab: {stopped}", file=sys.stderr)
        raise typer.Exit(130) from stopped
    conclude(prepared, model, config, result, out, device)
    console.print(f"Next: hierlab map {out} SCENE.tif MAP.tif")
