# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rdad.transforms.score import ScoreReduction, ScoreReductiond


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30), st.floats(0.001, 1.0))
def test_reductions_against_numpy(n, height, width, fraction):
    maps = torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(height * width))
    flat = maps.flatten(1).numpy()
    np.testing.assert_allclose(ScoreReduction("max")(maps), flat.max(1))
    np.testing.assert_allclose(ScoreReduction("mean")(maps), flat.mean(1), rtol=1e-5)
    count = max(1, round(fraction * flat.shape[1]))
    np.testing.assert_allclose(ScoreReduction("top", fraction)(maps), np.sort(flat, 1)[:, -count:].mean(1), rtol=1e-5)


def test_dictionary_version_adds_a_key_and_keeps_the_map():
    item = {"pred": torch.rand(1, 4, 4, 3), "name": "a"}
    result = ScoreReductiond("pred", "mean")(item)
    torch.testing.assert_close(result["score"], item["pred"].mean().reshape(1))
    assert result["pred"] is item["pred"] and "score" not in item


def test_bad_arguments():
    with pytest.raises(ValueError, match="Unknown score reduction 'median'"):
        ScoreReduction("median")
    with pytest.raises(ValueError, match="must lie in"):
        ScoreReduction("top", 0.0)
