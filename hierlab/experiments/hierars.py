"""The experiments of HieraRS, as data: the rows of each table, what differs between them, the claims of the text."""

from dataclasses import dataclass

from .define import Claim, Experiment, Measure, Row, Setting


@dataclass(frozen=True)
class HeadRow(Row):
    """A network with one head: ``head`` flat or bhccm, BHCCM's ``fusion`` and ``residual``, the loss, the decoding.

    ``consistency`` is the reading of L_HPC in L_HSC (None: L_HCE alone) and ``alpha`` its weight; ``rule`` is how
    levels are decoded (:func:`hierlab.evaluation.predict`).
    """

    head: str = "bhccm"
    fusion: str = "both"
    residual: bool = False
    consistency: str | None = "path"
    alpha: float = 2.0
    rule: str = "sigmoid"


ABLATION = {
    "smoke": Setting(width=0.0625, depth=0.1, steps=2, batch=2, seeds=1),
    "laptop": Setting(width=0.125, depth=0.34, steps=400, batch=8, seeds=5),
    "gpu": Setting(width=1.0, depth=1.0, steps=8000, batch=16, seeds=3),
    "paper": Setting(width=1.0, depth=1.0, steps=80_000, batch=8, seeds=3),
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

EXPERIMENTS = {experiment.key: experiment for experiment in (TABLE_07, TABLE_10)}
