"""Execute the walk-throughs in place, and keep of their outputs what says something to a reader.

    python notebooks/execute.py                 all of them
    python notebooks/execute.py 1 5             those whose names begin so

Progress bars and machine-made metadata are left out. Every figure stays as plotly made it, and gets a picture
beside it for viewers that know no plotly, where Debian's chromium is there to draw it.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"
CHROMIUM = Path("/usr/bin/chromium")
_WIDTH = 800  # of a picture of a figure, in pixels


def walk_throughs() -> list[Path]:
    """The notebooks of this folder, in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(notebook: nbformat.NotebookNode, folder: Path, seconds: int = 300) -> nbformat.NotebookNode:
    """Run a notebook in a fresh kernel that finds the library; its outputs are written into it.

    Args:
        folder: where the kernel starts; what Jupyter itself writes goes beside it.
        seconds: limit for one cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    places = {}
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        place = folder.parent / f"{folder.name}-{name.lower()}"
        place.mkdir(exist_ok=True)
        places[name] = str(place)
    paths = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with mock.patch.dict(os.environ, {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **places}):
        found = {"metadata": {"path": str(folder)}}
        client = NotebookClient(
            notebook, timeout=seconds, kernel_name="python3", record_timing=False, resources=found
        )
        done: nbformat.NotebookNode = client.execute()
    return done


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leave out progress bars, plain forms of what has a rich one, and what only this machine has."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = nbformat.from_dict({}), f"cell-{number}"
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if len(data) > 1:
                data.pop("text/plain", None)
            if PLOTLY in data:
                # The theme of every figure, which plotly has anyway.
                data[PLOTLY].get("layout", {}).pop("template", None)
                output.metadata = nbformat.from_dict({})


def figures(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    """The mime bundles of all outputs that are figures."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if PLOTLY in output.get("data", {}):
                yield output.data


def draw(notebook: nbformat.NotebookNode) -> None:
    """Put a picture beside every figure."""
    from playwright.sync_api import sync_playwright

    script = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.add_script_tag(content=script)
        for data in figures(notebook):
            address = page.evaluate(
                "([figure, width]) => Plotly.toImage({data: figure.data, layout: {...figure.layout, "
                "paper_bgcolor: '#fff'}}, {format: 'png', width, height: figure.layout.height || 400, scale: 1.25})",
                [json.loads(json.dumps(data[PLOTLY])), _WIDTH],
            )
            content = base64.b64decode(address.partition(",")[2])
            data[PICTURE] = base64.b64encode(content).decode()
        browser.close()


def main(chosen: list[str]) -> None:
    for path in walk_throughs():
        if chosen and not path.name.startswith(tuple(chosen)):
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "work").mkdir()
            notebook = execute(read(path), Path(folder) / "work")
        took = time.perf_counter() - began
        clean(notebook)
        if CHROMIUM.exists():
            draw(notebook)
        else:
            print(f"No chromium at {CHROMIUM}: the figures of {path.name} get no pictures.")
        nbformat.write(notebook, path)
        print(f"{path.name}: {took:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
