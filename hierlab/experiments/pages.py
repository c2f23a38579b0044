"""Reports as pages: one table with its claims and pictures, or all published tables with a line each."""

import base64
import html
from pathlib import Path

import pandas as pd

from .._figure import png
from . import published, record, report
from .catalog import EXPERIMENTS
from .define import Experiment
from .record import stored_path

NOT_RUN = "not run"
PROFILES = ("paper", "gpu", "laptop")  # from the largest; those of smoke are never shown
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 78rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #555; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.quiet { color: #595959; white-space: nowrap; }
"""


def stored(experiment: Experiment, folder: Path, profile: str | None = None, tag: str = "") -> tuple[str | None, list]:
    """The profile and its newest records below ``folder``: of the profile asked for, else of the largest there is.

    ValueError for the profile smoke, whose numbers mean nothing and are not shown.
    """
    if profile is None:
        return report.best_stored(experiment, folder)
    if profile not in PROFILES:
        raise ValueError(f"Numbers of the profile '{profile}' are not shown; there are {', '.join(PROFILES)}.")
    records = report.newest(record.read(stored_path(experiment, folder, profile, tag)))
    return (profile if records else None), records


def overview(folder: Path) -> pd.DataFrame:
    """Every published table of results, a line each: what it shows, and what became of it here.

    ``run`` says how many of an experiment's rows have records, or "not run".
    """
    mine = {experiment.published: experiment for experiment in EXPERIMENTS.values()}
    lines = []
    for key, about in published.tables().iterrows():
        experiment = mine.get(key)
        profile, records = (None, []) if experiment is None else report.best_stored(experiment, folder)
        line = {
            "table": f"{about['paper']} {about['table']}",
            "shows": about["title"],
            "data": about["data"],
            "experiment": experiment.key if experiment else "–",
            "run": NOT_RUN,
            "profile": "–",
            "on": "–",
            "n": "–",
            **dict.fromkeys((report.AGREES, report.DISAGREES, report.UNDECIDED), "–"),
        }
        if records:
            seeds = report.scores(experiment, records).count()
            line |= {
                "run": f"{(seeds > 0).sum()} of {len(seeds)} rows",
                "profile": profile,
                "on": report.origin(records),
                "n": str(seeds.min()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}",
                **{name: str(count) for name, count in report.counts(experiment, records).items()},
            }
        lines.append(line)
    return pd.DataFrame(lines).set_index("table")


def page(experiment: Experiment, profile: str, records: list[dict]) -> str:
    """An HTML page, complete in itself, with the report of one table."""
    return _whole(experiment.title, f"<h1>{html.escape(experiment.title)}</h1>" + _body(experiment, profile, records))


def all_tables(folder: Path) -> str:
    """An HTML page, complete in itself: a line a published table, then the reports of those that were run."""
    lines = overview(folder)
    done = {experiment.key: report.best_stored(experiment, folder) for experiment in EXPERIMENTS.values()}
    done = {key: found for key, found in done.items() if found[1]}
    said = (
        f"<p>{len(lines)} tables of four papers, {len(done)} of them with records. <b>Twin</b> is a synthetic Earth: "
        "its scores stand beside the printed ones to compare directions, never heights. A claim agrees or disagrees "
        "when the 95 % interval of its differences, paired by seed, leaves out zero; n is the number of seeds.</p>"
    )
    content = "<h1>Every published table, and ours</h1>" + said + _table(lines, links=set(done))
    for key, (profile, records) in done.items():
        title = html.escape(EXPERIMENTS[key].title)
        content += f'<h2 id="{_anchor(key)}">{title}</h2>' + _body(EXPERIMENTS[key], profile, records)
    return _whole("Every published table, and ours", content)


def _body(experiment: Experiment, profile: str, records: list[dict]) -> str:
    source = report.origin(records)
    unit = ", ".join(dict.fromkeys(f"{measure.column} [{measure.unit}]" for measure in experiment.measures))
    parts = [
        f"<p>Profile <b>{profile}</b>, data: <b>{source}</b>. Measure: {html.escape(unit)}. "
        f"{html.escape(report.methods(experiment, records))}</p>",
        _table(report.table(experiment, records)),
        _picture(report.figure(experiment, records)),
        "<h3>Claims</h3>",
        _table(report.claims(experiment, records)),
        _picture(report.differences(experiment, records)),
        "<h3>Where our numbers come from</h3>",
        _table(report.provenance(records)),
    ]
    return "\n".join(parts)


def _table(frame: pd.DataFrame, links: set[str] = frozenset()) -> str:
    """A frame as an HTML table; a cell that names a key in ``links`` leads to its report on the page."""
    heads = "".join(f"<th>{html.escape(str(name))}</th>" for name in (frame.index.name or "", *frame.columns))
    rows = []
    for index, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        content = "".join(_cell(cell, links) for cell in cells)
        rows.append(f"<tr><th>{html.escape(str(index))}</th>{content}</tr>")
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(value, links: set[str]) -> str:
    text = html.escape(shown(value))
    if value in links:
        return f'<td><a href="#{_anchor(value)}">{text}</a></td>'
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
