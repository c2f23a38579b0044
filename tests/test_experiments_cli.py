"""``hierlab run``, ``report`` and ``list experiments``: what they do, and what they say to what they cannot do."""

import json

import fake_runner
import nbformat
import pytest

from hierlab import _experiments_cli
from hierlab.cli import main
from hierlab.experiments import catalog, record

KERNEL = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}


@pytest.fixture
def hierlab(tmp_path, monkeypatch, capsys):
    """Function that runs the command line in an empty folder, on the played experiment: (exit code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(fake_runner.LOG, str(tmp_path / "began.txt"))
    monkeypatch.setitem(catalog.EXPERIMENTS, "hierars/table-07", fake_runner.experiment())
    monkeypatch.setattr(record, "results_folder", lambda: tmp_path / "book" / "results")
    monkeypatch.setattr(_experiments_cli, "_notebook", lambda _: None)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback (most" not in said.err
        return end.value.code or 0, said.out, said.err

    return call


RUN = ("run", "hierars/table-07", "--device", "cpu", "--profile", "laptop")


def test_run_makes_records_then_report_and_list_show_them(hierlab, tmp_path):
    code, out, err = hierlab(*RUN, "--seeds", "3", "--rows", "both", "coarse-to-fine")
    assert code == 0 and "6 jobs" in out and "[6/6]" in err and "jobs/h" in err
    path = tmp_path / "book" / "results" / "hierars" / "table-07.laptop.jsonl"
    assert len(record.read(path)) == 6
    for said in ("ours (twin)", "73.75", "disagrees", "Student's t"):
        assert said in out
    code, again, err = hierlab(*RUN, "--seeds", "3", "--rows", "both", "--rows", "coarse-to-fine")
    assert code == 0 and "6 of them done" in again and "[1/" not in err
    code, report, _ = hierlab("report", "hierars/table-07")
    assert code == 0 and "profile laptop, twin" in report and report.split("Claims")[1] in again
    code, listed, _ = hierlab("list", "experiments")
    assert "laptop, twin: 6" in listed and "· Both ways beat one" in listed and "gpu 6 × 2" in listed
    assert "both-hsc" in listed and "hierars/table-10" in listed and "none" in listed


def test_report_writes_pages(hierlab, tmp_path):
    hierlab(*RUN)
    assert hierlab("report", "hierars/table-07", "--html", "one.html")[0] == 0
    assert "Table VII, played" in (tmp_path / "one.html").read_text()
    assert hierlab("report", "--all", "--html", "all.html")[0] == 0
    assert (tmp_path / "all.html").read_text().count(">not run<") == 59
    code, out, _ = hierlab("report", "--all")
    assert code == 0 and out.count("not run") == 59 and "contradict" in out


def test_runs_on_real_data_have_a_file_and_a_report_of_their_own(hierlab, tmp_path):
    hierlab(*RUN, "--seeds", "1")
    (tmp_path / "data").mkdir()
    code, out, _ = hierlab(*RUN, "--seeds", "1", "-p", "data_root=data")
    assert code == 0 and "table-07.laptop.real.jsonl" in out and "ours (real)" in out and "ours (twin)" not in out
    code, out, _ = hierlab("report", "hierars/table-07")
    assert code == 0 and 0 < out.index("profile laptop, real") < out.index("profile laptop, twin")
    code, out, _ = hierlab("report", "--all")
    assert out.count("laptop, 3 of 3 rows") == 2 and out.count("not run") == 58
    code, out, _ = hierlab("list", "experiments")
    assert "laptop, twin: 3" in out and "laptop, real: 3" in out
    (tmp_path / "data" / "twin.json").touch()  # exported from the twin
    code, out, _ = hierlab(*RUN, "--seeds", "1", "-p", "data_root=data")
    assert code == 0 and "table-07.laptop.exported.jsonl" in out and "ours (twin)" in out


def test_smoke_stays_out_of_the_book_and_is_not_shown(hierlab, tmp_path):
    code, out, _ = hierlab("run", "hierars/table-07", "--profile", "smoke", "--device", "cpu")
    assert code == 0 and "not shown" in out and "ours" not in out
    assert len(record.read(tmp_path / "runs" / "results" / "hierars" / "table-07.smoke.jsonl")) == 6
    assert not (tmp_path / "book").exists()
    code, _, err = hierlab("report", "hierars/table-07", "--profile", "smoke")
    assert code == 2 and "not shown" in err
    code, _, err = hierlab(
        "report", "hierars/table-07", "--profile", "smoke", "--records", "runs/results/hierars/table-07.smoke.jsonl"
    )
    assert code == 2 and "not shown" in err


def test_overridden_runs_have_a_file_of_their_own(hierlab, tmp_path):
    assert hierlab(*RUN, "-p", "steps=5", "-p", "width=0.5", "--rows", "both")[0] == 0
    folder = tmp_path / "book" / "results" / "hierars"
    (path,) = folder.iterdir()
    assert path.name.startswith("table-07.laptop.") and len(path.name.split(".")) == 4
    assert {json.dumps(entry["overrides"]) for entry in record.read(path)} == {'{"steps": 5}'}
    code, out, _ = hierlab("report", "hierars/table-07", "--profile", "laptop", "-p", "steps=5")
    assert code == 0 and "steps = 5" in out
    code, _, err = hierlab("report", "hierars/table-07", "--profile", "laptop")
    assert code == 2 and "no records" in err


def test_a_failed_job_ends_with_one_message_and_code_1(hierlab, tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.EXPERIMENTS, "hierars/table-07", fake_runner.experiment(both="fail"))
    code, _, err = hierlab(*RUN, "--out", "mine.jsonl")
    assert code == 1 and "both, seed 1: RuntimeError: the row is broken" in err and "mine.failed.jsonl" in err
    assert len(record.read(tmp_path / "mine.jsonl")) == 4
    (tmp_path / "mended").touch()
    assert hierlab(*RUN, "--out", "mine.jsonl")[0] == 1
    assert hierlab(*RUN, "--out", "mine.jsonl", "--retry-failed")[0] == 0


def test_ctrl_c_ends_with_code_130(hierlab, monkeypatch):
    monkeypatch.setitem(catalog.EXPERIMENTS, "hierars/table-07", fake_runner.experiment(both="stop"))
    code, _, err = hierlab(*RUN)
    assert code == 130 and "the same run goes on with the rest" in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("run", "hierars/table-99"), "hierars/table-07"),
        ((*RUN, "--rows", "sideways"), "coarse-to-fine, both, both-hsc"),
        ((*RUN, "-p", "stepps=3"), "Profile laptop takes: width (a number, 0.5)"),
        ((*RUN, "-p", "steps"), "name=value"),
        ((*RUN, "--seeds", "0"), "at least 1"),
        ((*RUN, "--workers", "0"), "at least 1"),
        (("run", "hierars/table-07", "--profile", "desktop"), "laptop"),
        (("run", "hierars/table-07", "--device", "cuda:99"), "not available"),
        (("report",), "a table's key or --all"),
        (("report", "hierars/table-07", "--all"), "a table's key or --all"),
        (("report", "--all", "--profile", "gpu"), "largest profile"),
        (("report", "hierars/table-07"), "hierlab run hierars/table-07"),
        (("report", "hierars/table-07", "--html", "page.txt"), ".html"),
        (("report", "hierars/table-07", "-p", "steps=3"), "--profile"),
        (("report", "hierars/table-07", "--profile", "laptop", "-p", "steps=3", "--records", "x.jsonl"), "names one"),
    ],
)
def test_bad_input_is_answered_with_what_there_is(hierlab, tmp_path, arguments, said):
    code, _, err = hierlab(*arguments)
    assert code == 2 and said in err, err
    assert not (tmp_path / "began.txt").exists()


def test_the_tables_notebook_is_executed_on_the_records(hierlab, tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook(metadata=KERNEL)
    book.cells = [
        nbformat.v4.new_code_cell(
            "profile = None\nseeds = None\nrows = None\ndevice = 'auto'\nout = None\ndata_root = None",
            metadata={"tags": ["parameters"]},
        ),
        nbformat.v4.new_code_cell("print(profile, seeds, rows, device, len(open(out).readlines()), data_root)"),
    ]
    source = tmp_path / "table-07-played.ipynb"
    nbformat.write(book, source)
    monkeypatch.setattr(_experiments_cli, "_notebook", lambda _: source)
    code, _, err = hierlab(*RUN, "-p", "steps=5")
    assert code == 2 and "has no parameter parameters; it has profile, seeds, rows, device, out, data_root" in err
    assert not (tmp_path / "began.txt").exists()
    code, out, _ = hierlab(*RUN, "--seeds", "1")
    assert code == 0 and "Notebook: runs/hierars/table-07.laptop.ipynb" in out
    done = nbformat.read(tmp_path / "runs" / "hierars" / "table-07.laptop.ipynb", 4)
    assert done.cells[-1].outputs[0]["text"] == "laptop 1 None cpu 3 None\n"
    (tmp_path / "data").mkdir()
    hierlab(*RUN, "--seeds", "1", "-p", "data_root=data")
    done = nbformat.read(tmp_path / "runs" / "hierars" / "table-07.laptop.ipynb", 4)
    assert done.cells[-1].outputs[0]["text"] == f"laptop 1 None cpu 3 {tmp_path / 'data'}\n"


def test_the_books_notebooks_take_what_the_command_line_gives():
    for experiment in catalog.EXPERIMENTS.values():
        source = _experiments_cli._notebook(experiment)
        if source is not None:
            names = ("profile", "seeds", "rows", "data_root", "parameters", "device", "out")
            _experiments_cli._check_notebook(source, dict.fromkeys(names))
