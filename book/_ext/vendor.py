"""Fetch the JavaScript that the built pages need, so that they can be read without a network.

Maths needs MathJax, and the saved state of widgets needs RequireJS and the widgets' HTML manager; by default
Jupyter Book links to them on content delivery networks. Where npm is at hand, this script puts pinned copies
into the folder named on the command line, and `hierlab_book.py` makes the pages use those. Where it is not,
or the registry cannot be reached, the links stay, and a line says so; nothing else depends on it.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# npm package, file in it -> name in the folder
FILES = {
    "mathjax@3.2.2": ("package/es5/tex-svg-full.js", "mathjax.js"),
    "requirejs@2.3.8": ("package/require.js", "require.js"),
    "@jupyter-widgets/html-manager@1.0.15": ("package/dist/embed-amd.js", "embed-amd.js"),
}
# The map widget: Python's own copy, so that its version is that of the kernel which saved the state.
LEAFLET = Path(sys.prefix, "share", "jupyter", "nbextensions", "jupyter-leaflet", "index.js")
PATHS = """requirejs.config({
  paths: { "jupyter-leaflet": document.currentScript.src.replace(/widget-paths\\.js.*$/, "jupyter-leaflet") },
});
"""


def fetch(package, member, target):
    """Write one file of an npm package to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [shutil.which("npm"), "pack", "--silent", "--pack-destination", folder, package]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=180, cwd=folder)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as tar:
            target.write_bytes(tar.extractfile(member).read())


def main(folder):
    folder = Path(folder)
    done = folder / "complete"
    stamp = "\n".join(FILES)
    if done.exists() and done.read_text() == stamp:
        return
    if shutil.which("npm") is None:
        print("npm not found: the pages will take maths and widgets from a CDN (see book/reading.md).")
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for package, (member, name) in FILES.items():
            fetch(package, member, folder / name)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"npm could not fetch {package} ({error}): the pages will take maths and widgets from a CDN.")
        return
    shutil.copyfile(LEAFLET, folder / "jupyter-leaflet.js")
    (folder / "widget-paths.js").write_text(PATHS)
    done.write_text(stamp)


if __name__ == "__main__":
    main(sys.argv[1])
