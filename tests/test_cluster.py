"""Jobs on a Dask cluster: the same records as here, whatever happens to its workers. Starting them takes seconds."""

import contextlib
import logging
import threading
from functools import partial

import fake_runner
import pytest
from fake_runner import PLAYED, results

from hierlab.experiments import jobs, record, report
from hierlab.experiments.run import JobsFailed, run

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("dask.distributed")
psutil = pytest.importorskip("psutil")


@pytest.fixture
def began(tmp_path, monkeypatch):
    """Function that lists the jobs which began since it was last asked."""
    monkeypatch.setenv(fake_runner.LOG, str(tmp_path / "began.txt"))
    return partial(fake_runner.began, tmp_path / "began.txt")


@contextlib.contextmanager
def dask_cluster(workers: int, **config):
    """A local Dask cluster of worker processes that end with the block; ten minutes are the most that it may take."""
    before = children()
    quiet = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with dask.config.set(config), distributed.LocalCluster(**quiet) as cluster:
        late = threading.Timer(600, cluster.close)  # a run that hangs then raises for its lost scheduler
        late.start()
        try:
            yield cluster
        finally:
            late.cancel()
    assert children() == before


def children() -> set[int]:
    """The living processes that this one started, but for the one that every spawning process keeps."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def test_a_cluster_loses_nothing_with_a_worker(tmp_path, began):
    """One of two workers is killed in the middle of a job: all records come, and they make the same table."""
    alone = run(fake_runner.experiment(), out=tmp_path / "a.jsonl", **PLAYED)
    began()
    dying = fake_runner.experiment(both="die once")
    with dask_cluster(2) as cluster:
        records = run(dying, out=tmp_path / "b.jsonl", scheduler=cluster.scheduler_address, **PLAYED)
    assert (tmp_path / "died").exists() and not (tmp_path / "b.failed.jsonl").exists()
    begun = began()
    assert set(begun) == {f"{entry['row']} {entry['seed']}" for entry in alone} and len(begun) > 6
    assert (
        results(tmp_path / "a.jsonl") == results(tmp_path / "b.jsonl") and len(record.read(tmp_path / "b.jsonl")) == 6
    )
    assert [entry["hash"] for entry in records] == [entry["hash"] for entry in alone]
    assert report.table(dying, records).equals(report.table(dying, alone))
    assert report.claims(dying, records).equals(report.claims(dying, alone))
    run(dying, out=tmp_path / "b.jsonl", **PLAYED)
    assert began() == []  # every job has its record


def test_a_cluster_fails_what_fails_and_nothing_beside_it(tmp_path, began):
    """With one worker, so that it is known what a dead worker held, and a Dask that gives all of that up at once."""
    one = PLAYED | {"seeds": [0], "out": tmp_path / "t.jsonl"}
    broken = fake_runner.experiment(both="fail", both_hsc="die")
    sleeping = fake_runner.experiment(both="sleep")
    with dask_cluster(1, **{"distributed.scheduler.allowed-failures": 0}) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(JobsFailed, match=r"(?s)2 of 3.*both-hsc, seed 0: KilledWorker.*both, seed 0: RuntimeError"):
            run(broken, rows=["both-hsc", "both", "coarse-to-fine"], scheduler=address, **one)
        assert [entry["row"] for entry in record.read(one["out"])] == ["coarse-to-fine"]
        # Once each, in spite of two deaths of the worker that held them: what raised, and what was fetched from it
        assert sorted(began()) == ["both 0", "both-hsc 0", "both-hsc 0", "coarse-to-fine 0"]
        failures = {entry["row"]: entry for _, entry in record.read_lines(record.failures_path(one["out"]))}
        assert "the row is broken" in failures["both"]["traceback"] and failures["both-hsc"]["traceback"] is None

        setting = sleeping.setting("laptop")
        planned = jobs.plan(sleeping, ["coarse-to-fine", "both"], [0], "laptop", setting, device="cpu")
        answers = jobs.perform_all(planned, scheduler=address)
        assert next(answers)[0].row.name == "coarse-to-fine"
        cluster.close()
        with pytest.raises(ConnectionError, match="was lost"):
            next(answers)


def test_a_cluster_that_is_not_there_is_said(began):
    for address in ("nonsense", "tcp://127.0.0.1:1"):
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "100ms"}),
            pytest.raises(ValueError, match=rf"No Dask scheduler answers at '{address}'(?s:.*)dask scheduler"),
        ):
            run(fake_runner.experiment(), scheduler=address, **PLAYED)
    assert began() == []


@pytest.mark.parametrize("workers, said", [(0, "has no workers yet"), (1, "--nthreads 1")])
def test_a_cluster_that_is_not_ready_is_said_and_used(began, workers, said):
    """No workers until there is work; or one in this process, with two threads."""
    quiet = {"processes": False, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with distributed.LocalCluster(n_workers=workers, threads_per_worker=2, **quiet) as cluster:
        if not workers:
            cluster.adapt(maximum=1, interval="50ms")
        with pytest.warns(UserWarning, match=said):
            records = run(fake_runner.experiment(), seeds=[0], scheduler=cluster.scheduler_address, **PLAYED)
    assert len(records) == 3 and len(began()) == 3
