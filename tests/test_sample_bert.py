"""nli_bert: a folder that transformers reads, and a model that torch.export traces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sample_models
from ispasp import data, zoo
from ispasp.calibration import as_batch
from ispasp.graph import trace

transformers = pytest.importorskip("transformers")
FOLDER = Path(sample_models.__file__).parent / "nli_bert"


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    batch = dict(data.sample_batches("nli_bert", "test", batch_size=8)[0])
    del batch["labels"]
    return batch


@torch.no_grad()
def logits(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits


def test_transformers_reads_the_folder(inputs):
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        FOLDER, local_files_only=True, output_loading_info=True
    )
    assert type(model) is transformers.BertForSequenceClassification
    assert not any(info.values())
    assert tuple(model.config.id2label[i] for i in range(3)) == zoo.card("nli_bert").classes
    assert torch.equal(logits(model.eval(), inputs), logits(zoo.load("nli_bert"), inputs))


def test_the_folders_tokenizer_is_the_zoos():
    shipped = transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    assert type(shipped) is transformers.BertTokenizer
    made = zoo.preparation("nli_bert").tokenizer
    assert shipped.get_vocab() == made.get_vocab()
    assert shipped.model_max_length == made.model_max_length == zoo.card("nli_bert").max_length
    said = ["Every old dog runs in the park, quickly!", "the poodle is seen by a doctor"]
    assert dict(shipped(said, said[::-1])) == dict(made(said, said[::-1]))


def test_it_is_the_configuration_that_ships():
    shipped = transformers.BertConfig.from_pretrained(FOLDER, local_files_only=True).to_dict()
    built = zoo.build("nli_bert").config.to_dict()
    told = {"architectures", "dtype", "transformers_version"}
    assert {k: v for k, v in shipped.items() if k not in told} == {
        k: v for k, v in built.items() if k not in told
    }


def test_padding_does_not_change_the_answer(inputs):
    model = zoo.load("nli_bert")
    for row in range(8):
        length = int(inputs["attention_mask"][row].sum())
        assert length < 32
        cut = {key: value[row : row + 1, :length] for key, value in inputs.items()}
        whole = {key: value[row : row + 1] for key, value in inputs.items()}
        assert torch.allclose(logits(model, cut), logits(model, whole), atol=1e-4)


def test_the_order_of_the_sentences_counts():
    """ "Every dog runs" and "every poodle runs": one follows from the other, not the other way."""
    model, prepared = zoo.load("nli_bert"), zoo.preparation("nli_bert")
    sentences = ["every dog runs", "every poodle runs"]
    answers = logits(model, prepared.encode(sentences, sentences[::-1])).argmax(1)
    assert [zoo.card("nli_bert").classes[i] for i in answers] == ["entailment", "neutral"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_torch_export_traces_it_with_any_batch_size(attention: str, inputs):
    model = zoo.load("nli_bert")
    model.set_attn_implementation(attention)
    traced = trace(model, as_batch(inputs))
    assert "bert.encoder.layer.1.intermediate.dense.weight" in {node.target for node in traced.fixed}
