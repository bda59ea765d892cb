"""The app's parts that need no page: a group's weights and answers, and the words for models and data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ispasp import narrative, pictures, zoo
from ispasp.blocks import find_blocks
from ispasp.calibration import Batch
from ispasp.datasets import parse
from ispasp.errors import SettingError
from ispasp.inspector import group_filters
from ispasp.records import Block, BlockStarted, Cut
from ispasp.vocabulary import example_word
from ui import library, words
from ui.components import _label


class Attention(nn.Module):
    """One layer of attention in which the module makes queries, keys and values of 2 heads of 3 features."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.end = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        end: torch.Tensor = self.end(mixed)
        return end


def test_the_weights_of_a_group_are_the_rows_that_make_it() -> None:
    model = zoo.load("cifar10_resnet20")
    block = Block("layer1.0.conv1", 16, cuts=(Cut("layer1.0.conv1", "producer"),))
    expected = model.get_submodule(block.name).weight[3].detach()  # type: ignore[union-attr,index]
    assert np.array_equal(group_filters(model, block, 3), expected.numpy())

    attention = Attention().eval()
    found = [b for b in find_blocks(attention, Batch((torch.randn(2, 4, 6),), {})) if b.prunable]
    (head,) = [b for b in found if b.kind == "head"]
    rows = group_filters(attention, head, 1)
    weight = attention.attention.in_proj_weight.detach()
    assert np.array_equal(rows, torch.cat([weight[3:6], weight[9:12], weight[15:18]]).numpy())
    assert pictures.filter_sheet(rows).shape[2] == 3

    linear = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    neuron = Block("0", 4, kind="neuron", cuts=(Cut("0", "producer"),))
    assert np.array_equal(group_filters(linear, neuron, 0), linear[0].weight[0].detach().numpy())


@pytest.mark.parametrize(
    ("block", "group", "said"),
    [
        (Block("0", 4, cuts=(Cut("0", "producer"),)), 4, "groups 0 to 3, not 4"),
        (Block("0", 5, cuts=(Cut("0", "producer"),)), 4, "it is another one"),
        (Block("gone", 4, cuts=(Cut("gone", "producer"),)), 0, "no layer 'gone'"),
    ],
)
def test_a_group_that_the_model_does_not_have(block: Block, group: int, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        group_filters(nn.Sequential(nn.Linear(5, 4)), block, group)


def started(kind: str, *shape: int) -> BlockStarted:
    sample = torch.zeros(shape).half()
    sample[:, 1] = 2.0
    return BlockStarted(Block("b", shape[1], kind=kind), 0, 1, 1, False, sample)


def test_answers_of_every_kind_of_group() -> None:
    maps = library.answers(started("channel", 4, 3, 5, 5), 1)
    assert len(maps) == 4 and maps[0].picture is not None and maps[0].picture.min() == 255
    assert [one.number for one in library.answers(started("neuron", 2, 3), 1)] == [2.0, 2.0]
    assert [one.number for one in library.answers(started("channel", 2, 3, 4), 1)] == [2.0, 2.0]
    for answer in (
        *library.answers(started("neuron", 2, 3, 7), 1),
        *library.answers(started("head", 2, 3, 5, 7), 1),
    ):
        assert answer.number == 2.0 and answer.picture is not None
        assert answer.picture.shape == (12, 7 * 12, 3)  # a cell per token


def test_examples_are_called_what_they_are() -> None:
    sources = {"folder:x": "image", "noise": "image", "sample:nli": "sentence pair", "sample:mnist": "image"}
    sources |= {"pairs:x.tsv": "sentence pair", "python:a.py:f": "example"}
    assert {text: example_word(parse(text)) for text in sources} == sources


REPORT = {
    "params_before": 10, "params_after": 5, "macs_before": 100, "macs_after": 50, "agreement": 0.9,
    "accuracy_before": None, "accuracy_after": None, "blocks": [], "distil": None,
}  # fmt: skip


def test_accuracy_without_labels_is_unknown() -> None:
    dense, pruned = narrative.result_rows(REPORT, example="sentence pair")
    assert dense["Accuracy"] == pruned["Accuracy"] == "unknown" and pruned["Agreement"] == "90.0 %"
    assert pruned["MACs per sentence pair"] == "50, −50 %"
    unmeasured, _ = narrative.result_rows({**REPORT, "agreement": None})
    assert "Accuracy" not in unmeasured


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cifar10_resnet20", "cifar10_resnet20"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("folder:/home/me/data/photos", "folder:…/photos"),
        ("torchvision:CIFAR10@/home/me/data", "torchvision:CIFAR10@…/data"),
        ("python:/home/me/mine.py:model", "python:…/mine.py:model"),
        ("/home/me/runs/.uploads/0123456789abcdef.pth", "upload 01234567.pth"),
        ("zip:/home/me/runs/.uploads/0123456789abcdef.zip", "zip:upload 01234567.zip"),
    ],
)
def test_sources_are_short_in_lists(text: str, said: str) -> None:
    assert words.source_words(text) == said


def test_words_from_outside_are_no_markdown() -> None:
    said = words.escaped("a_b ![x](http://e.org/i.png) <b> `c` *d* $e$")
    assert said == r"a_b !\[x\](http://e.org/i.png) \<b\> \`c\` \*d\* \$e\$"


def test_settings_that_came_back_from_disk_are_the_same() -> None:
    usual = {"kinds": ("channel", "neuron", "head"), "data": "", "weights": ""}
    assert words.unusual_words({**usual, "kinds": ["head", "neuron", "channel"]}, usual) == []
    assert words.unusual_words({"kinds": ["head"], "data": "noise", "weights": "/a/b/c.pth"}, usual) == [
        "weights …/c.pth", "data noise", "only attention heads",
    ]  # fmt: skip


def test_long_names_of_blocks_are_cut_where_they_differ() -> None:
    assert _label("layer3.2.conv1") == "layer3.2.conv1"
    assert _label("encoder.layers.encoder_layer_11.self_attention") == "11.self_attention"
    assert _label("bert.encoder.layer.0.intermediate.dense") == "0.intermediate.dense"
