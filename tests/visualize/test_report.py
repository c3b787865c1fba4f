# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.draw import polygon2mask

from monai_rdad.apps.cli import main
from monai_rdad.metrics import misordered
from monai_rdad.visualize import benchmark_report, evaluation_report, report
from monai_rdad.visualize.gallery import outline
from monai_rdad.visualize.page import Html, metric_names, table
from monai_rdad.visualize.record import Score, choose, errors, order, read_record

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Text of a page, its elements, and what it could load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        assert not self.open  # every element has its end

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        wanted = {("class" if k == "kind" else k): v for k, v in attributes.items()}
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


def picture(source: str) -> np.ndarray[Any, Any]:
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", source).groups()  # type: ignore[union-attr]
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == kind.upper()
    return np.asarray(image.convert("RGB"), int)


def self_contained(page: Page) -> None:
    """Nothing to load, nothing to run but the page's own script, and no figure that is none."""
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert re.match("data:|#|runs/", value), (tag, value[:80])
    assert not re.search(r"https?://", page.source)
    assert "@import" not in page.source and not re.search(r"url\((?!#)", page.source)
    scripts = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"\b(nan|NaN|inf|None|undefined)\b", page.text)
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_page(evaluated: Path, hostile: str) -> None:
    page = Page(evaluated / "report.html")
    self_contained(page)
    assert "SCRD <b>on</b> phantoms" in page.text and page.all("i") == []
    text = page.text
    for expected in (
        "21 images of 11 groups",
        "10 normal and 11 abnormal",
        "not a medical device",
        "2 of the 2 false positives and 3 of the 3 false negatives",
        "2 of 10 normal images were called abnormal",
        "8 of 11 abnormal images were called abnormal",
        "python -m monai.bundle run evaluating --x '<y>'",
        "50 normal calibration images of 50 groups",
        "Oracle: the threshold was chosen by looking at the labels",
        "one scale for all cases",
        "seed",
    ):
        assert expected in text, expected
    digest = hashlib.sha256((evaluated / "scores.csv").read_bytes()).hexdigest()
    assert digest in text
    names = {a["data-name"] for a in page.all("article", kind="case")}
    assert len(names) == 21 and f"bad {hostile}" in names
    metrics = json.loads((evaluated / "metrics.json").read_text())
    cells = {row[0]: row for row in page.rows if len(row) == 5}
    area = metrics["image_auroc"]
    low, high = metrics["image_auroc_ci_low"], metrics["image_auroc_ci_high"]
    assert cells["Image AUROC"] == ["Image AUROC", f"{area:.3f}", f"{low:.3f} to {high:.3f}", "", "21"]
    assert cells["False-positive rate, calibrated for 0.05"][-1] == "10"
    assert cells["Sensitivity, calibrated for a false-positive rate of 0.05"][-1] == "11"
    assert {"roc", "pr", "histogram", "calibration", "pvalues"} <= {
        a["aria-labelledby"].split("-")[0] for a in page.all("svg", role="img") if "aria-labelledby" in a
    }


def test_script_is_valid(evaluated: Path, tmp_path: Path) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node; the test in a browser covers it")
    (script,) = re.findall(r"<script>(.*?)</script>", (evaluated / "report.html").read_text("utf-8"), re.S)
    (tmp_path / "script.js").write_text(script)
    subprocess.run([node, "--check", tmp_path / "script.js"], check=True)


def test_decisions(evaluated: Path) -> None:
    """The table agrees with the scores against the calibration: alpha 0.05 of 50 is the second highest, 0.49."""
    page = Page(evaluated / "report.html")
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 6}
    assert (rows["0.05"][0], rows["0.05"][3]) == ("2 of 10 (0.200)", "8 of 11 (0.727)")
    assert rows["0.05"][2].startswith("0.800 (") and rows["0.05"][4].startswith("0.727 (")
    assert rows["0.01"] == ["0 of 10 (0.000)", "0: too few groups", *rows["0.01"][2:]]
    assert rows["0.2"][0].startswith("2 of 10") and float(rows["0.2"][1].split(" to ")[1]) > 0.2  # 0.41: 11 / 51


def test_pictures_and_order(evaluated: Path, scores: dict[str, float]) -> None:
    page = Page(evaluated / "report.html")
    cards = page.all("article", kind="case")
    assert [a["data-name"] for a in cards[:2]] == ["bad/00.png", "bad/01.png"]
    assert {a["data-name"] for a in cards if a["data-outcome"] == "fp"} == {"good/08.png", "good/09.png"}
    assert {a["data-name"] for a in cards if a["data-outcome"] == "fn"} == {f"bad/0{i}.png" for i in range(3)}
    wrong = [float(a["data-error"]) for a in cards]
    assert wrong == sorted(wrong, reverse=True) and (np.array(wrong) > 0).sum() == 5
    for attributes in cards:
        if attributes["data-name"] in scores:
            assert float(attributes["data-score"]) == pytest.approx(scores[attributes["data-name"]])
    maps = {a["alt"]: picture(a["src"]) for a in page.all("img") if a["alt"].startswith("Anomaly map of")}
    brightness = [maps[f"Anomaly map of bad/{i:02d}.png"][7:11, 9:14].mean() for i in range(10)]
    assert np.all(np.diff(brightness) > -2) and brightness[-1] > brightness[0] + 80  # one scale for all
    image = next(picture(a["src"]) for a in page.all("img") if a["alt"] == "Image bad/09.png")
    assert image.shape == (24, 24, 3) and image[8, 10].mean() == pytest.approx(255 * 0.95, abs=6)
    assert len(page.all("path", kind="lesion")) == 11  # one per abnormal image
    assert len(page.all("path", kind="marked")) > 5


def test_the_page_is_made_anew_by_command(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(evaluated, folder)
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == (evaluated / "report.html").read_bytes()
    assert main(["report", str(folder), "--out", str(tmp_path / "else.html")]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), str(tmp_path / "else.html")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "evaluation.json").unlink(), "There is no .*evaluation.json. Evaluate first"),
        (lambda f: (f / "scores.csv").unlink(), "scores.csv"),
        (lambda f: (f / "evaluation.json").write_text('{"title": "x", "cases": []}'), "lacks data, split"),
        (lambda f: (f / "metrics.json").write_text("{"), "metrics.json is not JSON"),
        (lambda f: (f / "scores.csv").write_text("name,score\na,1\n"), "cannot be read as an evaluation"),
        (lambda f: (f / "scores.csv").write_text("name,group,label,score,p_value\n"), "no row"),
        (lambda f: (f / "cases" / "0003_map.png").unlink(), "pictures of case '.*' cannot be read"),
        (lambda f: (f / "cases" / "0003_image.png").write_bytes(b"x"), "pictures of case '.*' cannot be read"),
        (lambda f: shutil.rmtree(f), "is no folder"),
    ],
)
def test_what_is_broken_is_said_in_one_line(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(evaluated, folder)
    before = (folder / "report.html").read_bytes()
    damage(folder)
    assert main(["report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    if folder.exists():
        assert (folder / "report.html").read_bytes() == before
        assert not list(folder.glob(".writing*"))


def test_without_calibration_and_masks(tmp_path: Path, evaluate: Callable[..., Path], scores: dict[str, float]) -> None:
    page = Page(evaluate(tmp_path, scores, masks=False))
    self_contained(page)
    assert "Decisions" not in page.text and "false positive" not in page.text and "true lesion" not in page.text
    cards = page.all("article", kind="case")
    values, labels = np.array(list(scores.values())), np.array(["bad" in n for n in scores])
    wrong = dict(zip(scores, misordered(values, labels), strict=True))
    assert [float(a["data-error"]) for a in cards] == pytest.approx(sorted(wrong.values(), reverse=True))
    assert {a["data-p"] for a in cards} == {""} and "p:1" not in page.source


@pytest.mark.filterwarnings("ignore:Image metrics need both classes")
@pytest.mark.parametrize("kind", ["good", "bad"])
def test_one_class_only(tmp_path: Path, evaluate: Callable[..., Path], scores: dict[str, float], kind: str) -> None:
    mine = {name: score for name, score in scores.items() if kind in name}
    for calibration in (None, np.linspace(0, 0.5, 30).tolist()):
        page = Page(evaluate(tmp_path, mine, calibration))
        self_contained(page)
        assert "not defined" in page.text and "Curves need normal and abnormal images" in page.text
        shown = [float(a["data-score"]) for a in page.all("article", kind="case")]
        assert shown == sorted(shown, reverse=kind == "good")


def test_volumes_show_their_most_anomalous_slice(tmp_path: Path, evaluate: Callable[..., Path]) -> None:
    page = Page(evaluate(tmp_path, {"good": 0.3, "bad": 0.9}, shape=(24, 20, 5)))
    assert page.text.count("of 5, the most anomalous") == 2
    assert picture(page.all("img", alt="Image bad")[0]["src"]).shape == (24, 20, 3)


def test_few_calibration_groups_are_said(
    tmp_path: Path, evaluate: Callable[..., Path], scores: dict[str, float]
) -> None:
    page = Page(evaluate(tmp_path, scores, [0.1, 0.2, 0.3]))
    assert "3 calibration groups are too few for α = 0.05: at least 19" in page.text
    self_contained(page)


def test_size_is_bounded(tmp_path: Path, evaluate: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No more cases than asked for, and no more bytes than allowed, with what is left out said."""
    many = {f"{'bad' if i % 3 == 0 else 'good'}{i}": 0.1 + (i * 37 % 100) / 200 for i in range(60)}
    page = Page(evaluate(tmp_path, many, shape=(64, 64), cases=20))
    cards = page.all("article", kind="case")
    assert len(cards) == 20 and "20 of 60 images." in page.text and "then a random sample" in page.text
    assert {p.name.split("_")[0] for p in (tmp_path / "cases").iterdir()} == {f"{i:04d}" for i in range(20)}
    monkeypatch.setattr(report, "PICTURE_BYTES", 40_000)
    small = Page(evaluation_report(tmp_path, tmp_path / "small.html"))
    kept = small.all("article", kind="case")
    assert 1 <= len(kept) < 20 and len(small.source) < len(page.source)
    assert [a["data-name"] for a in kept] == [a["data-name"] for a in cards[: len(kept)]]  # the worst errors stay
    assert f"{len(kept)} of 60 images." in small.text
    assert report.PICTURE_BYTES < 10_000_000


def test_a_second_evaluation_replaces_the_first(
    tmp_path: Path, evaluate: Callable[..., Path], scores: dict[str, float]
) -> None:
    evaluate(tmp_path, scores, np.linspace(0, 0.5, 30).tolist())
    page = Page(evaluate(tmp_path, dict(list(scores.items())[5:15])))
    assert len(page.all("article", kind="case")) == 10 and "Decisions" not in page.text
    assert len(list((tmp_path / "cases").iterdir())) == 30
    assert not list(tmp_path.glob(".writing*"))


def test_record_keeps_pictures(evaluated: Path) -> None:
    record = read_record(evaluated)
    by_name = {s.name: s for s in record.scores}
    entry = next(e for e in record.content["cases"] if e["name"] == "bad/09.png")
    case = record.case(entry, by_name["bad/09.png"])
    assert case.image.shape == (24, 24) and case.anomaly_map.shape == (24, 24)
    assert case.anomaly_map.max() == pytest.approx(0.95, abs=1e-3)
    assert case.anomaly_map == pytest.approx(case.image / 255, abs=0.005)  # the network was the identity
    assert case.mask is not None and case.mask.sum() == 6 * 7 and case.outlined == 0.35


def _scores(pairs: list[tuple[int, float]], p_values: list[float] | None = None) -> list[Score]:
    return [
        Score(f"i{i}", f"i{i}", label, score, None if p_values is None else p_values[i])
        for i, (label, score) in enumerate(pairs)
    ]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.3, 0.4])), min_size=1, max_size=40), st.data()
)
@settings(max_examples=60, deadline=None)
def test_errors_order_and_choice(pairs: list[tuple[int, float]], data: st.DataObject) -> None:
    """Whatever the scores: a permutation in falling order of error, and a gallery of the size asked for."""
    p_values = None
    if data.draw(st.booleans()):
        p_values = [data.draw(st.sampled_from([0.01, 0.05, 0.5, 1.0])) for _ in pairs]
    rows = _scores(pairs, p_values)
    wrong = errors(rows, 0.05)
    assert np.isfinite(wrong).all()
    ranking = order(rows, 0.05)
    assert sorted(ranking) == list(range(len(rows))) and (np.diff(wrong[ranking]) <= 0).all()
    count = data.draw(st.integers(1, 45))
    chosen = choose(rows, 0.05, count)
    assert len(chosen) == min(count, len(rows))
    if p_values is not None:
        # positive is a false negative; a false positive at exactly alpha is an error of size 0
        assert all(row.wrong(0.05) for row, value in zip(rows, wrong, strict=True) if value > 1e-12)
        mistakes = {row.name for row in rows if row.wrong(0.05)}
        assert len(mistakes & chosen) >= min(len(mistakes), round(2 / 3 * count))
    assert choose(rows[::-1], 0.05, count) == chosen


def test_choice_takes_both_classes_by_turns() -> None:
    """Many missed lesions do not crowd out the few false alarms."""
    rows = _scores([(1, 0.1)] * 90 + [(0, 0.9)] * 4 + [(0, 0.1)] * 50, [0.9] * 90 + [0.04] * 4 + [0.8] * 50)
    chosen = choose(rows, 0.05, 30)
    assert {f"i{i}" for i in range(90, 94)} <= chosen
    assert sum(int(name[1:]) < 90 for name in chosen) == 16 + 5  # 20 errors less 4; half of the sample of 10


def test_outline_of_a_region() -> None:
    """Filling the path gives the region again, up to its cut corners; holes and the image's edge included."""
    region = np.zeros((40, 30), bool)
    region[:12, 3:20] = True
    region[5:8, 6:12] = False
    region[25:33, 18:] = True
    filled = np.zeros_like(region)
    for contour in outline(region).split("Z")[:-1]:
        points = np.array([pair.split(",")[::-1] for pair in contour.removeprefix("M").split()], float)
        filled ^= polygon2mask(region.shape, points - 0.5)  # pixel centres of corners
    assert (filled != region).sum() <= 12
    assert outline(np.zeros((4, 4), bool)) == ""


def test_tables_escape_all_but_markup() -> None:
    text = table(("<h>",), [("<svg onload=x>", "<a href=y>"), ("x", Html("<i>z</i>"))], '"c"')
    assert "<svg" not in text and "<a " not in text and "<i>z</i>" in text and "&lt;h&gt;" in text and '"c"' not in text


def test_order_of_metrics() -> None:
    names = ["x", "n_images", "pixel_auroc", "image_auroc_ci_low", "image_auroc", "sensitivity_at_0.05"]
    assert metric_names(names) == ["sensitivity_at_0.05", "image_auroc", "pixel_auroc", "x"]
    assert metric_names(["sensitivity_at_95_specificity", "image_ap"])[0] == "image_ap"


@pytest.mark.parametrize("seeds", [1, 3])
def test_benchmark(benchmark_folder: Callable[..., Path], seeds: int, hostile: str) -> None:
    folder = benchmark_folder(seeds, ("busi", hostile))
    own = folder / "runs/scrd/busi/seed0/eval"
    own.mkdir(parents=True)
    (own / "report.html").write_text("x")
    page = Page(benchmark_report(folder))
    self_contained(page)
    assert "Two <methods>" in page.text and f"{4 * seeds} finished runs" in page.text
    for expected in (
        "monai-rdad benchmark plan.yaml",
        "seeds: [0, 1]",
        "2.13.0",
        "f" * 64,
        "−0.100",
        "0.004 *",
        hostile,
    ):
        assert re.sub(r"\s+", " ", expected) in page.text, expected
    assert [a["href"] for a in page.all("a") if a["href"].startswith("runs")] == [
        "runs/scrd/busi/seed0/eval/report.html"
    ]
    assert page.text.count("0.004 *") == 1  # of the other set the seeds do not agree
    row = next(r for r in page.rows if r[:2] == ["busi", "scrd"])
    assert row[3] == ("0.700 [0.650 to 0.750]" if seeds == 1 else "0.710 (0.700 to 0.720)")
    (folder / "summary.csv").write_text(
        "data,metric,method,mean,ci_low,ci_high\nbusi,image_auroc,scrd,0.71,0.66,0.76\n"
    )
    page = Page(benchmark_report(folder))
    assert "[0.660 to 0.760]" in next(r for r in page.rows if r[:2] == ["busi", "scrd"])[3]


def test_benchmark_by_command_and_what_is_missing(
    benchmark_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = benchmark_folder()
    out = tmp_path / "page.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0 and out.is_file()
    (folder / "ranks.csv").unlink()
    assert main(["report", str(folder)]) == 1
    assert "There is no" in capsys.readouterr().err
    with (folder / "ranks.csv").open("w") as file:
        csv.writer(file).writerows([["metric", "method"], ["a", "b"]])
    assert main(["report", str(folder)]) == 1
    assert "cannot be read as a benchmark" in capsys.readouterr().err
    assert not (folder / "report.html").exists()
