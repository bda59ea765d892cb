"""A user's own Python function gives the model: only where permitted, and its mistakes are one sentence each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ispasp import graph, models
from ispasp.errors import ModelError


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return list(own) == list(state) and all(torch.equal(own[name], state[name]) for name in own)


Write = Callable[[str], str]
IMPORTS = "import torch\nfrom torch import nn\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a Python file and give the source of its function ``make``."""

    def write_file(body: str) -> str:
        (tmp_path / "mine.py").write_text(IMPORTS + body)
        return f"python:{tmp_path / 'mine.py'}:make"

    return write_file


PAIR = "def make():\n    return nn.Linear(4, 2), torch.zeros(3, 4)\n"


def test_a_function_gives_model_and_inputs(write: Write):
    loaded = models.load(models.parse(write(PAIR)), allow_code=True)
    assert isinstance(loaded.model, nn.Linear) and not loaded.model.training
    assert loaded.example.inputs[0].shape == (2, 4)
    assert loaded.preparation is None and loaded.classes == ()
    record = json.loads(json.dumps(loaded.record))
    assert record["path"].endswith("mine.py") and record["function"] == "make"
    assert same(models.build(record, allow_code=True), loaded.model.state_dict())


def test_a_model_may_carry_its_inputs_and_read_several_by_name(write: Write):
    text = write(
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(4, 2)\n"
        "        self.example_inputs = {'a': torch.ones(1, 4), 'b': torch.ones(1, 4), 'labels': torch.tensor([1])}\n"
        "    def forward(self, a, b):\n"
        "        return self.layer(a + b)\n"
        "def make():\n"
        "    return Two()\n"
    )
    loaded = models.load(models.parse(text), allow_code=True)
    assert {name: value.shape for name, value in loaded.example.keywords.items()} == {
        "a": (2, 4),
        "b": (2, 4),
    }
    assert len(graph.trace(loaded.model, loaded.example).nodes) > 2


def test_a_function_s_model_takes_a_checkpoint(write: Write, tmp_path: Path):
    state = nn.Linear(4, 2).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    text = write(PAIR)
    path = str(tmp_path / "w.safetensors")
    assert same(models.load(models.parse(text, path), allow_code=True).model, state)
    with pytest.raises(ModelError, match="gives its model the weights itself"):
        models.load(models.parse(text, "random"), allow_code=True)


def test_nothing_of_the_file_runs_without_permission(write: Write, tmp_path: Path):
    text = write(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{PAIR}")
    for attempt in (
        lambda: models.load(models.parse(text)),
        lambda: models.build({"kind": "python", "path": str(tmp_path / "mine.py"), "function": "make"}),
    ):
        with pytest.raises(ModelError, match=r"runs the code.*allow_code=True.*ISPASP_ALLOW_CODE=1"):
            attempt()
    assert not (tmp_path / "ran").exists()
    models.load(models.parse(text), allow_code=True)
    assert (tmp_path / "ran").exists()


FORWARD = (
    "class Net(nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.layer = nn.Linear(4, 2)\n"
    "    def forward(self, x, mask):\n"
    "        return self.layer(x) * mask\n"
)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x = 1 / 0\n", r"mine\.py, line 3, raised ZeroDivisionError: division by zero"),
        ("def make():\n    raise SystemExit(3)\n", r"mine\.py, line 4, raised SystemExit: 3"),
        ("def make(:\n", r"mine\.py, line 3, raised SyntaxError"),
        ("import no_such_thing\n", r"mine\.py, line 3, raised ModuleNotFoundError"),
        ("def other():\n    pass\n", r"has no function 'make'"),
        ("def make(size):\n    pass\n", r"missing a required argument: 'size'"),
        ("def make():\n    pass\n", r"returned NoneType: return \(model, example inputs\)"),
        ("def make():\n    return torch.zeros(1)\n", r"returned Tensor: return \(model, example inputs\)"),
        ("def make():\n    return 1, nn.ReLU(), 2\n", r"returned int, ReLU, int: return"),
        ("def make():\n    return nn.ReLU()\n", r"returned a ReLU without example inputs"),
        ("def make():\n    return nn.ReLU(), 5\n", r"example inputs of .* cannot be used: .* int"),
        ("def make():\n    return nn.ReLU(), [1.5]\n", r"example inputs of .* cannot be used: .* float"),
        (
            "def make():\n    return nn.ReLU(), torch.tensor([[float('nan')]])\n",
            r"example inputs of .* cannot be used: Batch 1 of the example data has 1 values that are NaN",
        ),
        (
            f"{FORWARD}def make():\n    return Net(), torch.zeros(2, 4)\n",
            r"forward of Net takes \(x, mask\), which .* do not fit \(missing a required argument: 'mask'\)",
        ),
        (
            f"{FORWARD}def make():\n    return Net(), (torch.zeros(2, 4), torch.ones(2, dtype=torch.long))\n",
            r"'mask'; its last part, whole numbers, was taken for labels",
        ),
        (
            f"{FORWARD}def make():\n    return Net(), (torch.zeros(2, 5), torch.ones(2, 2))\n",
            r"Net fails on its example inputs \(2, 5\), \(2, 2\): .*mine\.py, line 8, raised RuntimeError: .*mat1",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_one_sentence(write: Write, body: str, said: str):
    with pytest.raises(ModelError, match=said) as raised:
        models.load(models.parse(write(body)), allow_code=True)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_python_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"absent\.py cannot be read"):
        models.load(models.parse(f"python:{tmp_path}/absent.py:make"), allow_code=True)
    for name in ("file.txt:make", "file.py", "file.py:a b"):
        with pytest.raises(ModelError, match=r"path/to/file\.py:function"):
            models.load(models.parse(f"python:{name}"), allow_code=True)
