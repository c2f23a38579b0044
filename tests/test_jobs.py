"""Jobs: done once, done again when their inputs change, side by side, and in spite of what fails or is stopped."""

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import fake_runner
import pytest
import torch
from fake_runner import PLAYED, results

from hierlab import twin
from hierlab.data.pairs import PairFolder
from hierlab.experiments import jobs, overrides, record, segmentation
from hierlab.experiments.hierars import TABLE_07, TABLE_10
from hierlab.experiments.run import JobsFailed, Stopped, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def began(tmp_path, monkeypatch):
    """Function that lists the jobs which began since it was last asked."""
    monkeypatch.setenv(fake_runner.LOG, str(tmp_path / "began.txt"))
    return partial(fake_runner.began, tmp_path / "began.txt")


def test_a_job_is_done_once_and_its_record_is_complete(tmp_path, began):
    out = tmp_path / "t.jsonl"
    first = run(fake_runner.experiment(), out=out, **PLAYED)
    assert len(began()) == len(first) == 6 and record.read(out) == first
    assert len({entry["hash"] for entry in first}) == 6 and first[0]["overrides"] == {}
    assert first[0]["cost"]["job_seconds"] >= 0
    assert run(fake_runner.experiment(), out=out, **PLAYED) == first and began() == []
    more = run(fake_runner.experiment(), out=out, seeds=range(3), rows=["both"], **PLAYED)
    assert began() == ["both 2"] and [entry["seed"] for entry in more] == [0, 1, 2]


def test_changed_data_are_a_new_job_and_a_label_is_not(tmp_path, began, monkeypatch):
    out = tmp_path / "t.jsonl"
    played = fake_runner.experiment()
    run(played, out=out, rows=["both"], seeds=[0], **PLAYED)
    renamed = dataclasses.replace(played, rows=tuple(dataclasses.replace(row, label="?") for row in played.rows))
    run(renamed, out=out, rows=["both"], seeds=[0], **PLAYED)
    assert began() == ["both 0"]
    monkeypatch.setattr(fake_runner, "FINGERPRINT", "1" * 16)
    (again,) = run(played, out=out, rows=["both"], seeds=[0], **PLAYED)
    assert began() == ["both 0"] and again["data"]["fingerprint"] == "1" * 16 and len(record.read(out)) == 2


def test_a_record_without_a_hash_counts_when_its_inputs_are_the_jobs(tmp_path, began):
    out = tmp_path / "t.jsonl"
    (made,) = run(fake_runner.experiment(), rows=["both"], seeds=[0], **PLAYED)
    old = {name: value for name, value in made.items() if name not in ("hash", "overrides")}
    del old["parameters"]["recipe"]["balance"]  # a field that recipes did not have yet
    record.append(out, old)
    assert began() == ["both 0"]
    assert run(fake_runner.experiment(), rows=["both"], seeds=[0], out=out, **PLAYED) == [old] and began() == []
    old["parameters"]["recipe"]["lr"] = 0.5
    out.write_text(json.dumps(old) + "\n")
    run(fake_runner.experiment(), rows=["both"], seeds=[0], out=out, **PLAYED)
    assert began() == ["both 0"]


def test_stored_records_of_table_07_are_recognised_on_their_own_data():
    stored = record.read(ROOT / "book" / "results" / "hierars" / "table-07.laptop.jsonl")
    planned = jobs.plan(TABLE_07, None, range(8), "laptop", TABLE_07.setting("laptop"))
    for entry in stored:
        (job,) = (job for job in planned if (job.row.name, job.seed) == (entry["row"], entry["seed"]))
        same = dataclasses.replace(job, inputs=job.inputs | {"data": entry["data"]})
        assert same.hash in jobs.done_by(entry)


def test_a_failure_is_kept_leaves_the_others_and_is_not_retried_silently(tmp_path, began):
    out = tmp_path / "t.jsonl"
    broken = fake_runner.experiment(both="fail")
    with pytest.raises(JobsFailed, match=r"(?s)2 of 6.*both, seed 0: RuntimeError: the row is broken"):
        run(broken, out=out, **PLAYED)
    assert len(began()) == 6 and len(record.read(out)) == 4
    (_, kept), _ = record.read_lines(tmp_path / "t.failed.jsonl")
    assert kept["row"] == "both" and "Traceback" in kept["traceback"] and "fake_runner" in kept["traceback"]
    with pytest.raises(JobsFailed, match=r"not tried again(?s:.*)--retry-failed"):
        run(broken, out=out, **PLAYED)
    assert began() == []
    (tmp_path / "mended").touch()
    assert len(run(broken, out=out, retry_failed=True, **PLAYED)) == 6
    assert began() == ["both 0", "both 1"]
    assert len(run(broken, out=out, **PLAYED)) == 6 and began() == []


def test_a_failure_without_a_file_tells_its_traceback(began):
    with pytest.raises(JobsFailed, match=r"(?s)1 of 3.*Traceback"):
        run(fake_runner.experiment(both="fail"), seeds=[0], **PLAYED)


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(tmp_path, began):
    out = tmp_path / "t.jsonl"
    stopping = fake_runner.experiment(both_hsc="stop")
    with pytest.raises(Stopped, match=r"records of 2 of 6 jobs are in .*t\.jsonl; the same run goes on"):
        run(stopping, out=out, **PLAYED)
    assert began() == ["coarse-to-fine 0", "both 0", "both-hsc 0"]
    (tmp_path / "mended").touch()
    assert len(run(stopping, out=out, **PLAYED)) == 6 and len(began()) == 4


def test_a_line_that_broke_off_is_done_again(tmp_path, began):
    out = tmp_path / "t.jsonl"
    whole = run(fake_runner.experiment(), seeds=[0], out=out, **PLAYED)
    began()
    text = out.read_text()
    out.write_text(text[:-50])
    again = run(fake_runner.experiment(), seeds=[0], out=out, **PLAYED)
    assert began() == ["both-hsc 0"] and len(record.read(out)) == 3 and again[:2] == whole[:2]
    out.write_text(out.read_text()[:-1])  # whole, but for the end of the line
    assert len(record.read(out)) == 3
    run(fake_runner.experiment(), seeds=[0, 1], out=out, **PLAYED)
    assert len(record.read(out)) == 6


def test_a_file_holds_one_kind_of_records(tmp_path, began):
    out = tmp_path / "t.jsonl"
    run(fake_runner.experiment(), seeds=[0], out=out, **PLAYED)
    for changes, said in [
        ({"profile": "gpu"}, "profile: laptop there, gpu here"),
        ({"parameters": {"steps": 9}}, "overrides: none there, steps=9 here"),
    ]:
        with pytest.raises(ValueError, match=said):
            run(fake_runner.experiment(), seeds=[0], out=out, **(PLAYED | changes))


def test_overridden_runs_are_recorded_as_such(began):
    played = fake_runner.experiment()
    (plain,) = run(played, rows=["both"], seeds=[0], **PLAYED)
    given = {"steps": 3, "width": "0.25", "depth": 1.0, "lr": None}
    (changed,) = run(played, rows=["both"], seeds=[0], parameters=given, **PLAYED)
    assert changed["overrides"] == {"steps": 3, "width": 0.25} and changed["hash"] != plain["hash"]
    assert changed["parameters"]["recipe"]["steps"] == 3
    assert overrides.tag({}) == "" and overrides.tag({"steps": 3}) != overrides.tag({"steps": 4})


def test_wrong_parameters_list_what_there_is(began):
    for given, said in [
        (
            {"stepps": "3"},
            r"no parameter 'stepps'\. Profile laptop takes: width \(a number, 0.5\).*lr \(a number, unset",
        ),
        ({"steps": "many"}, "steps takes a whole number; got 'many'.*batch"),
        ({"steps": "2.5"}, "steps takes a whole number; got '2.5'"),
        ({"steps": True}, "steps takes a whole number; got True"),
        ({"width": "nan"}, "width takes a number"),
        ({"steps": "0"}, "steps is 0; it must be at least 1.*batch"),
        ({"width": "-1"}, "width is -1.0; it must be a number above 0"),
        ({"precision": "16"}, "precision is '16'; it must be one of 32-true"),
        ({"data_root": "/not/there"}, "not a folder"),
        ({"batch": "65"}, "only 64 patches.*Profile laptop takes"),
        ({"seeds": "3"}, "no parameter 'seeds'"),
    ]:
        with pytest.raises(ValueError, match=said):
            run(fake_runner.experiment(), parameters=given, **PLAYED)
    assert began() == []
    assert overrides.split(["a = b=c", "d=1"]) == {"a": "b=c", "d": "1"}
    for given, said in [(["steps"], "name=value"), (["=1"], "name=value"), (["a=1", "a=2"], "'a' twice")]:
        with pytest.raises(ValueError, match=said):
            overrides.split(given)


def test_two_workers_make_the_same_records_and_a_dead_one_fails_its_job_alone(tmp_path, began):
    run(fake_runner.experiment(), rows=["coarse-to-fine", "both"], out=tmp_path / "a.jsonl", **PLAYED)
    began()
    with pytest.raises(JobsFailed, match=r"(?s)1 of 3.*both-hsc, seed 0: its process ended with exit code -9"):
        run(fake_runner.experiment(both_hsc="die"), seeds=[0], out=tmp_path / "b.jsonl", workers=2, **PLAYED)
    assert sorted(began()) == ["both 0", "both-hsc 0", "coarse-to-fine 0"]
    same = {key: value for key, value in results(tmp_path / "a.jsonl").items() if value["seed"] == 0}
    assert results(tmp_path / "b.jsonl") == same and len(record.read_lines(tmp_path / "b.failed.jsonl")) == 1


def test_ctrl_c_stops_the_workers_too(tmp_path, began):
    out = tmp_path / "t.jsonl"
    sleeping = fake_runner.experiment(both="sleep", both_hsc="sleep")

    def interrupt():
        until = time.monotonic() + 300
        while not out.exists() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    watch = threading.Thread(target=interrupt)
    watch.start()
    with pytest.raises(Stopped, match="records of 1 of 3 jobs"):
        run(sleeping, seeds=[0], out=out, workers=2, **PLAYED)
    watch.join()
    assert not multiprocessing.active_children() and [entry["row"] for entry in record.read(out)] == ["coarse-to-fine"]
    began()
    (tmp_path / "mended").touch()
    assert len(run(sleeping, seeds=[0], out=out, **PLAYED)) == 3 and began() == ["both 0", "both-hsc 0"]


def test_a_worker_of_another_version_refuses_the_job(began, monkeypatch):
    (job,) = jobs.plan(fake_runner.experiment(), ["both"], [0], "laptop", fake_runner.experiment().setting("laptop"))
    monkeypatch.setattr(fake_runner, "FINGERPRINT", "1" * 16)
    answer = jobs.perform(job)
    assert jobs.failed(answer) and "its data differ" in answer["error"] and began() == []


def test_workers_never_outnumber_gpus(monkeypatch):
    assert jobs.places("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert jobs.places("auto", 4) == ["cuda:0", "cuda:1"]
    assert jobs.places("cuda:1", 4) == ["cuda:1"] and jobs.places("cuda", 1) == ["cuda:0"]
    with pytest.raises(ValueError, match="at least 1"):
        jobs.places("cpu", 0)


def test_rows_that_differ_in_decoding_alone_share_their_training():
    without, jsps = run(TABLE_10, profile="smoke", device="cpu", progress=False)
    assert without["losses"] == jsps["losses"] and without["cost"]["seconds"] == jsps["cost"]["seconds"]
    assert jsps["metrics"]["consistency"] == 1.0 > without["metrics"]["consistency"]
    (alone,) = run(TABLE_10, rows=["without"], seeds=[0], profile="smoke", device="cpu", progress=False)
    assert alone["metrics"] == without["metrics"] and alone["hash"] == without["hash"]


def test_a_job_gives_the_same_numbers_twice_and_others_with_another_seed():
    """Bit for bit, on one CPU; the training that rows may share is forgotten in between."""
    options = {"rows": ["both-hsc"], "profile": "smoke", "device": "cpu", "progress": False}
    found = []
    for seed in (0, 0, 1):
        segmentation._trained.clear()
        found += run(TABLE_07, seeds=[seed], **options)
    one, again, other = found
    assert one["metrics"] == again["metrics"] and one["losses"] == again["losses"] and one["hash"] == again["hash"]
    assert one["losses"] != other["losses"] and one["hash"] != other["hash"]


def test_the_record_says_which_twin_and_which_setting():
    (made,) = run(TABLE_07, rows=["baseline"], profile="smoke", device="cpu", progress=False)
    assert made["data"]["twin_version"] == twin.TWIN_VERSION and made["data"]["twin_seed"] == 0
    setting = TABLE_07.setting("smoke")
    assert made["setting"] == {
        name: getattr(setting, name) for name in ("width", "depth", "steps", "batch", "lr", "precision", "weights")
    }
    assert made["hash"] in jobs.done_by({**made, "data": record.told(made["data"])})  # as before these were said


def test_the_profile_paper_is_for_published_data():
    with pytest.raises(ValueError, match=r"profile paper is for published data.*\(data_root\)"):
        run(TABLE_07, profile="paper", device="cpu")


def test_prepared_files_stand_in_for_the_twin(tmp_path):
    from hierlab.twin.export import export, sets

    export(sets("mm5b-gaofen2", ("train", "val"), "smoke", count=2), tmp_path / "data")
    same = twin.dataset("mm5b-gaofen2", "train", "smoke", count=2)
    read = PairFolder(tmp_path / "data", "train", same.tree)
    assert len(read) == 2 and read.is_twin and read.gsd == pytest.approx(same.gsd) and read.bands == list(same.bands)
    for name in ("image", "label"):
        assert torch.equal(read[1][name], same[1][name])
    options = {"profile": "smoke", "rows": ["baseline"], "device": "cpu", "progress": False}
    (made,) = run(TABLE_07, parameters={"data_root": str(tmp_path / "data")}, **options)
    assert made["data"]["train"] == 2 and made["overrides"] == {} and made["data"]["fingerprint"] == read.fingerprint
    assert str(tmp_path) not in json.dumps(made)
    (checked,) = (tmp_path / "data").glob("checksums.sha256")
    name = next(path.name for path in (tmp_path / "data" / "img_dir" / "val").glob("*.tif"))
    lines = checked.read_text().splitlines()
    checked.write_text("\n".join("0" * 64 + line[64:] if line.endswith(name) else line for line in lines))
    (changed,) = jobs.plan(
        TABLE_07, ["baseline"], [0], "smoke", overrides.apply(TABLE_07, "smoke", {"data_root": tmp_path / "data"})[0]
    )
    assert changed.inputs["data"]["fingerprint"] == read.fingerprint and changed.hash != made["hash"]
    with pytest.raises(ValueError, match="img_dir/test"):
        PairFolder(tmp_path / "data", "test", same.tree)
    next((tmp_path / "data" / "ann_dir" / "val").glob("*.tif")).unlink()
    with pytest.raises(ValueError, match="0 label files"):
        PairFolder(tmp_path / "data", "val", same.tree)
