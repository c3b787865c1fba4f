# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_curve, roc_curve

from monai_rdad.metrics import IMAGE_METRICS, image_metrics, misordered
from monai_rdad.metrics.curves import precision_recall, roc
from monai_rdad.metrics.image import image_curve_figures, score_histograms


def test_oracle_figures_follow_the_convention_of_the_papers_code():
    generator = np.random.default_rng(1)
    labels = (generator.random(60) < 0.5).astype(int)
    scores = generator.normal(size=60) + labels
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    decision = scores >= thresholds[np.argmax(f1[:-1])]
    figures = image_metrics(scores, labels)
    assert figures["oracle_f1"] == pytest.approx(f1_score(labels, decision))
    assert figures["oracle_accuracy"] == pytest.approx(accuracy_score(labels, decision))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_sklearn_and_the_vectorised_figures_agree(images):
    scores, labels = np.array([s for s, _ in images], float), np.array([label for _, label in images])
    if labels.all() or not labels.any():
        return
    figures = image_metrics(scores, labels)
    vectorised = image_curve_figures(*score_histograms(scores, labels))
    assert list(figures) == list(IMAGE_METRICS)
    assert figures == pytest.approx({k: float(v) for k, v in vectorised.items()}, abs=1e-12)
    assert all(0 <= v <= 1 for v in figures.values())
    assert image_metrics(scores * 4, labels) == figures


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nan_with_one_warning(label):
    with pytest.warns(UserWarning, match="both classes") as caught:
        figures = image_metrics([0.1, 0.2], [label, label])
    assert len(caught) == 1
    assert list(figures) == list(IMAGE_METRICS) and np.isnan(list(figures.values())).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_score_names_the_image(bad):
    with pytest.raises(ValueError, match="'patient7/slice3.png'.*not finite"):
        image_metrics([0.1, bad], [0, 1], ["a", "patient7/slice3.png"])


def test_bad_labels_and_lengths_are_refused():
    with pytest.raises(ValueError, match="'b'.*label"):
        image_metrics([0.1, 0.2], [0, 2], ["a", "b"])
    with pytest.raises(ValueError, match="2 scores but 1 labels"):
        image_metrics([0.1, 0.2], [0])


def test_importing_the_metrics_leaves_sklearn_and_torch_alone():
    code = "import sys, monai_rdad.metrics; print([m for m in ('sklearn', 'torch', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


LABELLED = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40)


@settings(max_examples=40, deadline=None)
@given(LABELLED)
def test_curves_are_those_of_sklearn(images):
    scores, labels = np.array([s for s, _ in images], float), np.array([label for _, label in images])
    if labels.all() or not labels.any():
        return
    histograms = score_histograms(scores, labels)
    expected = roc_curve(labels, scores, drop_intermediate=False)[:2]
    np.testing.assert_allclose(roc(*histograms), expected, atol=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    # from the lowest threshold to the highest, and a last point that belongs to none
    np.testing.assert_allclose([c[::-1] for c in precision_recall(*histograms)], [recall[:-1], precision[:-1]])


@settings(max_examples=40, deadline=None)
@given(LABELLED)
def test_misordered_against_its_definition(images):
    scores, labels = np.array([s for s, _ in images], float), np.array([label for _, label in images], int)
    wrong = misordered(scores, labels)
    for score, label, found in zip(scores, labels, wrong, strict=True):
        others = scores[labels != label]
        if not others.size:
            assert np.isnan(found)
            continue
        gap = (others - score) * (1 if label else -1)
        assert found == pytest.approx((gap > 0).mean() + 0.5 * (gap == 0).mean())
    if 0 < labels.sum() < labels.size:
        area = image_metrics(scores, labels)["image_auroc"]
        assert wrong[labels == 1].mean() == pytest.approx(1 - area)
        assert wrong[labels == 0].mean() == pytest.approx(1 - area)
