"""Jobs: one (row, seed) each, with a hash of everything that decides its result; doing them here, side by side, or on
a cluster."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import torch

from .. import __version__
from ..checkpoints import pick_device
from ..recipes import Recipe
from . import record
from .define import Experiment, Row, Setting

STOPPING = 20.0  # seconds that a worker has to finish its training step when it is told to stop

IDENTITY = ("experiment", "row", "seed", "profile", "parameters", "data")  # the fields of a record that tell its job
NAMELESS = {"experiment": "", "row": ""}  # for the run itself, whatever tables it stands in

Tell = Callable[["Job", dict], None]
_alone = threading.Lock()  # one job at a time in a process: the random streams and torch's switches are the process's


@dataclass(frozen=True)
class Job:
    """One row with one seed in one setting; ``inputs`` are what its result follows from, the device aside."""

    experiment: Experiment
    row: Row
    seed: int
    profile: str
    setting: Setting
    overrides: dict = field(compare=False)
    inputs: dict = field(compare=False)
    device: str = "auto"

    @property
    def name(self) -> str:
        """The job for readers: row and seed."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of the inputs' SHA-256."""
        return digest(self.identity())

    def identity(self) -> dict:
        """The fields that say which job a record is of."""
        about = {"experiment": self.experiment.key, "row": self.row.name, "seed": self.seed, "profile": self.profile}
        return about | self.inputs


def plan(
    experiment: Experiment,
    rows: Sequence[str] | None,
    seeds: Sequence[int],
    profile: str,
    setting: Setting,
    overrides: dict | None = None,
    device: str = "auto",
) -> list[Job]:
    """The jobs of some rows (None: all) and seeds, seed by seed. ValueError for an unknown row or impossible inputs."""
    chosen = [experiment.row(name) for name in dict.fromkeys(rows)] if rows is not None else list(experiment.rows)
    inputs = {row.name: _runner(experiment).inputs(experiment, row, profile, setting) for row in chosen}
    return [
        Job(experiment, row, seed, profile, setting, dict(overrides or {}), inputs[row.name], device)
        for seed in seeds
        for row in chosen
    ]


def digest(identity: dict) -> str:
    """A hash of what decides a job: experiment, row, seed, profile, parameters and data."""
    identity = {name: identity[name] for name in IDENTITY}
    identity = {**identity, "parameters": _filled(identity["parameters"]), "data": record.told(identity["data"])}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def done_by(entry: dict) -> set[str]:
    """The hashes of the jobs that a record answers: the one it carries, and the one that its content makes.

    A record made before jobs had hashes, or before a recipe had a field whose default changes nothing, still counts.
    """
    return {entry.get("hash"), digest(entry)} - {None}


def _filled(parameters: dict) -> dict:
    """Parameters with a recipe that has all of today's fields, so that a new field with its default is no change."""
    if "recipe" not in parameters:
        return parameters
    try:
        return {**parameters, "recipe": Recipe(**parameters["recipe"]).to_dict()}
    except (TypeError, ValueError):  # written by another version of hierlab: a recipe of its own
        return parameters


def _runner(experiment: Experiment):
    return importlib.import_module(experiment.runner)


# ---------------------------------------------------------------- one job


def perform(job: Job, tell: Callable[[dict], None] | None = None) -> dict:
    """Do a job, and return its validated record, or :func:`failure` if it failed; it raises for an interruption only.

    ``tell`` is given the job's progress a few times a second. Where hierlab or the data differ from those that planned
    the job, as they may on another machine, the job fails.
    """
    began = time.perf_counter()
    with _alone:
        try:
            inputs = _runner(job.experiment).inputs(job.experiment, job.row, job.profile, job.setting)
            if digest(dataclasses.replace(job, inputs=inputs).identity()) != job.hash:
                changed = sorted(key for key in inputs if inputs[key] != job.inputs.get(key))
                raise ValueError(
                    f"This worker runs hierlab {__version__} and would do another job: its {' and '.join(changed)} "
                    "differ from those of the machine that planned it. Install the same version on both."
                )
            found = _runner(job.experiment).work(
                job.experiment, job.row, job.seed, job.profile, job.setting, job.device, _seldom(tell)
            )
            found["cost"]["job_seconds"] = round(time.perf_counter() - began, 1)
            return record.validate(_about(job) | found)
        except Exception as error:  # whatever it was, the other jobs go on
            return failure(job, f"{type(error).__name__}: {error}", traceback.format_exc())


def failure(job: Job, error: str, trace: str | None = None) -> dict:
    """What is kept of a failed job: which it was, the ``error`` in a line, the ``traceback``, and on what it ran."""
    return _about(job) | {"error": error, "traceback": trace}


def failed(result: dict) -> bool:
    """Whether a result of :func:`perform` is a failure."""
    return "error" in result


def _about(job: Job) -> dict:
    try:
        on = str(pick_device(job.device))
    except ValueError:  # which fails the job, and needs a description still
        on = "cpu"
    about = {"hash": job.hash, "overrides": job.overrides, "setting": _size(job.setting)}
    return job.identity() | about | record.provenance(on)


def _size(setting: Setting) -> dict:
    """The setting as recorded: all but the number of seeds and where the data are."""
    return {name: value for name, value in dataclasses.asdict(setting).items() if name not in ("seeds", "data_root")}


def _seldom(tell: Callable[[dict], None] | None, every: float = 0.4) -> Callable[[dict], None] | None:
    """``tell``, but at most once in ``every`` seconds."""
    if tell is None:
        return None
    last = [0.0]

    def told(progress: dict) -> None:
        if time.perf_counter() - last[0] >= every:
            last[0] = time.perf_counter()
            tell(progress)

    return told


# ---------------------------------------------------------------- many jobs


def places(device: str, workers: int) -> list[str]:
    """The device of each worker: on a machine with GPUs never more workers than GPUs, so that jobs queue for them.

    ValueError for fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    found = pick_device(device)
    if found.type == "cpu":
        return [str(found)] * workers
    if found.type != "cuda" or found.index is not None:
        return [str(found)]
    return [f"cuda:{i}" for i in range(min(workers, torch.cuda.device_count()))]


def perform_all(
    jobs: Sequence[Job], workers: int = 1, scheduler: str | None = None, tell: Tell | None = None
) -> Iterator[tuple[Job, dict]]:
    """Do jobs and yield (job, result) as they finish: here one by one, in ``workers`` processes, or on a cluster.

    ``scheduler`` is the address of a Dask scheduler (``tcp://…``). Closing the iterator stops what still runs.
    """
    if scheduler is not None:
        yield from _on_cluster(jobs, scheduler)
        return
    devices = places(jobs[0].device, workers)[: len(jobs)] if jobs else []
    if len(devices) > 1:
        yield from _side_by_side(jobs, devices, tell)
        return
    for job in jobs:
        told = None if tell is None else lambda progress, job=job: tell(job, progress)
        yield job, perform(job, told)


@dataclass
class _Worker:
    process: multiprocessing.Process
    device: str
    job: Job | None = None


def _side_by_side(jobs: Sequence[Job], devices: Sequence[str], tell: Tell | None) -> Iterator[tuple[Job, dict]]:
    """One process a device. A process that dies fails its job alone, and another takes its place."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(devices))
    waiting, crew = deque(jobs), {}

    def hire(device: str) -> None:
        near, far = context.Pipe()
        process = context.Process(target=_work, args=(far, device, threads), daemon=True)
        process.start()
        far.close()
        crew[near] = _Worker(process, device)

    def next_job(pipe: Connection) -> None:
        crew[pipe].job = waiting.popleft() if waiting else None
        with contextlib.suppress(OSError):  # it has died since: the next wait notices
            pipe.send(crew[pipe].job)
        if crew[pipe].job is None:
            crew.pop(pipe).process.join()
            pipe.close()

    try:
        for device in devices:
            hire(device)
        while crew:
            for pipe in wait(list(crew)):
                worker = crew[pipe]
                try:
                    kind, content = pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    del crew[pipe]
                    pipe.close()
                    how = f"its process ended with exit code {worker.process.exitcode}"
                    if worker.job is None:
                        raise RuntimeError(f"A worker could not start: {how}.") from None
                    if waiting:
                        hire(worker.device)
                    yield worker.job, failure(worker.job, f"{how}; -9 is often a lack of memory")
                    continue
                if kind == "progress":
                    if tell is not None:
                        tell(worker.job, content)
                    continue
                job = worker.job
                next_job(pipe)
                if kind == "result":
                    yield job, content
    finally:
        for worker in crew.values():
            worker.process.terminate()
        until = time.monotonic() + STOPPING
        for pipe, worker in crew.items():
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            pipe.close()


def _work(pipe: Connection, device: str, threads: int) -> None:
    """A worker process: asks for jobs until there are none. Ctrl-C reaches the first process only, which tells it."""
    os.setpgrp()
    torch.set_num_threads(threads)
    record.provenance()  # before anything runs, so that the commit is that of the code loaded now
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        pipe.send(("ready", None))
        while (job := pipe.recv()) is not None:
            found = perform(dataclasses.replace(job, device=device), lambda told: pipe.send(("progress", told)))
            pipe.send(("result", found))


def _on_cluster(jobs: Sequence[Job], address: str) -> Iterator[tuple[Job, dict]]:
    """On the workers of a Dask scheduler. A job that raised is done; one whose worker died goes to another worker.

    A result is fetched and let go of as soon as it is there, because Dask does again what a worker still held when it
    died. It gives a job up when more workers died than its ``allowed-failures``, and counts a death against every job
    that waited on that worker, not only against the one that it was at. So those that it gives up are done again at the
    end, one alone at a time, and have failed when that fails.

    Not told of progress. Closing the iterator cancels what has not begun; a worker ends the job it is at. ValueError
    where no scheduler answers, ConnectionError when it is lost.
    """
    try:
        from dask.distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise ValueError("Running on a Dask cluster needs dask.distributed: pip install 'hierlab[scale]'.") from error
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No Dask scheduler answers at '{address}' ({error}). Start one with `dask scheduler`, workers with "
            "`dask worker ADDRESS`, and give the address that the scheduler prints, tcp://HOST:PORT."
        ) from error
    with client:
        threads = client.nthreads()
        if not threads:
            warnings.warn(f"The scheduler at {address} has no workers yet; the jobs wait for some.", stacklevel=2)
        elif max(threads.values()) > 1:
            warnings.warn(
                f"The cluster at {address} has workers with several threads. A worker process does one job at a time, "
                "so jobs may queue on one while another has none: start them with --nthreads 1.",
                stacklevel=2,
            )
        waiting = {client.submit(perform, job, pure=False, key=_key(job)): n for n, job in enumerate(jobs)}
        given_up = []
        try:
            for future in as_completed(list(waiting)):
                place = waiting.pop(future)
                if isinstance(future.exception(), KilledWorker):
                    given_up.append(place)
                else:
                    yield jobs[place], _answer(jobs[place], future)
            for place in sorted(given_up):
                future = client.submit(perform, jobs[place], pure=False, key=f"{_key(jobs[place])}-alone")
                waiting[future] = place
                yield jobs[place], _answer(jobs[place], future)
        except CancelledError as error:
            raise ConnectionError(
                f"The scheduler at {address} was lost. What was done is kept; the same run goes on with the rest."
            ) from error
        finally:
            client.cancel(list(waiting))


def _key(job: Job) -> str:
    """The job's name on a cluster."""
    return f"{job.experiment.key}-{job.row.name}-{job.seed}-{job.hash}"


def _answer(job: Job, future) -> dict:
    """What a Dask future holds once it is done: the job's result, or the failure of whatever should have done it."""
    error = future.exception()
    result = future.result() if error is None else failure(job, f"{type(error).__name__}: {error}")
    future.release()
    return result


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM (a cluster's time limit, say) stops like Ctrl-C, so that nothing is left running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
