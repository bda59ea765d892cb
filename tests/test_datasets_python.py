"""Batches from a user's own Python file, and what becomes of that file's mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ispasp import datasets, user_code
from ispasp.calibration import as_batch
from ispasp.datasets import python_file
from ispasp.errors import CalibrationError, ISpaSPError
from ispasp.user_code import UserCodeError
from tests.small_images import digest_of

HEAD = "import torch\n"


def load(folder: Path, code: str, *, allow_code: bool = True, samples: int = 6, evaluation: int = 4):
    (folder / "mine.py").write_text(HEAD + code)
    return datasets.load(
        datasets.parse(f"python:{folder}/mine.py:make"), None, ("a", "b"),
        outputs=2, samples=samples, seed=0, evaluation=evaluation, allow_code=allow_code,
    )  # fmt: skip


def values(batches) -> list[int]:
    return torch.cat([as_batch(batch).tensors[0][:, 0] for batch in batches]).long().tolist()


NUMBERS = "x = torch.arange(20.).view(-1, 1)\ny = torch.arange(20) % 2\n"


@pytest.mark.parametrize(
    "code",
    [
        "def make():\n    return zip(x.split(4), y.split(4))",
        "def make():\n    for i in range(0, 20, 5):\n        yield x[i:i+5], y[i:i+5]",
        "def make():\n    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)",
        "def make():\n    return (x[:10], y[:10]), (x[6:], y[6:])",
        "def make():\n    return [(x[:7], y[:7])], [(x[6:10], y[6:10])]",
        "def make():\n    return x, y",
        "def make():\n    return [{'input': a, 'labels': b} for a, b in zip(x.split(8), y.split(8))]",
        "def make(i=0):\n    while True:\n        yield torch.full((1, 1), float(i)), y[:1] + i % 2\n        i += 1",
        "class make:\n    def __iter__(self):\n        return iter([(x, y)])",
    ],
)
def test_whatever_holds_batches_is_read_in_its_order(tmp_path: Path, code: str):
    found = load(tmp_path, NUMBERS + code)
    assert values(found.calibration) == list(range(6)) and values(found.evaluation) == [6, 7, 8, 9]
    assert torch.cat([as_batch(b).labels for b in found.evaluation]).tolist() == [0, 1, 0, 1]
    assert found.notes == () and found.classes == ("a", "b")
    assert len(digest_of(found)) == 64


@pytest.mark.parametrize(
    ("code", "copies"),
    [
        ("def make():\n    return [(x, y)], [(x, y)]", 4),
        ("def make():\n    return [(x[:6], y[:6])], [(x[5:9], 1 - y[5:9])]", 1),
        ("def make():\n    return [{'input': x[:6].bfloat16()}], [{'input': x[2:].bfloat16()}]", 4),
        ("def make():\n    return [(x[:6], y[:6])], [(x[6:], y[6:])]", 0),
    ],
)
def test_examples_that_serve_both_parts_are_noted(tmp_path: Path, code: str, copies: int):
    notes = " ".join(load(tmp_path, NUMBERS + code).notes)
    assert (f"{copies} of the evaluation examples are calibration examples too" in notes) == bool(copies)
    assert ("calibration examples too" in notes) == bool(copies)


@pytest.mark.parametrize(
    "code",
    [
        "def make():\n    return x",
        "def make():\n    return x[:6], x[6:]",
        "def make():\n    return list(x.split(1))",
    ],
)
def test_batches_without_labels(tmp_path: Path, code: str):
    found = load(tmp_path, NUMBERS + code)
    assert values(found.calibration) == list(range(6)) and values(found.evaluation) == [6, 7, 8, 9]
    assert all(isinstance(batch, torch.Tensor) for batch in found.calibration)
    assert "accuracy is unknown" in found.notes[0]


def test_too_few_examples_leave_a_fifth_for_the_evaluation(tmp_path: Path):
    found = load(tmp_path, NUMBERS + "def make():\n    return zip(x.split(4), y.split(4))", samples=100)
    assert values(found.calibration) == list(range(16)) and values(found.evaluation) == [16, 17, 18, 19]
    assert found.notes == ("Only 16 examples for calibration, where 100 were asked for.",)
    with pytest.raises(CalibrationError, match="at least two"):
        load(tmp_path, "def make():\n    return torch.zeros(1, 2)")


def test_what_would_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(python_file, "MAX_INPUT_BYTES", 100)
    endless = "def make():\n    while True:\n        yield torch.zeros(1, 5)"
    with pytest.raises(CalibrationError, match="fewer calibration examples"):
        load(tmp_path, endless, samples=10**9)


@pytest.mark.parametrize(
    "code, message",
    [
        ("def make():\n    return 3", "returns a int: return an iterable"),
        ("def make():\n    return []", "gives 0 examples|empty"),
        ("def make():\n    return [[[1]]]", "list among its inputs"),
        ("def make():\n    return [torch.zeros(0, 3)]", "no examples"),
        ("def make():\n    return [torch.tensor(3.)]", "no examples"),
        ("def make():\n    return [torch.zeros(6, 2), torch.zeros(4, 3)] * 5", "calibration|evaluation"),
        ("def make():\n    return torch.full((9, 2), float('nan')), torch.zeros(9, 2)", "NaN"),
    ],
)
def test_what_is_no_batch_is_one_sentence(tmp_path: Path, code: str, message: str):
    with pytest.raises(CalibrationError, match=message):
        load(tmp_path, code, samples=7)


def test_nothing_runs_without_permission(tmp_path: Path):
    touched = tmp_path / "touched"
    code = f"open({str(touched)!r}, 'w')\ndef make():\n    return torch.zeros(9, 2)"
    with pytest.raises(UserCodeError, match="must be permitted"):
        load(tmp_path, code, allow_code=False)
    assert not touched.exists()
    load(tmp_path, code)
    assert touched.exists()


@pytest.mark.parametrize(
    "code, line, said",
    [
        ("def make():\n    return 1 / 0", 3, "ZeroDivisionError: division by zero"),
        ("import nowhere_to_be_found", 2, "ModuleNotFoundError: No module"),
        ("def make(:\n    pass", 2, "SyntaxError"),
        ("raise SystemExit(3)", 2, "SystemExit: 3"),
        ("def make():\n    yield torch.zeros(2, 2)\n    raise KeyError('late')", 4, "KeyError: 'late'"),
        ("def make():\n    return torch.zeros(2, 3) @ torch.zeros(2, 3)", 3, "RuntimeError: "),
        ("def make():\n    return make()", 3, "RecursionError"),
        ("def make():\n    raise ValueError", 3, "raised ValueError; mend"),
    ],
)
def test_code_that_raises_is_named_with_file_and_line(tmp_path: Path, code: str, line: int, said: str):
    with pytest.raises(UserCodeError) as caught:
        load(tmp_path, code)
    message = str(caught.value)
    assert f"mine.py, line {line}, raised " in message and said in message and "\n" not in message


@pytest.mark.parametrize(
    "spec, message",
    [
        ("{folder}/nowhere.py:make", "cannot be read"),
        ("{folder}/mine.py:other", "no function 'other'"),
        ("{folder}/mine.py:value", "no function 'value'"),
        ("{folder}/mine.py:needs", "cannot be called without arguments .*'x'"),
        ("{folder}/mine.txt:make", "give a file and a function"),
        ("make", "give a file and a function"),
        ("{folder}/mine.py", "give a file and a function"),
    ],
)
def test_a_function_that_is_not_there_is_one_sentence(tmp_path: Path, spec: str, message: str):
    (tmp_path / "mine.py").write_text("value = 3\ndef needs(x): pass\n")
    with pytest.raises(ISpaSPError, match=message):
        user_code.call(spec.format(folder=tmp_path), allow_code=True)


def test_bytes_that_are_no_python(tmp_path: Path):
    for content in (b"\0\0\0", b"\xff\xfe", b"x = '\xe9'"):
        (tmp_path / "mine.py").write_bytes(content)
        with pytest.raises(UserCodeError, match="mine.py.* raised (SyntaxError|ValueError)"):
            user_code.call(f"{tmp_path}/mine.py:make", allow_code=True)


def test_a_file_may_import_its_neighbour_and_leaves_no_trace(tmp_path: Path):
    (tmp_path / "neighbour_of_mine.py").write_text("def late():\n    import colorsys\n    return 7\n")
    code = (
        "from dataclasses import dataclass\nimport neighbour_of_mine\n@dataclass\nclass Kept:\n    x: 'int' = 3\n"
        "def make():\n    return Kept(neighbour_of_mine.late())\n"
    )
    (tmp_path / "mine.py").write_text(code)
    before = list(sys.path)
    assert user_code.call(f"{tmp_path}/mine.py:make", allow_code=True).x == 7
    assert sys.path == before
    # A changed file counts as it is now.
    (tmp_path / "mine.py").write_text("def make():\n    return 8\n")
    assert user_code.call(f"{tmp_path}/mine.py:make", allow_code=True) == 8
