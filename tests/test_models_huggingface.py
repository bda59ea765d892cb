"""Hugging Face models from a folder or the hub: real classes, tokenizers and weights, and nothing that runs code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ispasp import graph, models, zoo
from ispasp.calibration import Batch
from ispasp.errors import ModelError
from ispasp.preparation import TextPreparation
from tests.small_huggingface import BERT, SETTINGS, TEXT, WIDTHS, load, save_tokenizer, saved

transformers = pytest.importorskip("transformers")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def inputs(model: Any, count: int) -> dict[str, torch.Tensor]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(count, 3, 16, 16)}
    tokens = torch.randint(3, 40, (count, 8))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def difference(one: nn.Module, other: nn.Module, batch: Batch) -> float:
    with torch.no_grad():
        return float((one(**batch.keywords).logits - other(**batch.keywords).logits).abs().max())


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_saved_classifier_comes_back_whole_and_can_be_built_again(name: str, tmp_path: Path):
    model = saved(tmp_path, name)
    loaded = load(tmp_path)
    batch = loaded.example
    assert type(loaded.model) is type(model) and not loaded.model.training
    assert len(batch) == 2 and difference(model, loaded.model, batch) == 0
    assert loaded.classes == ("entailment", "neutral", "contradiction")
    assert loaded.words == f"{name} from {tmp_path}, the weights there"

    if "input_ids" in batch.keywords:  # padding is among the tokens
        assert 0 < int(batch.keywords["attention_mask"].sum()) < batch.keywords["attention_mask"].numel()

    record = json.loads(json.dumps(loaded.record))
    rebuilt = models.build(record)
    assert type(rebuilt) is type(model) and not rebuilt.training
    rebuilt.load_state_dict(loaded.model.state_dict(), strict=True)
    assert difference(rebuilt, model, batch) == 0


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_traced_graph_takes_any_batch_and_any_padding(name: str, attention: str, tmp_path: Path):
    if "ResNet" in name and attention == "sdpa":
        pytest.skip("it has no attention")
    kind = getattr(transformers, name)
    model = kind._from_config(kind.config_class(**SETTINGS[name]), attn_implementation=attention).eval()
    keywords, other = inputs(model, 2), inputs(model, 5)
    if "attention_mask" in keywords:
        other["attention_mask"].tril_(3)  # nothing is padded in the example, the more in what follows
    program = graph.trace(model, Batch((), keywords)).nodes[0].graph.owning_module
    assert program is not None
    with graph.exclusive(), torch.no_grad():
        assert torch.allclose(program(**other).logits, model(**other).logits, atol=1e-6)


def test_attention_is_one_operation_wherever_transformers_has_it(tmp_path: Path):
    saved(tmp_path, BERT)
    edit(tmp_path / "config.json", _attn_implementation="eager", attn_implementation="someone/kernels")
    loaded = load(tmp_path)
    assert loaded.model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert "someone/kernels" not in json.dumps(loaded.record)


def test_weights_may_be_random_local_or_in_several_files(tmp_path: Path):
    model = saved(tmp_path, BERT)
    untrained = load(tmp_path, "random")
    assert "random weights: accuracy means nothing" in untrained.words
    again = load(tmp_path, "random")
    assert difference(untrained.model, again.model, again.example) == 0
    assert difference(untrained.model, model, again.example) > 0

    other = untrained.model.state_dict()
    torch.save({"state_dict": other}, tmp_path / "other.pth")
    local = load(tmp_path, str(tmp_path / "other.pth"))
    assert difference(untrained.model, local.model, local.example) == 0

    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert difference(model, load(tmp_path).model, again.example) == 0


def test_a_bin_file_is_read_where_there_are_no_safetensors_and_never_runs_code(tmp_path: Path):
    model = saved(tmp_path, BERT)
    (tmp_path / "model.safetensors").unlink()
    halves = model.half().state_dict()
    halves["classifier.bias"] = halves["bert.pooler.dense.bias"][:3]  # two tensors of one memory
    torch.save(halves, tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path)
    memory = [value.untyped_storage().data_ptr() for value in loaded.model.state_dict().values()]
    assert len(set(memory)) == len(memory)
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    assert difference(model.float(), loaded.model, loaded.example) == 0

    class Touch:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trap"),)

    torch.save({"x": Touch()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin holds more than tensors"):
        load(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_older_names_are_translated(tmp_path: Path):
    model = saved(tmp_path, BERT)
    file = tmp_path / "model.safetensors"
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in load_file(file).items()
    }
    save_file(old | {"bert.embeddings.position_ids": torch.arange(32)[None]}, file)
    loaded = load(tmp_path)
    assert difference(model, loaded.model, loaded.example) == 0


def test_weights_of_another_model_name_three_mismatches(tmp_path: Path):
    saved(tmp_path, BERT)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    bias = state.pop("bert.pooler.dense.bias")
    state |= {"classifier.weight": torch.zeros(5, 16), "extra": torch.zeros(1)}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ModelError) as raised:
        load(tmp_path, str(tmp_path / "other.safetensors"))
    assert str(raised.value).startswith(
        f"The weights in {tmp_path}/other.safetensors do not belong to this {BERT}: missing bert.pooler.dense.bias; "
        "unexpected extra; classifier.weight is (5, 16) in place of (3, 16). Give"
    )
    bias[0] = float("nan")
    save_file(load_file(file) | {"bert.pooler.dense.bias": bias}, file)
    with pytest.raises(ModelError, match="bert.pooler.dense.bias in .* not finite"):
        load(tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load(tmp_path)


def test_a_model_without_classifier_is_loaded_and_said_to_put_out_features(tmp_path: Path):
    kind = transformers.BertForMaskedLM
    torch.manual_seed(1)
    model = kind(kind.config_class(**(WIDTHS | TEXT))).eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.model) is transformers.BertModel and loaded.classes == ()
    assert "no classifier is in this checkpoint (BertForMaskedLM)" in loaded.words
    assert "accuracy and agreement mean nothing" in loaded.words
    with torch.no_grad():
        ours = loaded.model(**loaded.example.keywords).last_hidden_state
        assert torch.equal(ours, model.bert(**loaded.example.keywords).last_hidden_state)
    assert type(models.build(loaded.record)) is transformers.BertModel


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "yes", 7: "no"}])
def test_made_up_and_missing_class_names_count_as_unknown(labels: dict[int, str], tmp_path: Path):
    saved(tmp_path, BERT, id2label=labels)
    assert load(tmp_path).classes == ()


@pytest.mark.parametrize("architectures", [None, [], "BertForSequenceClassification", [["x"]], {}, [5]])
def test_a_configuration_that_names_no_class_is_a_bare_model(architectures: Any, tmp_path: Path):
    saved(tmp_path, BERT)
    edit(tmp_path / "config.json", architectures=architectures)
    assert "no classifier is in this checkpoint" in load(tmp_path, "random").words


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "nonsense"}, r"The model type 'nonsense' is unknown to transformers \d"),
        ({"model_type": None}, "The model type None is unknown"),
        ({"num_attention_heads": 3}, "cannot be built from its configuration"),
        ({"hidden_size": "wide"}, "cannot be built from its configuration"),
        (
            {"hidden_size": 2**20, "vocab_size": 2**20},
            r"BertForSequenceClassification is \S+ GiB; at most 4 GiB",
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "is quantised; give the full-precision one",
        ),
        ({"vocab_size": 9}, "knows 15 tokens, the model 9|word_embeddings"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(changed: dict[str, Any], said: str, tmp_path: Path):
    saved(tmp_path, BERT)
    edit(tmp_path / "config.json", **changed)
    with pytest.raises(ModelError, match=said) as raised:
        load(tmp_path, "random")
    assert "\n" not in str(raised.value)


def test_code_that_a_configuration_names_is_never_run(tmp_path: Path):
    saved(tmp_path, BERT)
    trap = f"import os; os.mkdir({str(tmp_path / 'trap')!r})\n"
    for file in ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py"):
        (tmp_path / file).write_text(trap)
    edit(
        tmp_path / "config.json",
        auto_map={
            "AutoConfig": "configuration_mine.C",
            "AutoModelForSequenceClassification": "modeling_mine.M",
        },
        architectures=["M"],
    )
    edit(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_mine.T"]})
    try:
        assert "no classifier is in this checkpoint (M)" in load(tmp_path).words
    except ModelError as error:
        assert "The tokenizer in" in str(error)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", r"config\.json cannot be read"),
        ("tokenizer.json", "The tokenizer in .* cannot be read"),
    ],
)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\0"])
def test_damaged_files_are_one_sentence(file: str, said: str, content: str, tmp_path: Path):
    saved(tmp_path, BERT)
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match=said) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"size": 5, "do_resize": false}',
        '{"size": {"max_width": 3}}',
        '{"image_processor_type": "X"}',
    ],
)
def test_a_damaged_processor_is_one_sentence(content: str, tmp_path: Path):
    saved(tmp_path, "ViTForImageClassification")
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json cannot be used") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_folders_without_config_or_weights_and_broken_parts_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match="has no config.json"):
        load(tmp_path)
    saved(tmp_path, BERT)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds neither model.safetensors nor pytorch_model.bin"):
        load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content in (
        "{}",
        '{"weight_map": {"a": "../outside.safetensors"}}',
        '{"weight_map": {"a": 3}}',
        "nonsense",
    ):
        index.write_text(content)
        with pytest.raises(ModelError, match="is damaged: it does not list files beside it"):
            load(tmp_path)
    index.write_text('{"weight_map": {"a": "part.safetensors"}}')
    with pytest.raises(ModelError, match=r"part\.safetensors is missing"):
        load(tmp_path)
    with (tmp_path / "part.safetensors").open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(ModelError, match=r"is 5\.0 GiB; at most 4 GiB"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["", "os.system", "PreTrainedModel", "ViTForImageClassification", 3, "pipeline"]
)
def test_a_record_can_name_nothing_but_classes_of_its_model_type(name: Any, tmp_path: Path):
    saved(tmp_path, BERT)
    record = load(tmp_path).record
    with pytest.raises(ModelError, match="The record of the model"):
        models.build(record | {"class": name})
    with pytest.raises(ModelError):
        models.build({"kind": "huggingface", "class": BERT, "config": {"model_type": "no"}})


def test_the_text_sample_is_one_of_these():
    loaded = models.load(models.parse("nli_bert"))
    assert type(loaded.model) is transformers.BertForSequenceClassification
    assert loaded.classes == zoo.card("nli_bert").classes and isinstance(loaded.preparation, TextPreparation)
    assert int((loaded.example.keywords["attention_mask"] == 0).sum()) > 0
    graph.trace(loaded.model, loaded.example)
    rebuilt = models.build(json.loads(json.dumps(loaded.record)))
    rebuilt.load_state_dict(loaded.model.state_dict(), strict=True)
    assert difference(rebuilt, loaded.model, loaded.example) == 0


def test_without_transformers_everything_else_works_and_the_message_says_what_to_install():
    program = (
        "import sys\n"
        "sys.modules['transformers'] = sys.modules['huggingface_hub'] = sys.modules['tokenizers'] = None\n"
        "from ispasp import models\n"
        "models.load(models.parse('mnist_mlp'))\n"
        "for attempt in (lambda: models.load(models.parse('huggingface:me/tiny')),\n"
        "                lambda: models.build({'kind': 'huggingface', 'class': 'X', 'config': {}})):\n"
        "    try:\n"
        "        attempt()\n"
        "    except models.ModelError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all('pip install "ispasp[huggingface]"' in line for line in lines)
