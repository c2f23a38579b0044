"""From a trained hierarchical run to one on another class tree: what ``hierlab transfer`` does, for notebooks too."""

from collections.abc import Sequence
from pathlib import Path

from . import profiles, workflow
from ._training import seed_everything
from .checkpoints import Normalized, load, make_config, read_config
from .crosswalk import Crosswalk
from .recipes import TRANSLU, Recipe
from .train import check_run, fit
from .tree import ClassTree

DEFAULT_RECIPE = workflow.DEFAULT_RECIPE.replace(layer_decay=TRANSLU.layer_decay)
"""What ``hierlab transfer`` starts from: the short training of ``hierlab train``, with the layer decay of TransLU."""


def recipe_for(profile: str) -> Recipe:
    """The recipe of a profile: :data:`DEFAULT_RECIPE` cut to its means; for ``paper`` the paper's, TRANSLU."""
    return TRANSLU if profile == "paper" else DEFAULT_RECIPE.scaled(profile)


def prepare(
    run: str | Path,
    images: Sequence[str | Path],
    labels: Sequence[str | Path],
    mapping: str | Path | Crosswalk,
    recipe: Recipe,
    *,
    tree: ClassTree | None = None,
    **options,
) -> tuple[workflow.Prepared, Crosswalk]:
    """Read the mapping against the run's tree, and the files as :func:`hierlab.workflow.prepare` does.

    ``tree`` is the target, by default the one that the mapping names. Images need the bands that the run was trained
    on, by name or else in number; its normalisation is used, for branch 2 knows no other. ``options`` go to
    :func:`hierlab.workflow.prepare`. Raises ValueError or OSError before any long work.
    """
    config = _source_config(run)
    source = ClassTree.from_dict(config["tree"])
    if isinstance(mapping, Crosswalk):
        crosswalk = Crosswalk.from_dict(mapping.to_dict(), source, tree or mapping.target, where=mapping.name)
    else:
        crosswalk = Crosswalk.load(mapping, source, tree)
    bands = workflow.matching_bands(config, workflow.open_scenes(images)[0])
    return workflow.prepare(images, labels, crosswalk.target, recipe, bands=bands, **options), crosswalk


def describe(run: str | Path, prepared: workflow.Prepared, crosswalk: Crosswalk) -> list[str]:
    """What will be transferred, as lines for people: the source run, the mapping, and what does not fit well."""
    config = _source_config(run)
    new = [name for name in crosswalk.target.classes[-1] if name not in crosswalk.source.classes[-1]]
    lines = [
        f"source  {run}: {config['network']} on {crosswalk.source.title}",
        f"target  {crosswalk.target.title}, by the mapping {crosswalk.name}; leaves that the source lacks: "
        f"{', '.join(new) or 'none'}",
    ]
    seen, trained = prepared.scenes[0].scene.gsd, config.get("gsd")
    if trained and not 0.8 < seen / trained < 1.25:
        lines.append(f"note    the source was trained at {trained:g} m a pixel, these images have {seen:g} m")
    return lines


def transfer(
    run: str | Path,
    prepared: workflow.Prepared,
    crosswalk: Crosswalk,
    out: str | Path,
    recipe: Recipe,
    *,
    cdks: bool = True,
    cdsa: bool = True,
    merge: str = "outputs",
    others: str = "keep",
    start: str = "source",
    fusion: str = "both",
    residual: bool = False,
    units: dict | None = None,
    alpha: float = 1.0,
    consistency: str | None = "path",
    labels_first: bool = False,
    everywhere: bool = False,
    rule: str = "sigmoid",
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    profile: str | None = None,
    progress: bool = True,
) -> tuple[Normalized, dict, dict]:
    """Train a :class:`hierlab.translu.TransLU` that carries the model of ``run`` over to another tree, into ``out``.

    Args:
        run: the folder of a run with the head ``bhccm``: branch 2, and where branch 1 starts.
        prepared, crosswalk: of :func:`prepare`.
        cdks, cdsa, merge, others, fusion, residual, units: see :class:`hierlab.translu.TransLU`.
        start: the weights that branch 1 starts from: ``"source"``, ``"imagenet"``, a file, or ``"random"``.
        alpha, consistency, labels_first, everywhere: see :class:`hierlab.translu.TransLULoss`.
        rule and the rest: as for :func:`hierlab.workflow.train`.

    Returns the model, its config (``model.json``) and what :func:`hierlab.train.fit` returns. ``out`` holds both
    branches, and needs ``run`` no more.
    """
    from . import networks
    from .translu import TransLU, TransLULoss

    check_run(out, resume)
    recipe = recipe.replace(patch=prepared.patch)
    _source_config(run)
    source, described = load(run)
    tree = crosswalk.target
    seed_everything(seed)
    flat = None
    if start != "source":
        weights = None if start == "random" else start
        options = described.get("network_options", {})
        flat = networks.build(described["network"], described["bands"], tree.num_leaves, weights, **options)
    settings = {"cdks": cdks, "cdsa": cdsa, "merge": merge, "others": others, "fusion": fusion, "residual": residual}
    settings |= units or {}
    teaching = {"labels_first": labels_first, "everywhere": everywhere}
    model = Normalized(TransLU(source.network, crosswalk, start=flat, **settings), **described["normalisation"])
    config = make_config(
        described["network"],
        tree,
        **described["normalisation"],
        band_names=described["band_names"],
        head="translu",
        options=described.get("network_options"),
        patch=prepared.patch,
        gsd=prepared.scenes[0].gsd,
        head_options={
            "source_tree": described["tree"],
            "source_head": described.get("head_options", {}),
            "crosswalk": crosswalk.to_dict(),
            **settings,
        },
        transfer={"run": Path(run).name, "start": start},
        loss={"alpha": alpha, "consistency": consistency, **teaching},
        rule=rule,
        profile=profile or profiles.current(),
        data=workflow.data_config(prepared),
    )
    result = fit(
        model,
        TransLULoss(tree, alpha, consistency, **teaching),
        prepared.train,
        prepared.validation,
        tree,
        recipe,
        out,
        seed=seed,
        device=device,
        resume=resume,
        config=config,
        progress=progress,
        rule=rule,
    )
    return model, config, result


def _source_config(run: str | Path) -> dict:
    config = read_config(run)
    if config["head"] != "bhccm":
        raise ValueError(
            f"{run} was trained with the head '{config['head']}'; TransLU carries over a hierarchical model. Train "
            "one with --head bhccm."
        )
    if "series_band_names" in config:
        raise ValueError(f"{run} was trained with a time series; TransLU carries over models of images alone.")
    return config
