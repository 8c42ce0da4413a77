"""The report: one page that stands alone, says what was measured, and can be read by everybody."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.cli_runs import fails
from tests.tiny_text import save_tiny_text_model
from text_sdft.core import UserError
from text_sdft.experiments.report import plots, write_report
from text_sdft.experiments.report.answers import OTHER, _thumbnail, confusion
from text_sdft.experiments.report.reading import Point
from vlm_sdft.cli import main
from vlm_sdft.cli.tables import print_results

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Elements of a page in order, and its text; raises where elements do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text.append(data.replace("\u2060", "").replace("\xa0", " "))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A real run in a folder with an awkward name."""
    folder = tmp_path_factory.mktemp("report")
    settings: dict[str, Any] = {
        "model": "builtin:tiny-qwen3-vl",
        "data": {
            "path": "builtin:novel-objects",
            "options": {"n_types": 3, "n_unlabelled": 2, "n_test": 4, "n_retain": 1, "n_old": 1},
            "cache": str(folder / "data"),
        },
        "demonstrations": {"n_types": 3},
        "eval": {"max_examples": 12},
        "train": {
            "use_cpu": True, "disable_tqdm": True, "max_completion_length": 6, "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1, "learning_rate": 2e-3, "max_steps": 4, "save_strategy": "no",
            "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
            "output_dir": str(folder / "a <b> & $x^2$"),
        },
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["probe", str(folder / "run.yaml")]) in (0, 3)
    assert main(["train", str(folder / "run.yaml")]) == 0
    return folder / "a <b> & $x^2$"


def page_of(*folders: Path, out: Path) -> Page:
    write_report(folders, out)
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(run) -> Page:
    """The page that `train` left in the run's folder."""
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_it_stands_alone(run, page):
    for tag, attrs in page.elements:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/")), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "http" not in html and "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_it_can_be_read_without_seeing_and_without_a_mouse(page):
    assert page.all("html")[0]["lang"] == "en" and page.all("title")
    assert "width=device-width" in str(page.all("meta"))
    images = page.all("img")
    assert len(images) > 20 and all(len(image["alt"] or "") > 5 for image in images)
    assert all(svg["role"] == "img" and len(svg["aria-label"] or "") > 20 for svg in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    scrolling = [attrs for attrs in page.all("div") if attrs.get("class") == "scroll"]
    assert len(scrolling) >= 3 and all(
        a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolling
    )
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_it_says_what_was_measured(run, page):
    results, verdict = (
        json.loads((run / "results.json").read_text()),
        json.loads((run / "probe.json").read_text())["verdict"],
    )
    for phase in ("before", "after"):
        for score in results[phase].values():
            shown = f"{100 * score['accuracy']:.1f} % ({100 * score['low']:.0f}–{100 * score['high']:.0f})"
            assert shown in page.words
    assert verdict["reason"] in page.words
    for heading in ("Verdict before training", "Before and after", "What is taken for what", "Gallery", "Costs"):
        assert heading in page.words
    curve = next(str(svg["aria-label"]) for svg in page.all("svg") if "Learning and forgetting" in str(svg["aria-label"]))
    last = 100 * results["after"]["new"]["accuracy"]
    assert f"new: 0 at step 0, {last:.3g} at step 4" in curve


def test_accuracies_while_training_are_in_the_metrics_and_in_the_curve(run):
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("new", "old", "old skills"):
        assert [log["step"] for log in logs if f"eval_{name}_accuracy" in log] == [2, 4]
    results = json.loads((run / "results.json").read_text())
    ends = {name: log for log in logs if log["step"] == 4 for name in log if name.endswith("_accuracy")}
    for name in ("new", "old"):
        key = f"eval_{name}_accuracy"
        assert ends[key][key] == pytest.approx(results["after"][name]["accuracy"]), "the same rows as before and after"


def test_the_gallery_shows_the_query_its_demonstrations_and_every_answer(run, page):
    answers = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    teacher = [a for a in answers if a.get("view") == "teacher" and a["phase"] == "before"]
    assert all(len(a["demonstrations"]) == 6 and a["images"] for a in teacher)
    assert {d["answer"] for d in teacher[0]["demonstrations"]} >= {teacher[0]["reference"]}
    assert sum("Demonstration of" in str(image["alt"]) for image in page.all("img")) % 6 == 0
    first = next(image for image in page.all("img") if "Query image" in str(image["alt"]))
    data = base64.b64decode(str(first["src"]).partition("base64,")[2])
    assert max(Image.open(io.BytesIO(data)).size) <= 160
    for view in ("before", "after", "teacher"):
        assert f" {view} " in page.words


def test_all_text_of_users_is_escaped(run, tmp_path):
    """In every field that a model or a user fills, and in plots."""
    copy = shutil.copytree(run, tmp_path / EVIL.replace("/", "∕"))
    text = (copy / "samples.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        if "phase" in record:
            record |= {"answer": EVIL, "prompt": EVIL, "reference": EVIL + record["reference"]}
            record["demonstrations"] = [{"prompt": EVIL, "answer": EVIL, "images": [EVIL]}]
    (copy / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = page_of(run, copy, out=tmp_path / "two.html")
    assert not page.all("script") and not page.all("b")
    html = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in html and "$x^2$" in html, "no formula is made of a name"


def test_several_runs_are_compared(run, tmp_path, capsys, monkeypatch):
    other = shutil.copytree(run, tmp_path / "better")
    results = json.loads((other / "results.json").read_text())
    for score in results["after"].values():
        score |= {"accuracy": 1.0, "high": 1.0}
    (other / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), "better", "--out", "both.html"]) == 0
    assert "both.html" in capsys.readouterr().out
    page = Page((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "Runs after training" in page.words
    labels = [str(svg["aria-label"]) for svg in page.all("svg")]
    assert any("better: new 100.0 %, old 100.0 %" in label and label.endswith("Unbeaten: better.") for label in labels)
    assert {"#run-1", "#run-2"} == {str(a["href"]) for a in page.all("a")}


def test_what_nothing_beats_is_joined():
    points = [Point("a", 0.9, 0.5), Point("b", 0.5, 0.9), Point("c", 0.5, 0.5), Point("d", 0.9, 0.4)]
    svg = plots.pareto(points, [Point("start", 0.0, 1.0)])
    assert svg is not None and "Unbeaten: a, b." in svg
    assert plots.pareto(points[:1], []) is None


def test_more_rows_of_what_was_taught_are_not_what_it_knew(run, tmp_path):
    """The sets validation and ood are of the new task."""
    results = json.loads((run / "results.json").read_text())
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for phase in ("before", "after"):
            scores = {part: score for part, score in results[phase].items() if not part.startswith("old")}
            results[phase] = scores | {"validation": scores["new"], "ood": scores["new"]}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    assert "New against old" not in page_of(tmp_path / "one", tmp_path / "two", out=tmp_path / "page.html").words
    for name in ("one", "two"):
        for phase in ("before", "after"):
            results[phase]["old"] = {"accuracy": 0.25, "n": 4, "low": 0.0, "high": 0.7}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    page = page_of(tmp_path / "one", tmp_path / "two", out=tmp_path / "page.html")
    assert any(", old 25.0 %; two" in str(svg["aria-label"]) for svg in page.all("svg"))


def test_a_comparison_and_a_sequence_are_shown(tmp_path):
    methods = {
        name: {"learning_rate": rate, "new": {"over_seeds": {"mean": new}}, "prior": {"over_seeds": {"mean": old}}}
        for name, rate, new, old in (("base", 0, 0.1, 0.9), ("sft", 1e-4, 0.8, 0.5), ("sdft", 3e-4, 0.85, 0.8))
    }  # fmt: skip
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "compare.json").write_text(json.dumps({"methods": methods}))
    row = {"new": [0.25, 0.5], "old": {"old": 0.75}}
    sequence = {"method": "sdft", "tasks": ["task-1", "task-2"], "before": row, "after": [row, row], "joint": None}
    (tmp_path / "sequence").mkdir()
    (tmp_path / "sequence" / "sequence.json").write_text(
        json.dumps({**sequence, "retain_earlier": 7, "summary": {"mean_final": 0.375}})
    )
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "sequence.json").write_text(json.dumps({**sequence, "after": [row]}))
    page = page_of(tmp_path / "compared", tmp_path / "sequence", tmp_path / "begun", out=tmp_path / "page.html")
    label = str(page.all("svg")[0]["aria-label"])
    assert "sdft, lr 0.0003: new 85.0 %, old 80.0 %" in label and "Unbeaten: sdft, lr 0.0003, base." in label
    assert "after task-2 25.0 50.0 75.0" in page.words and "mean final 37.5" in page.words
    assert page.words.count("7 queries of each earlier task retained") == 1


def test_a_comparison_that_knows_no_prior_skills_is_a_table(tmp_path):
    methods = {
        "base": {"learning_rate": 0, "new": {"over_seeds": {"mean": 0.125}}},
        "sdft": {"learning_rate": 3e-4, "new": {"over_seeds": {"mean": 0.7}}},
    }
    (tmp_path / "compare.json").write_text(json.dumps({"methods": methods}))
    page = page_of(tmp_path, out=tmp_path / "page.html")
    assert "base – 12.5 –" in page.words and "sdft 0.0003 70.0 –" in page.words


@pytest.mark.slow
def test_the_overview_has_every_column_whichever_run_comes_first(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    shown = [f"{100 * results['after'][name]['accuracy']:.1f} %" for name in ("new", "old")]
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    del results["after"], results["before"]["old"]
    (unfinished / "results.json").write_text(json.dumps(results))
    for folders in ((unfinished, run), (run, unfinished)):
        write_report(folders, tmp_path / "page.html")
        overview = Page((tmp_path / "page.html").read_text("utf-8").partition("<tbody>")[2].partition("</tbody>")[0])
        assert all(accuracy in overview.words for accuracy in shown)
        assert [tag for tag, _ in overview.elements].count("td") == 2 * 6


def test_what_is_absent_leaves_its_section_out(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    del results["after"]
    results.pop("probe", None)
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')  # killed while it wrote
    page = page_of(tmp_path, out=tmp_path / "page.html")
    assert "This run has not finished" in page.words and "Before and after" in page.words
    for heading in ("Verdict", "Gallery", "What is taken for what", "Loss"):
        assert heading not in page.words


def test_a_probe_of_other_demonstrations_is_not_shown_as_the_runs(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    probe = json.loads((copy / "probe.json").read_text())
    assert probe["settings"]["demonstrations"]["n_types"] == 3
    probe["settings"]["demonstrations"]["n_types"] = 1
    probe["verdict"]["reason"] = "Do not train."
    (copy / "probe.json").write_text(json.dumps(probe))
    page = page_of(copy, out=tmp_path / "page.html")
    assert "Do not train." not in page.words and "Accuracy on new before training" not in page.words
    assert json.loads((copy / "results.json").read_text())["probe"]["reason"] in page.words, "the short probe's is"


def test_what_is_transparent_is_shown_as_the_model_sees_it(tmp_path):
    file = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file)
    source = _thumbnail(str(file), 8)
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
        assert min(shown.getpixel((4, 4))) > 250


def test_an_image_that_is_gone_is_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    text = (copy / "samples.jsonl").read_text()
    (copy / "samples.jsonl").write_text(text.replace("/000.png", "/gone.png"))
    assert "gone.png: no image file here" in page_of(copy, out=tmp_path / "page.html").words


@pytest.mark.parametrize("argv", [["nowhere"], ["--out", "x.html"], ["--colour", "red"]])
def test_what_is_no_run_is_an_error(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *argv]) == 2
    assert re.search("no run to report on|needs at least one|Unknown option '--colour'", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_answers_are_counted_by_type():
    def record(reference: str, answer: str, score: float, **changes: str) -> dict[str, Any]:
        given = {"phase": "after", "set": "new", "view": "student", "reference": reference, "answer": answer}
        return {**given, "score": score, **changes}

    records = [
        record("dax", "a dax", 1.0), record("dax", "Wug.", 0.0), record("dax", "dog", 0.0),
        record("wug", "wug", 1.0), record("wug", "wug", 1.0),
        record("wug", "dax", 0.0, phase="before"), record("cat", "dax", 0.0, set="old"),
        record("wug", "x", 0.0, view="teacher"),
    ]  # fmt: skip
    matrix = confusion(records)
    assert matrix is not None and matrix["columns"] == ["dax", "wug", OTHER]
    assert [[cell["count"] for cell in row["cells"]] for row in matrix["rows"]] == [[1, 1, 1], [0, 2, 0]]
    assert confusion([record(f"text {i}", "x", 0.0) for i in range(9)]) is None, "texts are no types"


def test_a_text_run_shows_texts(tmp_path):
    shown = [{"prompt": "Colour of a dax?", "answer": "red"}]
    rows = [{"prompt": f"Colour of dax {i}?", "demonstrations": shown, "reference": f"red {i}"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["train", "--force", "--model", save_tiny_text_model(tmp_path / "llama"), "--adapter", "text"]
    argv += ["--data.path", str(tmp_path / "rows.jsonl"), "--data.test", str(tmp_path / "rows.jsonl")]
    argv += ["--train.output_dir", str(tmp_path / "run"), "--train.max_steps", "1", "--train.use_cpu", "true"]
    assert main([*argv, "--train.max_completion_length", "4", "--train.disable_tqdm", "true"]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    for text in ("Colour of dax 2?", "Colour of a dax? → red", "The teacher's demonstrations (1)"):
        assert text in page.words
    assert not page.all("img")


def test_it_is_quick(run, tmp_path):
    write_report([run], tmp_path / "warm.html")
    started = time.process_time()
    write_report([run], tmp_path / "page.html")
    assert time.process_time() - started < 2
    assert (tmp_path / "page.html").read_text() == (tmp_path / "warm.html").read_text(), "the same run, the same page"


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values, those that hold others too."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [*([path] if path else []), *(place for key, one in inside for place in leaves(one, (*path, key)))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.json", "probe.json", "metrics.jsonl", "samples.jsonl"])
def test_a_file_that_was_edited_by_hand_is_named(run, tmp_path, name):
    """Each of 12 values, drawn by a seed, becomes another kind or goes away: a page is made, or the place is named."""
    folder = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model", "*.html")))
    text, draw, refused = (folder / name).read_text(), random.Random(0), 0
    for _ in range(12):
        lines = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else [json.loads(text)]
        number = draw.randrange(len(lines))
        *path, last = draw.choice(leaves(lines[number]))
        place = lines[number]
        for key in path:
            place = place[key]
        kind = draw.choice([None, "word", [], {}, -1, 10**400, {"a": [1]}, True, "\ud800", "gone"])
        if kind == "gone":
            del place[last]
        else:
            place[last] = kind
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
        try:
            write_report([folder], tmp_path / "page.html")
        except UserError as error:
            refused += 1
            assert str(folder / name) in str(error) and "\n" not in str(error) and len(str(error)) < 500
            assert name.endswith(".json") or f"line {number + 1}" in str(error)
    assert refused


def test_what_is_no_record_is_named(run, tmp_path, capsys):
    folder = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model", "*.html")))
    for name, text in (("results.json", "[]"), ("results.json", "{}"), ("results.json", "3"), ("probe.json", '"word"')):
        kept = (folder / name).read_text()
        (folder / name).write_text(text)
        assert name in fails(capsys, "report", str(folder))
        (folder / name).write_text(kept)
    for name, text in (("compare.json", "{}"), ("compare.json", '{"methods": 3}'), ("sequence.json", '{"tasks": [1]}')):
        (folder / name).write_text(text)
        assert name in fails(capsys, "report", str(folder))
        (folder / name).unlink()
    (folder / "file").write_text("")
    assert "cannot be written" in fails(capsys, "report", str(folder), "--out", str(folder / "file" / "page.html"))


def test_markup_in_a_name_is_shown_as_it_is(capsys):
    """(rich would take it for colours, and fail over what closes none.)"""
    score = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    print_results({"before": {"a [/red] :cat:": score}, "after": {}}, Path("run[/red]x"), "image", ("[b]", "[/i]"))
    shown = capsys.readouterr().out
    assert "run[/red]x/" in shown and "a [/red] :cat:" in shown and "[/i]" in shown
