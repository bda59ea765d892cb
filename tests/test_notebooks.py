"""The walk-throughs: executed in a fresh kernel they say what their committed outputs say, in kind."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import FOLDER, PICTURE, PLOTLY, clean, execute, figures, read, walk_throughs

PATHS = [pytest.param(path, id=path.stem) for path in walk_throughs()]


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: nbformat.NotebookNode) -> list[list[set[str]]]:
    """What each cell leaves behind, as kinds of outputs; pictures of figures are drawn afterwards."""
    return [
        [set(output.get("data", {output.get("name"): ""})) - {PICTURE} for output in cell.outputs]
        for cell in code(notebook)
    ]


@pytest.mark.parametrize(
    "path", [PATHS[0], *(pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in PATHS[1:])]
)
def test_a_walk_through_runs(path: Path, tmp_path: Path) -> None:
    committed, fresh = read(path), read(path)
    for cell in code(fresh):
        cell.outputs, cell.execution_count = [], None
    (tmp_path / "work").mkdir()
    execute(fresh, tmp_path / "work")
    clean(fresh)
    assert [cell.source for cell in fresh.cells] == [cell.source for cell in committed.cells]
    assert kinds(fresh) == kinds(committed)
    assert not list((tmp_path / "work").iterdir())  # nothing is left behind


@pytest.mark.parametrize("path", PATHS)
def test_the_committed_outputs_are_for_readers(path: Path) -> None:
    committed = read(path)
    nbformat.validate(committed)
    assert [cell.execution_count for cell in code(committed)] == list(range(1, len(code(committed)) + 1))
    drawn = list(figures(committed))
    assert drawn and all(data.get(PICTURE) for data in drawn)
    for cell in code(committed):
        for output in cell.outputs:
            assert output.output_type in ("stream", "execute_result", "display_data")
            texts = output.get("data", {"text": output.get("text", "")})
            said = " ".join(str(text) for kind, text in texts.items() if kind not in (PLOTLY, PICTURE))
            assert not re.search(
                r"/(home|root|tmp|usr|work|Users)/|[Ww]arning|Traceback|0x[0-9a-f]{6}", said
            ), said


def test_they_are_small_and_listed() -> None:
    paths = walk_throughs()
    assert len(paths) >= 4 and sum(path.stat().st_size for path in paths) < 3e6
    listed = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((.+?\.ipynb)\)", listed) == [path.name for path in paths]
    links = [link for path in paths for link in re.findall(r"\]\(([^)]+\.ipynb)\)", path.read_text())]
    assert links and {FOLDER / link for link in links} <= set(paths)
