import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile

import pytest

from hierlab.data.archives import unpack
from hierlab.data.manifest import Ledger, check, checksum


def put(text):
    return lambda path: path.write_text(text)


def test_a_ledger_goes_on_after_the_last_finished_file(tmp_path):
    ledger = Ledger(tmp_path / "out", {"size": 8})
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == {"settings": {"size": 8}, "complete": False}
    assert ledger.write("a/one.txt", put("1"))

    def broken(path):
        path.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.write("a/two.txt", broken)
    assert not list((tmp_path / "out/a").glob("*two*"))
    (tmp_path / "out/a/.three.abc.part.txt").write_text("left by a killed process")
    again = Ledger(tmp_path / "out", {"size": 8})
    assert not list((tmp_path / "out/a").glob(".*"))
    assert not again.write("a/one.txt", put("another"))
    assert again.write("a/two.txt", put("2"))
    again.finish(pages=3)
    told = json.loads((tmp_path / "out/manifest.json").read_text())
    assert told == {"settings": {"size": 8}, "complete": True, "files": 2, "bytes": 2, "pages": 3}
    done = subprocess.run(["sha256sum", "-c", "checksums.sha256"], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("OK") == 2


def test_damaged_lost_and_unwanted_files(tmp_path):
    ledger = Ledger(tmp_path, {})
    for name in ("a", "b", "c"):
        ledger.write(name, put(name))
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").unlink()
    with open(tmp_path / "checksums.sha256", "a") as file:
        file.write("12ab  half-a-li")
    again = Ledger(tmp_path, {})
    assert [again.has(name) for name in ("a", "b", "c")] == [False, False, True]
    with pytest.raises(ValueError, match="2 files are not finished: d, e"):
        again.finish({"c", "d", "e"})
    again.finish({"c"})
    assert (tmp_path / "checksums.sha256").read_text() == f"{hashlib.sha256(b'c').hexdigest()}  c\n"
    assert not (tmp_path / "a").exists()


def test_other_settings_and_other_folders_are_refused(tmp_path):
    Ledger(tmp_path / "out", {"size": 8, "rule": "majority"})
    with pytest.raises(ValueError, match=r"begun with other settings \(size 8 then, 9 now\): give another folder"):
        Ledger(tmp_path / "out", {"size": 9, "rule": "majority"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        Ledger(tmp_path / "mine", {})
    with pytest.raises(ValueError, match="is a file"):
        Ledger(tmp_path / "mine/thesis.txt", {})


def test_published_checksums(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert checksum(path, "md5") == "900150983cd24fb0d6963f7d28e17f72"
    check(path, "900150983CD24FB0D6963F7D28E17F72", "md5")
    with pytest.raises(ValueError, match=r"a\.bin: its md5 is 9001.*fetch it again"):
        check(path, "0" * 32, "md5")


# -- archives ---------------------------------------------------------------------------------------------------------


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if isinstance(content, tarfile.TarInfo) else len(content)
            archive.addfile(info, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MEMBERS = {"WHDLD/Images/a.jpg": b"jpg" * 50, "WHDLD/ImagesPNG/a.png": b"png"}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_are_unpacked_and_gone_on_with(tmp_path, pack):
    archive = pack(tmp_path / ("a.zip" if pack is zipped else "a.tar.gz"), MEMBERS)
    files = unpack(archive, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in files] == list(MEMBERS)
    assert [path.read_bytes() for path in files] == list(MEMBERS.values())
    files[0].unlink()
    kept = files[1].stat().st_mtime_ns
    unpack(archive, tmp_path / "out")
    assert files[0].read_bytes() == MEMBERS["WHDLD/Images/a.jpg"] and files[1].stat().st_mtime_ns == kept


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:\\evil", "..\\evil", "a\\..\\..\\evil"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_nothing_leaves_the_folder(tmp_path, name, pack):
    archive = pack(tmp_path / ("a.zip" if pack is zipped else "a.tgz"), {"good": b"1", name: b"2"})
    with pytest.raises(ValueError, match=r"outside .*nothing was unpacked"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("good", "evil")]


@pytest.mark.parametrize(
    "member", [link("l", "/etc/passwd"), link("l", "good", tarfile.LNKTYPE), link("l", "", tarfile.FIFOTYPE)]
)
def test_links_and_devices_are_refused(tmp_path, member):
    archive = tarred(tmp_path / "a.tar.gz", {"good": b"1", "l": member})
    with pytest.raises(ValueError, match="l is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_and_a_link_on_disk(tmp_path):
    info = zipfile.ZipInfo("l")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out/WHDLD")
    with pytest.raises(ValueError, match="outside"):
        unpack(zipped(tmp_path / "b.zip", MEMBERS), tmp_path / "out")
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_damaged_archives(tmp_path, kept):
    noise = os.urandom(20_000)
    for archive in (zipped(tmp_path / "a.zip", {"n": noise}), tarred(tmp_path / "b.tar.gz", {"n": noise})):
        content = archive.read_bytes()
        archive.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(ValueError, match="is damaged or a part of the archive"):
            unpack(archive, tmp_path / "out")
    assert (
        not [path for path in (tmp_path / "out").rglob("*") if path.is_file()] if (tmp_path / "out").exists() else True
    )
    (tmp_path / "c.rar").write_bytes(b"Rar!")
    with pytest.raises(ValueError, match=r"c\.rar is not unpacked here.*with a tool of its own"):
        unpack(tmp_path / "c.rar", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_a_flipped_byte_is_found(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"n": os.urandom(5000)})
    content = bytearray(archive.read_bytes())
    content[2500] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out/n").exists()
