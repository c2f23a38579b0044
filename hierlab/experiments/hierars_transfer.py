"""The experiments of HieraRS on transfer (TransLU), as data: Tables V, VI, VIII and IX, with the claims of the text."""

from dataclasses import dataclass

from .define import Claim, Experiment, Measure, Row, Setting

ENCODERS = {"convnext": ("ConvNeXt-B", "convnext_base-upernet"), "deit3": ("DeiT III-B", "deit3_base-upernet")}
STARTS, HEADS = ("imagenet", "source"), ("flat", "translu")


@dataclass(frozen=True)
class TransferRow(Row):
    """A network on the target data: where it starts, and what of TransLU it has.

    ``start`` is ``"source"``, the weights of stage I, or ``"imagenet"``: those of the setting's ``weights``, without
    which random ones stand in for ImageNet's, for no hub has weights for narrow networks. ``head`` is ``"flat"``, one
    network with one classifier of the target's leaves and L_CE, or ``"translu"``, two branches with BHCCM and L_HSC, of
    which ``cdks`` and ``cdsa`` are the components (``merge`` and ``others`` their variants, see
    :class:`hierlab.translu.TransLU`) and ``alpha`` weighs L_HPC. ``network`` None is the experiment's. ValueError for
    an unknown start or head, and for a flat network with a component.
    """

    network: str | None = None
    start: str = "source"
    head: str = "translu"
    cdks: bool = False
    cdsa: bool = False
    merge: str = "outputs"
    others: str = "keep"
    alpha: float = 1.0

    def __post_init__(self):
        for name, known in (("start", STARTS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} of {self.name} is '{getattr(self, name)}'; it is one of {', '.join(known)}.")
        if self.head == "flat" and (self.cdks or self.cdsa):
            raise ValueError(f"{self.name} is flat, so it has no second branch: CDKS and CDSA need head='translu'.")


@dataclass(frozen=True)
class TransferSetting(Setting):
    """The size of both stages: ``source_steps`` updates of ``batch`` patches for stage I, ``steps`` for stage II.

    Width, depth, ``lr`` and ``precision`` are those of both. ``data_root`` holds a folder of prepared real data for
    either set, called by the sets' names.
    """

    source_steps: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.source_steps < 1:
            raise ValueError(f"source_steps is {self.source_steps}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class TransferExperiment(Experiment):
    """A table about a transfer: ``source`` is the data set of stage I, ``mapping`` the crosswalk to the target tree."""

    source: str
    mapping: str


SIZES = {
    "smoke": TransferSetting(width=0.0625, depth=0.1, source_steps=2, steps=2, batch=2, seeds=1),
    "laptop": TransferSetting(width=0.125, depth=0.34, source_steps=600, steps=150, batch=8, seeds=3),
    "gpu": TransferSetting(width=1.0, depth=1.0, source_steps=8000, steps=2000, batch=16, seeds=3, weights="imagenet"),
    "paper": TransferSetting(
        width=1.0, depth=1.0, source_steps=80_000, steps=20_000, batch=16, seeds=3, weights="imagenet"
    ),
}
COMMON = {
    "network": ENCODERS["convnext"][1],
    "settings": SIZES,
    "runner": "hierlab.experiments.transferring",
}
CROPS = COMMON | {"dataset": "crop10m", "source": "mm5b-sentinel2", "mapping": "landuse-to-crops"}
COVER = COMMON | {"dataset": "whdld", "source": "mm5b-google", "mapping": "landuse-to-whdld"}

MIOU, MACC = Measure("mIoU"), Measure("mAcc", ("metrics", "levels", -1, "mAcc"))
CLASSES = {"Rice": "rice", "Corn": "corn", "Soybean": "soybean", "Others": "other"}
IMAGENET = "ImageNet (smoke, laptop: random)"


def _flat(name: str, encoder: str, start: str) -> TransferRow:
    """A flat row: ``encoder`` is a key of :data:`ENCODERS`."""
    title, network = ENCODERS[encoder]
    weights = IMAGENET if start == "imagenet" else "weights of stage I"
    return TransferRow(name, f"{title}, flat, {weights}", network=network, start=start, head="flat")


def _translu(name: str, encoder: str, cdks: bool = True, cdsa: bool = True) -> TransferRow:
    """A row with TransLU."""
    title, network = ENCODERS[encoder]
    parts = " and ".join(part for part, on in (("CDKS", cdks), ("CDSA", cdsa)) if on)
    return TransferRow(name, f"{title}, TransLU with {parts}", network=network, cdks=cdks, cdsa=cdsa)


def _baseline_and_translu(names: dict[str, str]) -> tuple[TransferRow, ...]:
    """The rows of Tables V and VI: for every encoder the baseline and TransLU; ``names`` as for :func:`_claims`."""
    return tuple(
        row
        for encoder, name in names.items()
        for row in (_flat(f"{name}-baseline", encoder, "imagenet"), _translu(f"{name}-translu", encoder))
    )


def _claims(text: str, better: str, worse: str, measures: tuple[str, ...], names: dict[str, str]) -> tuple[Claim, ...]:
    """The same claim for every encoder and measure; ``names`` are the encoders as the table's rows call them.

    ``text`` has places for ``{encoder}`` and ``{measure}``, ``better`` and ``worse`` one for ``{}``, the name.
    """
    return tuple(
        Claim(
            text.format(encoder=ENCODERS[encoder][0], measure=measure),
            better=better.format(name),
            worse=worse.format(name),
            measure=measure,
        )
        for encoder, name in names.items()
        for measure in measures
    )


SHORT = {"convnext": "convnext", "deit3": "deit3"}
LONG = {"convnext": "convnext-b", "deit3": "deit3-b"}

TABLE_05 = TransferExperiment(
    key="hierars/table-05",
    title="HieraRS, Table V: crops with and without TransLU",
    published="hierars-table-05",
    rows=_baseline_and_translu(SHORT),
    claims=_claims(
        "TransLU over the baseline, {encoder}: {measure}",
        "{}-translu",
        "{}-baseline",
        ("mIoU", *CLASSES),
        SHORT,
    ),
    measures=(MIOU, *(Measure(head, ("metrics", "levels", -1, "IoU", name)) for head, name in CLASSES.items())),
    **CROPS,
)

TABLE_06 = TransferExperiment(
    key="hierars/table-06",
    title="HieraRS, Table VI: six land covers with and without TransLU",
    published="hierars-table-06",
    rows=_baseline_and_translu(LONG),
    claims=_claims(
        "TransLU over the baseline, {encoder}: {measure}",
        "{}-translu",
        "{}-baseline",
        ("mIoU", "mAcc"),
        LONG,
    ),
    measures=(MIOU, MACC),
    **COVER,
)

TABLE_08 = TransferExperiment(
    key="hierars/table-08",
    title="HieraRS, Table VIII: where branch 1 starts, and CDKS",
    published="hierars-table-08",
    rows=tuple(
        row
        for encoder, name in SHORT.items()
        for row in (
            _flat(f"{name}-imagenet", encoder, "imagenet"),
            _flat(f"{name}-mm5b", encoder, "source"),
            _translu(f"{name}-mm5b-cdks", encoder, cdsa=False),
        )
    ),
    claims=(
        *_claims(
            "MM-5B's weights over ImageNet's, {encoder}: {measure}", "{}-mm5b", "{}-imagenet", ("mIoU", "mAcc"), SHORT
        ),
        *_claims("CDKS over MM-5B's weights, {encoder}: {measure}", "{}-mm5b-cdks", "{}-mm5b", ("mIoU", "mAcc"), SHORT),
        *_claims(
            "CDKS over the baseline, {encoder}: {measure}", "{}-mm5b-cdks", "{}-imagenet", ("mIoU", "mAcc"), SHORT
        ),
    ),
    measures=(MIOU, MACC),
    **CROPS,
)

TABLE_09 = TransferExperiment(
    key="hierars/table-09",
    title="HieraRS, Table IX: TransLU without and with CDSA",
    published="hierars-table-09",
    rows=tuple(
        row
        for encoder, name in LONG.items()
        for row in (_translu(f"{name}-cdks", encoder, cdsa=False), _translu(f"{name}-cdks-cdsa", encoder))
    ),
    claims=_claims("CDSA over CDKS alone, {encoder}: {measure}", "{}-cdks-cdsa", "{}-cdks", ("mIoU", "mAcc"), LONG),
    measures=(MIOU, MACC),
    **CROPS,
)

EXPERIMENTS = {experiment.key: experiment for experiment in (TABLE_05, TABLE_06, TABLE_08, TABLE_09)}
