"""The report page: it holds what the run's files hold, loads nothing, and nothing from outside becomes markup."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from ispasp import cli, commands, prune, runs, store
from ispasp.deployment import exporting, model_diff, report
from ispasp.deployment.bench import BenchSettings, bench_run
from ispasp.deployment.profile import profile_run
from ispasp.deployment.report_page import Page
from ispasp.errors import RunError
from ispasp.run_settings import RunSettings

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</script><script>alert(1)</script>\"'&<a href='http://x.example'>\u2028\ud800"


class Read(HTMLParser):
    """A page as a browser without scripts would take it; fails where tags do not close in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}  # by tag
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        elif tag == "table":
            self.rows: list[list[str]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "caption":
            self.tables[self.caption] = self.rows

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        if tag == "script":
            self.scripts[-1] += data
        elif tag in ("td", "th"):
            self.rows[-1][-1] += data
        elif tag == "caption":
            self.caption = data
        if tag != "style":
            self.text[tag] = self.text.get(tag, "") + data + "\n"

    def table(self, begin: str) -> list[dict[str, str]]:
        """The rows of the table whose caption begins so."""
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(begin))
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    def figures(self) -> dict[str, Any]:
        (found,) = re.findall(r"^const FIGURES = (.*);$", self.scripts[-1], re.MULTILINE)
        return json.loads(found)  # type: ignore[no-any-return]


def small(**more: Any) -> RunSettings:
    usual = {"model": "mnist_mlp", "samples": 32, "evaluation": 32, "device": "cpu", "keep": 0.25}
    return RunSettings(**usual | more)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never exported."""
    folder = tmp_path_factory.mktemp("bare")
    list(runs.execute(small(), folder, folder / "a run"))
    return folder / "a run"


@pytest.fixture(scope="module")
def whole(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, exported, measured and profiled."""
    path = tmp_path_factory.mktemp("whole") / "a run"
    shutil.copytree(bare, path)
    list(exporting.export_run(path, precisions=("int8-dynamic",), seconds=0.05))
    list(bench_run(path, BenchSettings(seconds=0.05)))
    list(profile_run(path, seconds=0.05))
    bench = json.loads((path / "export/bench.json").read_text())
    bench["rows"].append(bench["rows"][0] | {"batch": 2})
    (path / "export/bench.json").write_text(json.dumps(bench))
    return path


def whole_numbers(cells: dict[str, str]) -> list[int]:
    return [int(cells[name].replace(",", "")) for name in ("Dense", "Pruned")]


def test_every_figure_is_that_of_the_files(whole: Path) -> None:
    page = Read(report.write(whole))
    said = store.open_run(whole).report
    quantities = {row["Quantity"]: row for row in page.table("Dense against pruned")}
    assert whole_numbers(quantities["Parameters"]) == [said["params_before"], said["params_after"]]
    assert whole_numbers(quantities["MACs per image"]) == [said["macs_before"], said["macs_after"]]
    shares = [
        quantities["Accuracy"]["Dense"],
        quantities["Accuracy"]["Pruned"],
        quantities["Agreement"]["Pruned"],
    ]
    assert shares == [f"{100 * said[k]:.1f} %" for k in ("accuracy_before", "accuracy_after", "agreement")]
    (block,) = page.table("Every pruned block")
    assert (block["Block"], block["Kept"], block["of"]) == ("fc1", "256", "1,024 neurons")
    assert float(block["Drift"]) == pytest.approx(said["blocks"][0]["drift"], rel=1e-2, abs=5e-4)

    exported = json.loads((whole / "export/export.json").read_text())
    files = page.table("Files, and how far")
    assert len(files) == 4
    for row, variant in zip(files, exported["variants"], strict=True):
        assert row["Model"] == f"{variant['side']}, {variant['precision']}"
        assert row["File"] == f"{variant['bytes'] / 1e6:.2f} MB"
        assert float(row["Largest difference"]) == pytest.approx(variant["parity"]["max_abs_diff"], rel=0.06)
        assert row["Verdict"] == ("passed" if variant["parity"]["passed"] else "FAILED")
        assert variant["parity"]["sentence"] in page.text["li"]

    bench = json.loads((whole / "export/bench.json").read_text())["rows"]
    for row, timed in zip(page.table("Time per batch"), bench, strict=True):
        assert row["Setting"] == f"batch {timed['batch']}, 1 thread, fp32"
        assert row["Dense median"] == f"{timed['dense']['median_ms']:.3g} ms"
        assert row["95 % interval"] == f"{timed['ratio_low']:.2f} to {timed['ratio_high']:.2f}"
    profiled = json.loads((whole / "export/profile.json").read_text())
    assert all(sentence in page.text["li"] for sentence in profiled["sentences"])
    times = page.table("Time of one call by block")
    for row, block in zip(times, [*profiled["blocks"], profiled["rest"]], strict=True):
        assert row["Block"] == (block["block"] or "in no block")
        assert row["Pruned"] == f"{block['pruned_ms']:.3g} ms"
    machine = {row["What"]: row["Value"] for row in page.table("Where it was exported and measured")}
    assert machine["onnxruntime"] == exported["machine"]["versions"]["onnxruntime"]

    layers = page.table("Every layer")
    assert [row["Layer"] for row in layers] == ["fc1", "fc2", "all"]
    assert layers[-1]["MACs after"] == f"{said['macs_after']:,}"
    assert sum(float(row["Share of latency"].rstrip(" %")) for row in layers[:-1]) <= 100.1


def test_it_opens_without_a_network_and_for_everybody(whole: Path) -> None:
    content = report.write(whole)
    page = Read(content)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    (policy,) = (a["content"] or "" for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert ("html", {"lang": "en"}) in page.tags and page.text["title"].strip() == "a run"
    assert "@import" not in content.decode() and len(content) < 6e6
    assert len(page.scripts) == 2  # plotly.js once, and the figures
    scopes = [a.get("scope") for t, a in page.tags if t == "th"]
    assert set(scopes) == {"col", "row"} and sum(t == "caption" for t, _ in page.tags) == len(page.tables)
    places = {a["id"] for t, a in page.tags if t == "div" and "id" in a}
    figures = page.figures()
    assert set(figures) == places and len(places) == 6
    light, dark = figures["figure-0"]
    assert light["layout"]["paper_bgcolor"] != dark["layout"]["paper_bgcolor"]
    anchors = {a["href"] for t, a in page.tags if t == "a"}
    assert anchors == {f"#{a['id']}" for t, a in page.tags if t == "h2"}


def test_from_the_run_alone_it_says_what_was_not_measured(bare: Path) -> None:
    page = Read(report.write(bare))
    assert page.text["p"].count("Not measured.") == 3
    for command in ("export 'a run'", "bench 'a run'"):
        assert f"python -m ispasp {command}" in page.text["code"]
    assert (
        page.table("Every layer")[-1]["Parameters after"]
        == f"{store.open_run(bare).report['params_after']:,}"
    )
    assert not (bare / "export").exists()


@pytest.mark.parametrize(
    ("file", "content", "kept"),
    [
        ("export.json", "{", "Time per batch"),
        ("export.json", '{"variants": [{"side": 3}]}', "Time per batch"),
        ("bench.json", "[1]", "Files, and how far"),
        ("profile.json", '{"format": 1, "operators": [{}]}', "Time per batch"),
        ("diff.json", '{"format": 1, "layers": [{}]}', "Time per batch"),
    ],
)
def test_a_part_that_cannot_be_read_says_so_and_the_rest_stays(
    whole: Path, tmp_path: Path, file: str, content: str, kept: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "export" / file).write_text(content)
    page = Read(report.write(path))
    assert page.text["p"].count("This cannot be shown") == 1 and file in page.text["p"]
    assert page.table(kept) and set(page.figures()) == {
        a["id"] for t, a in page.tags if t == "div" and "id" in a
    }


def test_values_of_a_wrong_kind_take_their_part_out_as_a_whole(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    file = path / "export/export.json"
    export = json.loads(file.read_text())
    variant = export["variants"][1]
    for wrong in (
        {"parity": {"passed": "yes", "max_abs_diff": "<b>"}},
        {"parity": variant["parity"] | {"passed": 1.0}},
        {"bytes": 10**400},
    ):
        export["variants"][1] = variant | wrong
        file.write_text(json.dumps(export))
        page = Read(report.write(path))
        assert "This cannot be shown: export.json" in page.text["p"]
        assert not any(caption.startswith("Files") for caption in page.tables)


def test_a_failed_and_a_missing_precision_stand_out(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    file = path / "export/export.json"
    export = json.loads(file.read_text())
    export["variants"][1]["parity"] = None
    export["variants"][2]["parity"]["passed"] = False
    export["variants"][3] |= {
        "path": "",
        "bytes": 0,
        "opset": 0,
        "problem": "No such <operator>.",
        "parity": None,
    }
    file.write_text(json.dumps(export))
    page = Read(report.write(path))
    assert [row["Verdict"] for row in page.table("Files")] == ["passed", "FAILED", "FAILED", "not made"]
    assert ("td", {"class": "bad"}) in page.tags
    assert "pruned, fp32: it was not compared with torch." in page.text["li"]
    assert "pruned, int8-dynamic: No such <operator>." in page.text["li"]


def test_what_others_wrote_stays_text(bare: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(bare, path)
    (path / "about.json").write_text(json.dumps({"name": HOSTILE, "note": f"{HOSTILE}\nline"}))
    plain = json.loads((path / "run.json").read_text())
    plain["settings"] |= {"words": HOSTILE, "notes": [HOSTILE], "versions": {HOSTILE: HOSTILE}}
    plain["report"]["device"] = HOSTILE
    (path / "run.json").write_text(json.dumps(plain))
    page = Read(report.write(path))
    assert len(page.scripts) == 2 and all("alert(1)" not in script for script in page.scripts)
    assert {t for t, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "nav", "a", "p", "div", "table",
        "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "ul", "li", "pre", "code", "noscript",
        "script", "details", "summary",
    }  # fmt: skip
    assert "<script>alert(1)</script>" in page.text["h1"] and "\nline" in page.text["p"]


def test_labels_of_figures_are_neither_links_nor_ends_of_the_script() -> None:
    page = Page("t")
    page.figure("c", lambda dark: go.Figure(go.Bar(x=[1.0], y=[HOSTILE.rstrip("\ud800")])))
    read = Read(page.html())
    assert "<" not in re.findall(r"^const FIGURES = (.*);$", read.scripts[-1], re.MULTILINE)[0]
    (label,) = read.figures()["figure-0"][0]["data"][0]["y"]
    assert "<a" not in label and "&lt;a href" in label


def test_a_run_from_python_and_one_that_is_none(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    prune(model, [torch.randn(8, 6)], keep=0.5, multiple=1, device="cpu").save(tmp_path / "mine")
    page = Read(report.write(tmp_path / "mine"))
    assert "made from Python" in page.text["p"] and page.table("Every pruned block")[0]["Kept"] == "8"
    with pytest.raises(RunError, match=r"run\.json"):
        report.write(tmp_path)


def test_the_command_repeats_the_settings() -> None:
    for settings in (
        small(),
        small(
            keep=0.1 + 0.2, keep_by_block={"fc1": 1 / 3}, kinds=("neuron", "head"), recalibrate=True,
            weights="a folder/it's.pt", data="folder:my data", hidden_sum="signed", candidate_factor=1.5, distil=3,
        ),
    ):  # fmt: skip
        words = shlex.split(report.command(settings))
        assert words[:4] == ["python", "-m", "ispasp", "prune"]
        assert commands._run_settings(cli._parser().parse_args(words[3:])) == settings


def test_the_layers_need_no_export_but_the_code_of_the_run_needs_leave(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\ndef model():\n"
        "    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.zeros(2, 6)\n\n"
        "def data():\n    return [torch.randn(8, 6) for _ in range(4)]\n"
    )
    source = f"python:{tmp_path}/mine.py"
    settings = small(model=f"{source}:model", data=f"{source}:data", samples=8, evaluation=8)
    list(runs.execute(settings, tmp_path, tmp_path / "mine", allow_code=True))
    page = Read(report.write(tmp_path / "mine"))
    assert "This cannot be shown" in page.text["p"]
    page = Read(report.write(tmp_path / "mine", allow_code=True))
    assert "This cannot be shown" not in page.text["p"]
    assert [row["Layer"] for row in page.table("Every layer")] == ["0", "2", "all"]
    assert model_diff.read_diff(tmp_path / "mine") is None
