# SPDX-License-Identifier: Apache-2.0
"""Episodes: who meets whom, and that a seed brings it back."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader
from PIL import Image

from monai_rdad.data import (
    EpisodeDataset,
    EpisodeSampler,
    ManifestError,
    draw_support,
    file_hashes,
    list_support,
    load_tasks,
    phantom_tasks,
    task_folder,
    task_manifests,
)
from monai_rdad.handlers.checkpoint import seed_epoch


def dataset(sizes=(6, 9, 4), shots=3):
    """Images whose only pixel is their index."""
    tasks = [name for name, size in zip("abc", sizes, strict=False) for _ in range(size)]
    return EpisodeDataset([{"image": torch.full((1, 1, 1), float(i))} for i in range(len(tasks))], tasks, shots)


def episodes(data, seed, epoch, workers=0):
    sampler = EpisodeSampler(data)
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers, generator=torch.Generator())
    seed_epoch(loader, seed, epoch)
    return [
        (float(q), tuple(s.flatten().tolist()), task)
        for batch in loader
        for q, s, task in zip(batch["image"].flatten(), batch["support"], batch["task"], strict=True)
    ]


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(4, 9), min_size=1, max_size=3), shots=st.integers(1, 3), seed=st.integers(0, 99))
def test_supports_are_of_the_querys_task_and_never_the_query(sizes, shots, seed):
    data = dataset(sizes, shots)
    for query, support, task in episodes(data, seed, 1):
        assert len(set(support)) == shots and query not in support
        assert {data.tasks[int(i)] for i in (query, *support)} == {task}


@pytest.mark.parametrize("workers", [0, 2])
def test_episodes_repeat_by_seed_and_differ_between_epochs(workers):
    data = dataset()
    first = episodes(data, 0, 1, workers)
    assert episodes(data, 0, 1, workers) == first
    for other in (episodes(data, 0, 2, workers), episodes(data, 1, 1, workers)):
        assert other != first
        # not only another order: the same query meets other supports
        assert {q: set(s) for q, s, _ in other} != {q: set(s) for q, s, _ in first}


def test_every_image_becomes_a_support_in_time():
    data = dataset()
    met = {i for epoch in range(1, 9) for _, support, _ in episodes(data, 0, epoch) for i in support}
    assert met == set(range(19))


def test_sampler_balances_the_tasks():
    data = dataset((20, 5, 4), shots=2)
    drawn = list(EpisodeSampler(data, 30))
    counts = {task: sum(data.tasks[i] == task for i in drawn) for task in "abc"}
    assert counts == {"a": 10, "b": 10, "c": 10}
    assert len({i for i in drawn if data.tasks[i] == "a"}) == 10  # without repetition while there are others
    assert sorted(i for i in drawn if data.tasks[i] == "b") == sorted(2 * list(range(20, 25)))
    assert len(list(EpisodeSampler(data, 7))) == 7 == len(EpisodeSampler(data, 7))


def test_too_few_images_are_named():
    with pytest.raises(ValueError, match="task 'c' has 3 images"):
        dataset((6, 6, 3))
    with pytest.raises(ValueError, match="shots is 0"):
        dataset(shots=0)
    with pytest.raises(ValueError, match="episodes is 0"):
        EpisodeSampler(dataset(), 0)


@pytest.fixture
def folders(tmp_path):
    for number, name in enumerate(("liver", "knee")):
        (tmp_path / name).mkdir()
        items = []
        for i in range(4):
            values = np.random.default_rng([number, i]).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / name / f"{i}.png")
            items.append({"image": f"{i}.png", "label": 0})
        (tmp_path / name / "manifest.json").write_text(json.dumps({"training": items}))
    return tmp_path


def test_tasks_are_loaded_but_the_one_held_out(folders):
    manifests = [str(folders / "liver" / "manifest.json"), f"joint={folders / 'knee' / 'manifest.json'}"]
    assert list(task_manifests(manifests)) == ["liver", "joint"]
    items = load_tasks(manifests, "liver", shots=3)
    assert {item["task"] for item in items} == {"joint"} and len(items) == 4
    assert all(str(folders / "knee") in item["image"] for item in items)
    assert len(load_tasks(manifests)) == len(load_tasks(manifests, "none")) == 8
    assert task_folder(manifests, "joint") == str(folders / "knee")


def test_equals_sign_in_a_path_is_no_name():
    paths = ["/data/run=3/knee/manifest.json", "b=/data/run=3/liver/manifest.json", "./c=d/manifest.json"]
    assert task_manifests(paths) == {"knee": paths[0], "b": paths[1][2:], "c=d": paths[2]}


def test_wrong_tasks_are_named(folders):
    manifests = [str(folders / name / "manifest.json") for name in ("liver", "knee")]
    with pytest.raises(ManifestError, match="holdout is 'heart', but the tasks are: liver, knee"):
        load_tasks(manifests, "heart")
    for none in (None, "none"):
        with pytest.raises(ManifestError, match="holdout is none: give dataset_dir and manifest"):
            task_folder(manifests, none)
    with pytest.raises(ManifestError, match="no task is left"):
        load_tasks(manifests[:1], "liver")
    with pytest.raises(ManifestError, match="two tasks are called 'liver'"):
        task_manifests([manifests[0], f"liver={manifests[1]}"])
    with pytest.raises(ManifestError, match="'knee' has 4 training images; an episode with 4 supports needs 5"):
        load_tasks(manifests, "liver", shots=4)


def test_supports_are_drawn_by_seed_and_nested():
    items = [{"image": str(i), "name": str(i)} for i in range(12)]
    small, large = draw_support(items, 2, 3), draw_support(items, 8, 3)
    assert large[:2] == small and draw_support(items, 8, 3) == large != draw_support(items, 8, 4)
    with pytest.raises(ValueError, match="9 support images; 2 to 8 are needed"):
        draw_support(items, 9, 0)
    with pytest.raises(ValueError, match="Lower shots"):
        draw_support(items[:3], 4, 0)


def test_support_folder_holds_two_to_eight_images(folders):
    items = list_support(folders / "liver")
    assert [item["name"] for item in items] == [f"{i}.png" for i in range(4)]
    path = folders / "liver" / "2.png"
    assert file_hashes(items)["2.png"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for i in range(1, 4):
        (folders / "liver" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="1 support images; 2 to 8 are needed"):
        list_support(folders / "liver")
    with pytest.raises(ValueError, match="a file. Supports are a folder"):
        list_support(folders / "liver" / "0.png")


def test_phantom_tasks_are_four_complete_sets(tmp_path):
    from monai_rdad.data import load_manifest, phantom_dataset

    phantom_dataset(tmp_path, size=32, training=3, validation=1, calibration=1, testing=1, volumes=0)
    (made,) = tmp_path.iterdir()
    made.rename(tmp_path / "phantoms_v1")  # a small stand-in for the default set
    manifests = phantom_tasks(tmp_path, size=64, training=4, testing=2)
    assert phantom_tasks(tmp_path, size=64, training=4, testing=2) == manifests
    assert list(task_manifests(manifests)) == ["fundus", "ultrasound", "histology", "head"]
    means = []
    for path in list(task_manifests(manifests).values())[:3]:
        splits = load_manifest(path)
        assert [len(splits[s]) for s in ("training", "testing")] == [4, 4]
        for item in splits["testing"]:
            if item["label"]:
                mask = np.asarray(Image.open(item["mask"])) > 0
                assert 0 < mask.mean() < 0.5
        pictures = np.stack([np.asarray(Image.open(item["image"]), float) for item in splits["training"]])
        assert pictures.std(0).max() > 5  # images of a task differ
        means.append(pictures.mean(0))
    assert all(np.abs(a - b).mean() > 20 for i, a in enumerate(means) for b in means[:i])  # and tasks more so
