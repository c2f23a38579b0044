"""The experiments of HieraRS, as data: the rows of each table, what differs between them, the claims of the text."""

from .define import Claim, Experiment, Row, Setting

TABLE_07 = Experiment(
    key="hierars/table-07",
    title="HieraRS, Table VII: ablation of BHCCM and L_HSC",
    published="hierars-table-07",
    dataset="mm5b-gaofen2",
    network="convnext_base-upernet",
    rows=(
        Row("baseline", "flat, L_CE", head="flat", fusion="none", consistency=None),
        Row("none", "BHCCM without fusion, L_HCE", fusion="none", consistency=None),
        Row("coarse-to-fine", "BHCCM coarse to fine, L_HCE", fusion="coarse_to_fine", consistency=None),
        Row("fine-to-coarse", "BHCCM fine to coarse, L_HCE", fusion="fine_to_coarse", consistency=None),
        Row("both", "BHCCM both ways, L_HCE", consistency=None),
        Row("both-hsc", "BHCCM both ways, L_HSC", consistency="path"),
    ),
    claims=(
        Claim("Without fusion, levels side by side cost accuracy", better="baseline", worse="none"),
        Claim("Fusion both ways beats coarse to fine alone", better="both", worse="coarse-to-fine"),
        Claim("Fusion both ways beats fine to coarse alone", better="both", worse="fine-to-coarse"),
        Claim("L_HSC beats L_HCE", better="both-hsc", worse="both"),
        Claim("BHCCM with L_HSC beats the flat model", better="both-hsc", worse="baseline"),
    ),
    settings={
        "smoke": Setting(width=0.0625, depth=0.1, steps=2, batch=2, seeds=1),
        "laptop": Setting(width=0.125, depth=0.34, steps=400, batch=8, seeds=3),
        "gpu": Setting(width=1.0, depth=1.0, steps=8000, batch=16, seeds=3),
        "paper": Setting(width=1.0, depth=1.0, steps=80_000, batch=8, seeds=3),
    },
)

EXPERIMENTS = {experiment.key: experiment for experiment in (TABLE_07,)}
