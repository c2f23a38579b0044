"""The experiments of HieraRS, as data: the rows of each table, what differs between them, the claims of the text."""

from collections.abc import Iterable
from dataclasses import dataclass

from .define import Claim, Experiment, Measure, Row, Setting


@dataclass(frozen=True)
class HeadRow(Row):
    """A network with one head: ``head`` flat or bhccm, BHCCM's ``fusion`` and ``residual``, the loss, the decoding.

    ``consistency`` is the reading of L_HPC in L_HSC (None: L_HCE alone) and ``alpha`` its weight; ``rule`` is how
    levels are decoded (:func:`hierlab.evaluation.predict`). ``network`` is the row's own, None for the experiment's.
    """

    head: str = "bhccm"
    fusion: str = "both"
    residual: bool = False
    consistency: str | None = "path"
    alpha: float = 2.0
    rule: str = "sigmoid"
    network: str | None = None


ABLATION = {
    "smoke": Setting(width=0.0625, depth=0.1, steps=2, batch=2, seeds=1),
    "laptop": Setting(width=0.125, depth=0.34, steps=400, batch=8, seeds=5),
    "gpu": Setting(width=1.0, depth=1.0, steps=8000, batch=16, seeds=3, weights="imagenet"),
    "paper": Setting(width=1.0, depth=1.0, steps=80_000, batch=8, seeds=3, weights="imagenet"),
}
COMMON = {"dataset": "mm5b-gaofen2", "network": "convnext_base-upernet", "settings": ABLATION}  # of both tables

TABLE_07 = Experiment(
    key="hierars/table-07",
    title="HieraRS, Table VII: ablation of BHCCM and L_HSC",
    published="hierars-table-07",
    rows=(
        HeadRow("baseline", "flat, L_CE", head="flat", fusion="none", consistency=None),
        HeadRow("none", "BHCCM without fusion, L_HCE", fusion="none", consistency=None),
        HeadRow("coarse-to-fine", "BHCCM coarse to fine, L_HCE", fusion="coarse_to_fine", consistency=None),
        HeadRow("fine-to-coarse", "BHCCM fine to coarse, L_HCE", fusion="fine_to_coarse", consistency=None),
        HeadRow("both", "BHCCM both ways, L_HCE", consistency=None),
        HeadRow("both-hsc", "BHCCM both ways, L_HSC", consistency="path"),
    ),
    claims=(
        Claim("Without fusion, levels side by side cost accuracy", better="baseline", worse="none"),
        Claim("Fusion both ways beats coarse to fine alone", better="both", worse="coarse-to-fine"),
        Claim("Fusion both ways beats fine to coarse alone", better="both", worse="fine-to-coarse"),
        Claim("L_HSC beats L_HCE", better="both-hsc", worse="both"),
        Claim("BHCCM with L_HSC beats the flat model", better="both-hsc", worse="baseline"),
    ),
    **COMMON,
)

TABLE_10 = Experiment(
    key="hierars/table-10",
    title="HieraRS, Table X: path selection (JSPS) after the network",
    published="hierars-table-10",
    rows=(
        HeadRow("without", "the best class of every level on its own", rule="independent"),
        HeadRow("jsps", "the path with the highest joint score (JSPS)"),
    ),
    claims=(
        Claim("Path selection raises the L3 mIoU", better="jsps", worse="without", measure="L3"),
        Claim("Path selection raises the L2 mIoU", better="jsps", worse="without", measure="L2"),
        Claim("Path selection raises the L1 mIoU", better="jsps", worse="without", measure="L1"),
    ),
    **COMMON,
    measures=tuple(Measure(f"L{level + 1}", ("metrics", "levels", level, "mIoU")) for level in (2, 1, 0)),
)

# ---------------------------------------------------------------- Tables II to IV

METHODS = {  # the key in the published rows: name, network
    "deeplabv3plus": ("DeepLabv3+", "resnet101c-deeplabv3plus"),
    "segnext-s": ("SegNeXt-S", "segnext-s"),
    "segnext-b": ("SegNeXt-B", "segnext-b"),
    "segnext-l": ("SegNeXt-L", "segnext-l"),
    "convnext-b": ("ConvNeXt-B", "convnext_base-upernet"),
    "convnext-l": ("ConvNeXt-L", "convnext_large-upernet"),
    "swin-b": ("Swin-B", "swin_base-upernet"),
    "swin-l": ("Swin-L", "swin_large-upernet"),
    "deit3-s": ("DeiT III-S", "deit3_small-upernet"),
    "deit3-b": ("DeiT III-B", "deit3_base-upernet"),
    "deit3-l": ("DeiT III-L", "deit3_large-upernet"),
}
LEVELS = tuple(
    Measure(f"L{level + 1} {name}", ("metrics", "levels", level, name))
    for level in (2, 1, 0)
    for name in ("mIoU", "mAcc")
)
COMPARISON = {
    "smoke": ABLATION["smoke"],
    # A quarter of the width, because at an eighth Swin-B and Swin-L, DeiT III-B and -L come out equally wide.
    "laptop": Setting(width=0.25, depth=0.34, steps=150, batch=8, seeds=1),
    "gpu": ABLATION["gpu"],
    "paper": ABLATION["paper"],
}


def _pair(method: str) -> tuple[HeadRow, HeadRow]:
    """A method's two rows: flat, and with BHCCM in the residual form, which the best published runs have."""
    name, network = METHODS[method]
    flat = HeadRow(method, name, head="flat", fusion="none", consistency=None, network=network)
    return flat, HeadRow(f"{method}-hiera", f"{name} + BHCCM", residual=True, network=network)


def _gains(methods: Iterable[str]) -> tuple[Claim, ...]:
    """BHCCM's gain in mIoU for each method and level."""
    return tuple(
        Claim(f"BHCCM raises {METHODS[method][0]}'s {level} mIoU", f"{method}-hiera", method, f"{level} mIoU")
        for method in methods
        for level in ("L3", "L2", "L1")
    )


def _comparison(
    number: str, roman: str, source: str, dataset: str, families: tuple[tuple[str, ...], ...], *more: Claim
) -> Experiment:
    """Tables II to IV: networks flat and with BHCCM on one source of MM-5B; of a family first all flat ones."""
    pairs = [[_pair(method) for method in family] for family in families]
    return Experiment(
        key=f"hierars/table-{number}",
        title=f"HieraRS, Table {roman}: networks with and without BHCCM, {source}",
        published=f"hierars-table-{number}",
        dataset=dataset,
        network=METHODS["convnext-b"][1],
        rows=tuple(pair[place] for family in pairs for place in (0, 1) for pair in family),
        claims=(*_gains(method for family in families for method in family), *more),
        settings=COMPARISON,
        measures=LEVELS,
    )


TABLE_02 = _comparison(
    "02",
    "II",
    "GaoFen-2",
    "mm5b-gaofen2",
    (
        ("deeplabv3plus",),
        ("segnext-s", "segnext-b", "segnext-l"),
        ("convnext-b", "convnext-l"),
        ("swin-b", "swin-l"),
        ("deit3-s", "deit3-b", "deit3-l"),
    ),
    Claim("BHCCM raises DeepLabv3+'s L3 mAcc", "deeplabv3plus-hiera", "deeplabv3plus", "L3 mAcc"),
    Claim("BHCCM raises ConvNeXt-B's L3 mAcc", "convnext-b-hiera", "convnext-b", "L3 mAcc"),
    Claim("SegNeXt-S with BHCCM beats SegNeXt-B flat", "segnext-s-hiera", "segnext-b"),
    Claim("Swin-B with BHCCM beats Swin-L flat", "swin-b-hiera", "swin-l"),
    Claim("Swin-L with BHCCM beats the next best, SegNeXt-L with BHCCM", "swin-l-hiera", "segnext-l-hiera"),
)
TABLE_03 = _comparison(
    "03", "III", "Sentinel-2", "mm5b-sentinel2", (("convnext-b", "convnext-l"), ("deit3-b", "deit3-l"))
)
TABLE_04 = _comparison("04", "IV", "Google Earth", "mm5b-google", (("convnext-b",), ("deit3-b",)))

EXPERIMENTS = {experiment.key: experiment for experiment in (TABLE_02, TABLE_03, TABLE_04, TABLE_07, TABLE_10)}
