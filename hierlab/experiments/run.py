"""Running an experiment: which jobs are still to do, doing them, and keeping what comes of them."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import profiles
from ..checkpoints import pick_device
from . import jobs, overrides, record
from .define import Experiment
from .jobs import Job


class JobsFailed(ValueError):
    """Some jobs failed, now or earlier; all others were done."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; what was done is kept, and the same run goes on with the rest."""


@dataclass(frozen=True)
class Plan:
    """What a run has before it: all ``jobs`` asked for, the records ``known`` by hash, those ``adopted`` from other
    tables, where they are the same run under another name, what is left ``todo``, and the failures of earlier runs that
    are not tried again (``given_up``); the files of records and failures, if any; the address of the Dask
    ``scheduler``, if one does the jobs."""

    jobs: list[Job]
    known: dict[str, dict]
    adopted: list[dict]
    todo: list[Job]
    given_up: dict[str, dict]
    out: Path | None
    failures: Path | None
    scheduler: str | None

    def told(self) -> str:
        """The jobs in a line: how many, and how many of them are done or were given up before."""
        done = sum(job.hash in self.known for job in self.jobs)
        lost = len(self.jobs) - done - len(self.adopted) - len(self.todo)
        parts = [f"{len(self.jobs)} jobs"]
        parts += [f"{done} of them done before"] if done else []
        parts += [f"{len(self.adopted)} done for another table"] if self.adopted else []
        parts += [f"{lost} failed before and not tried again"] if lost else []
        return ", ".join(parts)


def prepare(
    experiment: Experiment,
    rows: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    profile: str | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    *,
    parameters: Mapping[str, object] | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
) -> Plan:
    """Find out what is to be done, without doing any of it.

    Args:
        rows: names, all by default.
        seeds: by default 0 … n - 1 with the profile's n.
        profile: by default the one in force.
        device: as in :func:`hierlab.train.fit`; on a cluster, that of its workers.
        out: the JSON-lines file of the records, to which each finished job is added; failures go into a file beside
            it (``….failed.jsonl``). None keeps them in memory only.
        parameters: overrides of the profile's setting (:func:`hierlab.experiments.overrides.apply`); a file of
            records holds one set of overrides only.
        scheduler: the address of a Dask scheduler, to do the jobs on its workers.
        retry_failed: try jobs again that failed earlier with the same inputs; else they stay as they are.

    Raises ValueError for an unknown row, profile or parameter, and for what does not go together.
    """
    record.provenance()  # before anything runs, so that the commit is that of the code loaded now
    profile = profiles.check(profile or profiles.current())
    setting, changed = overrides.apply(experiment, profile, parameters)
    seeds = list(dict.fromkeys(seeds)) if seeds is not None else list(range(setting.seeds))
    if scheduler is None:
        pick_device(device)
    try:
        planned = jobs.plan(experiment, rows, seeds, profile, setting, changed, device)
    except ValueError as error:
        if parameters:
            raise ValueError(f"{error} {overrides.told(experiment, profile)}") from error
        raise
    out = Path(out) if out is not None else None
    failures = record.failures_path(out) if out is not None else None
    known, given_up, adopted = {}, {}, []
    if out is not None:
        stored = record.read(out)
        _check_alone(out, stored, experiment, profile, changed, planned)
        known = {name: entry for entry in stored for name in jobs.done_by(entry)}
        adopted = _same_runs(out, [job for job in planned if job.hash not in known], changed)
        if not retry_failed:
            given_up = {entry["hash"]: entry for _, entry in record.read_lines(failures)}
    answered = {*known, *given_up, *(entry["hash"] for entry in adopted)}
    todo = [job for job in planned if job.hash not in answered]
    return Plan(planned, known, adopted, todo, given_up, out, failures, scheduler)


def _same_runs(out: Path, wanted: list[Job], changed: dict) -> list[dict]:
    """Records for the jobs that other tables' records beside ``out`` answer: same seed, parameters and data.

    Each keeps the machine, commit and date of the run that was made; ``same_run`` names its table and row.
    """
    others = sorted(path for path in out.parent.glob("*.jsonl") if path != out and ".failed." not in path.name)
    made = {}
    for path in others if wanted else ():
        for _, entry in record.read_lines(path):
            elsewhere = entry["experiment"] not in {job.experiment.key for job in wanted}
            if elsewhere and "hash" in entry and entry.get("overrides") == changed:
                made[jobs.digest(entry | jobs.NAMELESS)] = entry
    found = []
    for job in wanted:
        entry = made.get(jobs.digest(job.identity() | jobs.NAMELESS))
        if entry is not None:
            names = {"experiment": job.experiment.key, "row": job.row.name, "hash": job.hash}
            same = {"same_run": f"{entry['experiment']}, {entry['row']}"}
            found.append(record.validate(same | entry | names))
    return found


def _check_alone(
    out: Path, stored: list[dict], experiment: Experiment, profile: str, changed: dict, planned: list[Job]
) -> None:
    """ValueError when ``out`` holds records of something that must not stand in one file with these jobs'."""
    twin = planned[0].inputs["data"]["twin"] if planned else True
    mine = {"experiment": experiment.key, "profile": profile, "overrides": changed, "twin or real data": twin}
    for entry in stored:
        theirs = {"experiment": entry["experiment"], "profile": entry["profile"]}
        theirs |= {"overrides": entry.get("overrides", {}), "twin or real data": entry["data"]["twin"]}
        for what, value in mine.items():
            if theirs[what] != value:
                raise ValueError(
                    f"{out} holds records of another kind ({what}: {_said(theirs[what])} there, {_said(value)} here); "
                    "give another file."
                )


def _said(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={entry}" for name, entry in value.items()) or "none"
    return {True: "twin", False: "real"}.get(value, value) if isinstance(value, bool) else str(value)


def run(experiment: Experiment, workers: int = 1, progress: bool = True, **asked) -> list[dict]:
    """Do the jobs of an experiment that have no record yet, and return the records of all that were asked for.

    ``asked`` are the arguments of :func:`prepare`, by name: ``rows``, ``seeds``, ``profile``, ``device``, ``out``,
    ``parameters``, ``scheduler``, ``retry_failed``; the others, and the errors besides its own, those of
    :func:`carry_out`.
    """
    return carry_out(prepare(experiment, **asked), workers, progress)


def carry_out(plan: Plan, workers: int = 1, progress: bool = True) -> list[dict]:
    """Do what a plan has left to do, and return the records of all its jobs.

    ``workers`` jobs run side by side in processes of this machine (a script needs ``if __name__ == "__main__":``);
    with GPUs, at most one a GPU. The CPU's threads are shared among them. A plan with a scheduler runs there instead.
    ``progress`` shows jobs, rate and time left, on stderr.

    Two runs of a job agree bit for bit on one CPU with as many threads; on a GPU within its arithmetic's rounding.

    Raises :class:`JobsFailed` at the end when a job failed, after all others are done; :class:`Stopped` for Ctrl-C,
    after what runs has come to a halt; ValueError where no scheduler answers, ConnectionError when it is lost.
    """
    known, failures = dict(plan.known), dict(plan.given_up)
    for entry in plan.adopted:
        known[entry["hash"]] = entry
        if plan.out is not None:
            record.append(plan.out, entry)
    board = Board(progress and bool(plan.todo), len(plan.todo))
    with board.progress:
        try:
            results = jobs.perform_all(plan.todo, workers, plan.scheduler, board.tell)
            with jobs.interruptible(), contextlib.closing(results):
                for job, result in results:
                    _keep(plan, job, result, known, failures)
                    board.finish(job, result)
        except KeyboardInterrupt as stopped:
            done = sum(job.hash in known for job in plan.jobs)
            where = f"are in {plan.out}; the same run goes on with the rest" if plan.out else "had no file to go to"
            raise Stopped(f"Stopped. The records of {done} of {len(plan.jobs)} jobs {where}.") from stopped
    lost = [job for job in plan.jobs if job.hash not in known]
    if lost:
        raise JobsFailed(_explain(plan, lost, failures))
    return [known[job.hash] for job in plan.jobs]


def _keep(plan: Plan, job: Job, result: dict, known: dict, failures: dict) -> None:
    if jobs.failed(result):
        failures[job.hash] = result
        if plan.failures is not None:
            record.append_line(plan.failures, result)
    else:
        known[job.hash] = result
        if plan.out is not None:
            record.append(plan.out, result)


def _explain(plan: Plan, lost: list[Job], failures: dict[str, dict]) -> str:
    lines = [f"{len(lost)} of {len(plan.jobs)} jobs failed:"]
    for job in lost:
        earlier = " (in an earlier run, not tried again)" if job.hash in plan.given_up else ""
        lines.append(f"  {job.name}: {failures[job.hash]['error']}{earlier}")
    if plan.failures is not None:
        lines.append(f"Tracebacks: {plan.failures}. To try them again: --retry-failed (retry_failed=True).")
    else:
        lines += [failures[job.hash]["traceback"] for job in lost[:1] if failures[job.hash]["traceback"]]
    return "\n".join(lines)


class Board:
    """Progress over jobs, when ``shown``: how many are done, jobs an hour, what runs and how fast, the time left; a
    line a finished job. It shows within ``with board.progress:``."""

    def __init__(self, shown: bool, total: int):
        self.total, self.finished, self.began = total, 0, time.monotonic()
        self.running: dict[str, dict] = {}
        self.progress = Progress(
            TextColumn("jobs {task.fields[counted]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[running]}"),
            console=Console(stderr=True, quiet=not shown),
            speed_estimate_period=3600,
            disable=not shown,
        )
        self.task = self.progress.add_task("", total=total, counted=f"0/{total}", rate="", running="")

    def tell(self, job: Job, told: dict) -> None:
        """Take in how far a running job is."""
        self.running[job.name] = told
        self._show()

    def finish(self, job: Job, result: dict) -> None:
        """Take in that a job is over."""
        self.running.pop(job.name, None)
        self.finished += 1
        said = (
            f"failed: {result['error'].partition(':')[0]}"
            if jobs.failed(result)
            else f"{result['cost']['job_seconds']:.0f} s, {_rate(result['cost']['images_per_second'])}"
        )
        self.progress.console.print(f"[{self.finished}/{self.total}] {job.name}: {said}", markup=False)
        self._show()

    def _show(self) -> None:
        done = self.finished + sum(told["share"] for told in self.running.values())
        hours = (time.monotonic() - self.began) / 3600
        self.progress.update(
            self.task,
            completed=done,
            counted=f"{self.finished}/{self.total}",
            rate=f"{done / hours:.3g} jobs/h",
            running="; ".join(
                f"{name} {told['share']:.0%} {_rate(told.get('rate'))}" for name, told in self.running.items()
            ),
        )


def _rate(images_per_second: float | None) -> str:
    return "" if images_per_second is None else f"{images_per_second:.1f} images/s"
