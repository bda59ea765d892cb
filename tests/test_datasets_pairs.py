"""Sentence pairs from TSV and JSONL files, in the forms that XNLI, MultiNLI and SNLI come in."""

from __future__ import annotations

import json
import random
import tempfile
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ispasp import data, datasets
from ispasp.calibration import read
from ispasp.datasets import pairs as pairs_module
from ispasp.errors import CalibrationError
from ispasp.preparation import ImagePreparation, TextPreparation
from tests.small_images import digest_of

CLASSES = ("entailment", "neutral", "contradiction")


def numbers(premises: list[str], hypotheses: list[str], *, max_length: int, **_: object) -> dict[str, Tensor]:
    """A tokenizer as transformers calls it, whose tokens are the numbers in the sentences."""
    rows = [
        [int(w) for w in f"{p} {h}".split() if w.isdigit()] for p, h in zip(premises, hypotheses, strict=True)
    ]
    ids = torch.tensor([(row + [0] * max_length)[:max_length] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


TEXT = TextPreparation(numbers, 4)


def load(
    content: str | bytes, classes=CLASSES, outputs: int | None = 3, name="x.tsv", preparation=TEXT, **changes
):
    settings = {"samples": 10, "seed": 0, "evaluation": 5} | changes
    raw = content if isinstance(content, bytes) else content.encode()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name.partition("@")[0]).write_bytes(raw)
        source = datasets.parse(f"pairs:{folder}/{name}")
        return datasets.load(source, preparation, classes, outputs=outputs, **settings)


def tsv(header: str, rows: list[tuple[object, ...]]) -> str:
    return "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"


def row(number: int, label: object = "") -> tuple[str, str, object]:
    return f"it is {number + 1}", f"that was {number + 101}", label or CLASSES[number % 3]


def ids(batches) -> list[int]:
    return (torch.cat([batch["input_ids"] for batch in batches])[:, 0] - 1).tolist()


def labels(batches) -> list[int]:
    return torch.cat([batch["labels"] for batch in batches]).tolist()


def test_pairs_become_dicts_with_labels_that_do_not_overlap():
    found = load(tsv("premise\thypothesis\tlabel", [row(n) for n in range(40)]))
    assert set(found.calibration[0]) == {"input_ids", "attention_mask", "labels"}
    assert found.calibration[0]["input_ids"].shape == (10, 4)
    calibration, evaluation = ids(found.calibration), ids(found.evaluation)
    assert (
        len(set(calibration)) == 10 and len(set(evaluation)) == 5 and not set(calibration) & set(evaluation)
    )
    assert labels(found.calibration) == [n % 3 for n in calibration]
    assert labels(found.evaluation) == [n % 3 for n in evaluation]
    assert found.calibration[0]["input_ids"][0, 1] == calibration[0] + 101
    assert found.classes == CLASSES and found.notes == () and found.pictures is None
    assert found.texts[0] == f"it is {calibration[0] + 1} → that was {calibration[0] + 101}"
    read(found.calibration), read(found.evaluation)


def words(premises: list[str], hypotheses: list[str], *, max_length: int, **_: object) -> dict[str, Tensor]:
    """A tokenizer whose tokens are checksums of the words."""
    rows = [
        [zlib.crc32(w.encode()) for w in f"{p} / {h}".split()]
        for p, h in zip(premises, hypotheses, strict=True)
    ]
    return {"input_ids": torch.tensor([(row + [0] * max_length)[:max_length] for row in rows])}


def test_sample_pairs_are_the_shipped_ones_with_the_models_own_labels():
    shipped = data.choose(data.sample_pairs("nli", "calibration"), 100, seed=3)
    test = data.sample_pairs("nli", "test")
    backwards = tuple(name.upper() for name in reversed(shipped.classes))
    for classes in (backwards, ("yes", "no")):
        found = datasets.load(
            datasets.parse("sample:nli"), TextPreparation(words, 32), classes,
            outputs=len(classes), samples=100, seed=3, evaluation=70,
        )  # fmt: skip
        assert [len(batch["input_ids"]) for batch in found.calibration] == [64, 36]
        ids_found = torch.cat([batch["input_ids"] for batch in found.evaluation])
        assert torch.equal(
            ids_found, words(test.premises[:70], test.hypotheses[:70], max_length=32)["input_ids"]
        )
        assert (
            found.texts[15] == f"{shipped.premises[15]} → {shipped.hypotheses[15]}" and len(found.texts) == 16
        )
        if classes == backwards:
            assert labels(found.calibration) == (2 - shipped.labels).tolist()
            assert found.classes == backwards and found.notes == ()
        else:
            assert "labels" not in found.evaluation[0] and "accuracy is unknown" in found.notes[0]


def test_the_seed_decides_and_fewer_samples_are_part_of_more():
    content = tsv("premise\thypothesis\tlabel", [row(n) for n in range(60)])
    first, again, other, more = (
        load(content, seed=s, samples=k) for s, k in ((1, 10), (1, 10), (2, 10), (1, 30))
    )
    assert digest_of(first) == digest_of(again) != digest_of(other)
    assert ids(more.calibration)[:10] == ids(first.calibration) and ids(more.evaluation) == ids(
        first.evaluation
    )
    assert len(load(content, samples=200).texts) == 16


def test_labels_do_not_count_in_the_digest():
    rows = [row(n) for n in range(20)]
    assert digest_of(load(tsv("premise\thypothesis\tlabel", rows))) == digest_of(
        load(tsv("premise\thypothesis", [r[:2] for r in rows]))
    )


@pytest.mark.parametrize(
    "header, order",
    [
        ("label\thypothesis\tpremise", (2, 1, 0)),
        ("gold_label\tpairID\tSentence1\tsentence2", (2, 2, 0, 1)),
        ("premise\thypo\tlabel", (0, 1, 2)),
    ],
)
def test_columns_in_any_order_and_by_other_names(header: str, order: tuple[int, ...]):
    expected = load(tsv("premise\thypothesis\tlabel", [row(n) for n in range(20)]))
    found = load(tsv(header, [tuple(row(n)[i] for i in order) for n in range(20)]))
    assert digest_of(found) == digest_of(expected) and labels(found.calibration) == labels(
        expected.calibration
    )


def test_json_lines_as_snli_and_multinli_have_them():
    rows = [dict(zip(("sentence1", "sentence2", "gold_label"), row(n), strict=True)) for n in range(20)]
    rows += [{"sentence1": "a 7", "sentence2": "b", "gold_label": "-", "annotator_labels": ["neutral"]}] * 4
    found = load("\n".join(map(json.dumps, rows)))
    assert digest_of(found) == digest_of(load(tsv("premise\thypothesis\tlabel", [row(n) for n in range(20)])))
    assert found.notes == ("4 sentence pairs have no decided label and were left out.",)


def test_xnli_rows_of_one_language():
    rows = [
        (lang, r[2], "x", r[0], r[1]) for n in range(30) for lang, r in (("en", row(n)), ("de", row(n + 300)))
    ]
    content = tsv("language\tgold_label\tgenre\tsentence1\tsentence2", rows)
    assert set(ids(load(content, name="x.tsv@de").calibration)) <= set(range(300, 330))
    both = load(content)
    assert "2 languages" in both.notes[0] and "@en" in both.notes[0]
    with pytest.raises(CalibrationError, match="'fr'; it has de and en"):
        load(content, name="x.tsv@fr")


def test_a_file_whose_name_ends_like_a_language(tmp_path: Path):
    path = tmp_path / "x@en"
    path.write_text(tsv("premise\thypothesis\tlabel", [row(n) for n in range(20)]))
    found = datasets.load(
        datasets.parse(f"pairs:{path}"), TEXT, CLASSES, outputs=3, samples=10, seed=0, evaluation=5
    )
    assert digest_of(found) == digest_of(load(path.read_text()))


@pytest.mark.parametrize(
    "classes, written, expected",
    [
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), CLASSES, (2, 1, 0)),
        (CLASSES, ("Entailment", "neutral ", "contradictory"), (0, 1, 2)),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"), (0, 1, 2)),
        ((), ("2", "1", "0"), (2, 1, 0)),
        (CLASSES, ("label", "label", "label"), None),
        (("LABEL_0", "LABEL_1", "LABEL_2"), CLASSES, None),
        (("entailment", "not_entailment"), CLASSES, None),
        (CLASSES, ("1", "2", "3"), None),
    ],
)
def test_labels_as_names_and_numbers(classes, written, expected):
    content = tsv("premise\thypothesis\tlabel", [row(n, written[n % 3]) for n in range(30)])
    found = load(content, classes, len(classes) or 3)
    if expected is None:
        assert "labels" not in found.calibration[0] and found.classes == ()
        assert "Labels are unknown" in found.notes[0]
    else:
        assert labels(found.calibration) == [expected[n % 3] for n in ids(found.calibration)]


def test_numbers_in_json_lines_and_pairs_without_labels():
    rows = [{"premise": row(n)[0], "hypothesis": row(n)[1], "label": n % 3} for n in range(20)]
    found = load("\n".join(map(json.dumps, rows)))
    assert labels(found.calibration) == [n % 3 for n in ids(found.calibration)]
    rows[3]["label"] = None
    found = load("\n".join(map(json.dumps, rows)))
    assert "labels" not in found.calibration[0] and "accuracy is unknown" in found.notes[0]


def test_bad_lines_are_counted_named_and_skipped():
    rows = [row(n) for n in range(40)]
    lines = tsv("premise\thypothesis\tlabel", rows).splitlines()
    lines[3] = "only one field"
    lines[7] = "a 1\t\tneutral"
    lines[9] = "a 1\tb 2\tnonsense"
    lines[11] = ""  # blank, and no fault
    found = load("\r\n".join(lines))
    (note,) = found.notes
    assert note == (
        "3 lines could not be used and were skipped: line 4, line 8 and line 10 (label 'nonsense')."
    )
    assert not {2, 6, 8, 10} & set(ids(found.calibration + found.evaluation))


def test_more_than_a_tenth_of_bad_lines_is_refused():
    lines = tsv("premise\thypothesis\tlabel", [row(n) for n in range(40)]).splitlines()
    for at in range(1, 6):
        lines[at] = "x"
    with pytest.raises(CalibrationError, match=r"5 of 40 lines.*10%: line 2, line 3, line 4 and 2 more"):
        load("\n".join(lines))


@pytest.mark.parametrize(
    "line",
    [
        '{"premise": 3, "hypothesis": "b"}',
        '{"premise"',
        "[]",
        '{"premise": "a", "hypothesis": "b", "label": 1.5}',
        '{"premise": "a", "hypothesis": "b", "label": true}',
        '{"a":' * 100_000,
        "9" * 5000,
    ],
)
def test_a_hostile_json_line_is_a_bad_line(line: str):
    good = [json.dumps(dict(zip(("premise", "hypothesis", "label"), row(n), strict=True))) for n in range(20)]
    found = load("\n".join([*good, line]))
    assert "1 lines could not be used and were skipped: line 21." in found.notes


def test_a_line_without_end_is_a_bad_line():
    content = tsv("premise\thypothesis\tlabel", [row(n) for n in range(20)]) + "x" * (2**20 + 1)
    assert "line 22 (above 1 MiB)" in " ".join(load(content).notes)


def test_separators_of_unicode_do_not_end_a_line():
    rows = [row(n) for n in range(20)]
    rows[0] = ("it is\u20281\x0b\x1c\x85", "that was 101", "entailment")
    assert load(tsv("premise\thypothesis\tlabel", rows)).notes == ()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_one_sentence(encoding: str):
    content = tsv("premise\thypothesis\tlabel", [("é 1", "ü 2", "neutral")] * 5).encode(encoding)
    with pytest.raises(CalibrationError, match=r"x.tsv is not UTF-8 text \(line \d\): save it as UTF-8"):
        load(content)


def test_a_byte_order_mark_is_no_part_of_the_header():
    content = tsv("premise\thypothesis\tlabel", [row(n) for n in range(20)])
    assert digest_of(load(b"\xef\xbb\xbf" + content.encode())) == digest_of(load(content))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("premise,hypothesis,label\na,b,c\n", "begins with the columns 'premise,hypothesis,label'"),
        ("[{}]", "JSON object per line"),
        ("premise\thypothesis\n", "holds no sentence pairs"),
        ("premise\thypothesis\na\tb\n", "at least one for each"),
        ("premise\thypothesis\n" + "a\tb\n" * 50, "differ from each other"),
    ],
)
def test_files_of_another_form_are_one_sentence(content: str, message: str):
    with pytest.raises(CalibrationError, match=message):
        load(content)


def test_a_file_that_is_too_large_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CalibrationError, match="nowhere.tsv cannot be read .*check the path"):
        datasets.load(
            datasets.parse(f"pairs:{tmp_path}/nowhere.tsv"), TEXT, CLASSES, outputs=3, samples=1, seed=0
        )
    path = tmp_path / "large.tsv"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    with pytest.raises(CalibrationError, match="is 3.0 GiB, and the limit is 1 GiB"):
        datasets.load(datasets.parse(f"pairs:{path}"), TEXT, CLASSES, outputs=3, samples=1, seed=0)
    monkeypatch.setattr(pairs_module, "MAX_FILE_BYTES", 10)
    with pytest.raises(CalibrationError, match="limit"):
        load("premise\thypothesis\n")


def test_sentence_pairs_for_a_model_that_reads_images_are_refused():
    preparation = ImagePreparation((8, 8), None, (0.5,), (0.5,))
    with pytest.raises(CalibrationError, match="reads images, which pairs:x.tsv does not give.*folder:PATH"):
        datasets.load(datasets.parse("pairs:x.tsv"), preparation, (), outputs=2, samples=1, seed=0)
    with pytest.raises(CalibrationError, match="reads images, which sample:nli does not give"):
        datasets.load(datasets.parse("sample:nli"), preparation, (), outputs=2, samples=1, seed=0)


def test_a_tokenizer_that_fails_is_one_sentence():
    def broken(*_: object, **__: object) -> None:
        raise ValueError("Asking to pad but the tokenizer does not have a padding token.\nmore")

    content = tsv("premise\thypothesis\tlabel", [row(n) for n in range(20)])
    with pytest.raises(CalibrationError, match=r"cannot encode .*padding token\): choose a model"):
        load(content, preparation=TextPreparation(broken, 8), samples=4)


def test_any_bytes_are_a_sentence_or_data():
    """A valid file with bytes overwritten at random."""
    content = tsv("premise\thypothesis\tlabel", [row(n) for n in range(12)]).encode()
    chance = random.Random(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(3):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        try:
            load(bytes(changed), samples=2, evaluation=2)
        except CalibrationError:
            refused += 1
    assert 0 < refused < 200


def test_a_transformers_tokenizer_encodes_the_pairs():
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "it", "is", "that", "was"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    same = [("it is", "that was it", "neutral")] * 20
    content = tsv(
        "premise\thypothesis\tlabel", [*same, ("is", "it", "entailment"), ("it", "is", "entailment")]
    )
    found = load(content, preparation=TextPreparation(tokenizer, 12), samples=15, evaluation=4)
    batch = found.calibration[0]
    assert batch["input_ids"].shape == (15, 12) and batch["input_ids"].dtype == torch.int64
    assert {"input_ids", "attention_mask", "labels"} <= set(batch)
    at = found.texts.index("it is → that was it")
    assert batch["input_ids"][at].tolist() == [2, 4, 5, 3, 6, 7, 4, 3, 1, 1, 1, 1]
    assert batch["attention_mask"][at].tolist() == [1] * 8 + [0] * 4
    assert batch["labels"][at] == 1
