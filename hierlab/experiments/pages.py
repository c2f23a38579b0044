"""Reports as pages: one table with its claims and pictures, or all published tables with a line each."""

import base64
import html
from pathlib import Path

import pandas as pd

from .._figure import png
from . import published, report
from .catalog import EXPERIMENTS
from .define import Experiment

NOT_RUN = "not run"
KINDS = {False: "on real data", True: "on the twin"}
VERDICTS = {report.AGREES: "#00527f", report.DISAGREES: "#a34700", report.UNDECIDED: "#595959"}  # the plots', to read
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 78rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 2px solid #555; padding-top: 1rem; }
h3 { font-size: 1.1rem; margin-top: 2rem; } h4 { font-size: 1rem; margin: 1.5rem 0 0; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #555; vertical-align: bottom; } tbody th, td a { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; } thead .number { text-align: right; }
.quiet { color: #595959; white-space: nowrap; } .verdict { font-weight: 600; white-space: nowrap; }
tbody tr:hover { background: #f4f4f4; }
"""


def stored(experiment: Experiment, folder: Path, profile: str | None = None, tag: str = "") -> list[tuple[str, list]]:
    """What there is to report: (profile, newest records) on real data, then on the twin; nothing of what has none.

    Each of the profile asked for, else of the largest there is. ValueError for the profile smoke, whose numbers mean
    nothing and are not shown.
    """
    if profile is None:
        found = [report.best_stored(experiment, folder, twin) for twin in KINDS]
    elif profile in report.SHOWN:
        found = [(profile, report.stored(experiment, folder, profile, twin, tag)) for twin in KINDS]
    else:
        raise ValueError(f"Numbers of the profile '{profile}' are not shown; there are {', '.join(report.SHOWN)}.")
    return [(profile, records) for profile, records in found if records]


def overview(folder: Path) -> pd.DataFrame:
    """Every published table of results, a line each: what it shows, and what became of it here.

    A column for the twin and one for real data say which profile was run, how many of the experiment's rows have
    records, over how many seeds, and what becomes of the claims; "not run" where there are none.
    """
    mine = {experiment.published: experiment for experiment in EXPERIMENTS.values()}
    lines = []
    for key, about in published.tables().iterrows():
        experiment = mine.get(key)
        line = {"table": f"{about['paper']} {about['table']}", "shows": about["title"], "data": about["data"]}
        line["experiment"] = experiment.key if experiment else "–"
        for twin, head in KINDS.items():
            profile, records = report.best_stored(experiment, folder, twin) if experiment else (None, [])
            line[head] = _outcome(experiment, profile, records) if records else NOT_RUN
        lines.append(line)
    return pd.DataFrame(lines).set_index("table")


def _outcome(experiment: Experiment, profile: str, records: list[dict]) -> str:
    """``laptop, 6 of 6 rows, n = 5: agrees 4, undecided 1``."""
    seeds = report.scores(experiment, records).count()
    done = seeds[seeds > 0]
    few, many = done.min(), done.max()
    n = f"n = {few}" if few == many else f"n = {few} to {many}"
    said = [f"{name} {count}" for name, count in report.counts(experiment, records).items() if count]
    return f"{profile}, {len(done)} of {len(seeds)} rows, {n}: {', '.join(said) or 'no claims'}"


def page(experiment: Experiment, found: list[tuple[str, list]]) -> str:
    """An HTML page, complete in itself, with the reports of one table: one for each (profile, records) of ``found``."""
    head = f"<h1>{html.escape(experiment.title)}</h1>"
    return _whole(experiment.title, head + "".join(_body(experiment, *each) for each in found))


def all_tables(folder: Path) -> str:
    """An HTML page, complete in itself: a line a published table, the reports of those that were run, and what the
    papers' printed numbers contradict in each other."""
    lines = overview(folder)
    done = {key: stored(experiment, folder) for key, experiment in EXPERIMENTS.items()}
    done = {key: found for key, found in done.items() if found}
    said = (
        f"<p>{len(lines)} tables of four papers, {len(done)} of them with records. <b>Twin</b> is a synthetic Earth: "
        "its scores stand beside the printed ones to compare directions, never heights. A claim agrees or disagrees "
        "when the 95 % interval of its differences, paired by seed, leaves out zero; n is the number of seeds.</p>"
    )
    content = "<h1>Every published table, and ours</h1>" + said + _table(lines, links=set(done))
    for key, found in done.items():
        content += f'<h2 id="{_anchor(key)}">{html.escape(EXPERIMENTS[key].title)}</h2>'
        content += "".join(_body(EXPERIMENTS[key], *each) for each in found)
    broken = published.explained()
    content += (
        f"<h2>What the printed numbers contradict</h2><p>{len(broken)} printed numbers cannot be what other printed "
        "numbers of the same paper say that they are, even allowing for rounding.</p>"
    )
    return _whole("Every published table, and ours", content + _table(broken.set_index("table")))


def _body(experiment: Experiment, profile: str, records: list[dict]) -> str:
    unit = ", ".join(dict.fromkeys(f"{measure.column} [{measure.unit}]" for measure in experiment.measures))
    on = KINDS[records[0]["data"]["twin"]]
    parts = [
        f"<h3>{on[0].upper()}{on[1:]}, profile {profile}</h3>",
        f"<p>Measure: {html.escape(unit)}. {html.escape(report.methods(experiment, records))}</p>",
        _table(report.table(experiment, records)),
        _picture(report.figure(experiment, records)),
        "<h4>Claims</h4>",
        _table(report.claims(experiment, records)),
        _picture(report.differences(experiment, records)),
        "<h4>Where our numbers come from</h4>",
        _table(report.provenance(records)),
    ]
    return "\n".join(parts)


def _table(frame: pd.DataFrame, links: set[str] = frozenset()) -> str:
    """A frame as an HTML table; a cell that names a key in ``links`` leads to its report on the page."""
    heads = f"<th>{html.escape(frame.index.name or '')}</th>"
    for name, cells in frame.items():
        kind = ' class="number"' if pd.api.types.is_numeric_dtype(cells) else ""
        heads += f"<th{kind}>{html.escape(str(name))}</th>"
    rows = []
    for index, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        content = "".join(_cell(cell, links) for cell in cells)
        rows.append(f"<tr><th>{html.escape(str(index))}</th>{content}</tr>")
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(value, links: set[str]) -> str:
    text = html.escape(shown(value))
    if value in links:
        return f'<td><a href="#{_anchor(value)}">{text}</a></td>'
    if value in VERDICTS:
        return f'<td class="verdict" style="color: {VERDICTS[value]}">{text}</td>'
    kind = ' class="number"' if isinstance(value, int | float) else ' class="quiet"' if value == NOT_RUN else ""
    return f"<td{kind}>{text}</td>"


def shown(value) -> str:
    """A cell as text: two decimals, a dash for what is missing."""
    if isinstance(value, float):
        return "–" if value != value else f"{value:.2f}"
    return str(value)


def _picture(drawing) -> str:
    data = base64.b64encode(png(drawing, metadata={"Software": None})).decode()
    return f'<p><img src="data:image/png;base64,{data}" alt="{html.escape(drawing.get_label())}"></p>'


def _anchor(key: str) -> str:
    return key.replace("/", "-")


def _whole(title: str, content: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )
