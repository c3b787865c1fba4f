# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.networks.utils import get_state_dict
from monai.transforms import Compose, EnsureTyped, RandGaussianNoised, ScaleIntensityRanged
from torch import nn

from monai_rdad.handlers.checkpoint import ResumableCheckpoint, seed_epoch

ITEMS = 10
FILES = ["checkpoint.pt", "model.json", "model.pt", "model_final.pt"]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 1, 3, padding=1)
    )


def loader(cache: bool, workers: int, generator: bool = True, **kwargs: Any) -> DataLoader:
    rng = np.random.default_rng(0)
    data = [{"image": rng.integers(0, 255, (1, 6, 6)).astype(np.float32)} for _ in range(ITEMS)]
    transform = Compose(
        [
            ScaleIntensityRanged("image", 0, 255, 0, 1),
            RandGaussianNoised("image", prob=0.7, std=0.3),
            EnsureTyped("image", track_meta=False),
        ]
    )
    dataset = CacheDataset(data, transform, progress=False, num_workers=0) if cache else Dataset(data, transform)
    return DataLoader(
        dataset,
        batch_size=2,
        shuffle=True,
        num_workers=workers,
        generator=torch.Generator() if generator else None,
        **kwargs,
    )


class Training:
    """A trainer with everything that has a state: batch norm, dropout, Adam, a scheduler, noise, a shuffle."""

    def __init__(
        self, folder: Path, epochs: int, resume: bool = False, seed: int = 7, initial: int = 0, **kwargs: Any
    ) -> None:
        torch.manual_seed(initial)
        self.network = net()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=4)
        self.batches: dict[int, list[torch.Tensor]] = {}
        options = {k: kwargs.pop(k) for k in ("interval", "filename") if k in kwargs}
        epoch_length = kwargs.pop("epoch_length", None)
        objects = {"network": self.network, "optimizer": self.optimizer, "lr_scheduler": self.scheduler}
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            epoch_length=epoch_length,
            train_data_loader=kwargs.pop("train_loader", None) or loader(**{"cache": False, "workers": 0} | kwargs),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=lambda pred, _: (pred**2).mean(),
            # The checkpoint comes first in the list and must still see the scheduler's step.
            train_handlers=[
                ResumableCheckpoint(folder, objects, seed=seed, resume=resume, **options),
                LrScheduleHandler(self.scheduler, print_lr=False),
            ],
            decollate=False,
        )
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self._record)

    def _record(self, engine: Engine) -> None:
        self.batches.setdefault(engine.state.epoch, []).append(engine.state.batch["image"])

    def run(self) -> Training:
        self.trainer.run()
        return self


def assert_equal(a: Any, b: Any) -> None:
    """Bit equality of nested states."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize(
    "options",
    [
        {"cache": False, "workers": 0},
        {"cache": True, "workers": 0},
        {"cache": True, "workers": 2},
        {"cache": False, "workers": 0, "generator": False},
        {"cache": False, "workers": 0, "epoch_length": 3},  # shorter than the loader: ignite keeps the iterator
        {"cache": False, "workers": 0, "epoch_length": 7},  # longer: the loader is restarted within the epoch
    ],
    ids=str,
)
def test_resumed_equals_never_stopped(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = Training(tmp_path / "whole", 4, **options).run()
    Training(tmp_path / "parts", 2, **options).run()
    # Another initial state, to show that nothing of it survives.
    parts = Training(tmp_path / "parts", 4, resume=True, initial=99, **options).run()

    assert sorted(parts.batches) == [3, 4]
    for epoch in (3, 4):
        assert_equal(parts.batches[epoch], whole.batches[epoch])
    for name in ("network", "optimizer", "scheduler"):
        assert_equal(getattr(parts, name).state_dict(), getattr(whole, name).state_dict())
    assert parts.trainer.state.iteration == whole.trainer.state.iteration
    assert not torch.equal(whole.batches[1][0], whole.batches[2][0])
    assert_equal(
        torch.load(tmp_path / "parts/model.pt", weights_only=True),
        torch.load(tmp_path / "whole/model.pt", weights_only=True),
    )


def test_crash_within_an_epoch_resumes_at_its_start(tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole", 3).run()
    broken = Training(tmp_path / "parts", 3)

    @broken.trainer.on(Events.ITERATION_COMPLETED(once=12))
    def crash(_: Engine) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        broken.run()
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["checkpoint.pt"]
    resumed = Training(tmp_path / "parts", 3, resume=True).run()
    assert_equal(resumed.network.state_dict(), whole.network.state_dict())


def test_seed_and_epoch_decide() -> None:
    def draw(seed: int, epoch: int, rank: int = 0) -> list[float]:
        data = loader(cache=False, workers=0)
        seed_epoch(data, seed, epoch, rank)
        return [float(batch["image"].sum()) for batch in data]

    assert draw(1, 1) == draw(1, 1)
    assert len({tuple(draw(*args)) for args in ((1, 1), (1, 2), (2, 1), (1, 1, 1))}) == 4


def test_files(tmp_path: Path) -> None:
    done = Training(tmp_path, 3, interval=2).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["epoch"] == 3  # the last epoch is saved whatever the interval
    assert content["iteration"] == 3 * ITEMS // 2
    assert content["seed"] == 7
    assert content["metadata"]["epoch_length"] == ITEMS // 2
    for name in ("model.pt", "model_final.pt"):
        weights = torch.load(tmp_path / name, weights_only=True)
        assert_equal(weights, dict(done.network.state_dict()))
        net().load_state_dict(weights)
    assert (tmp_path / "model.pt").samefile(tmp_path / "model_final.pt")


def test_copies_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr("os.link", no_link)
    Training(tmp_path, 1).run()
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "model_final.pt").read_bytes()


def test_interval(tmp_path: Path) -> None:
    training = Training(tmp_path, 5, interval=2)
    seen = []

    @training.trainer.on(Events.EPOCH_STARTED)
    def look(engine: Engine) -> None:
        path = tmp_path / "checkpoint.pt"
        seen.append(torch.load(path, weights_only=True)["epoch"] if path.exists() else 0)

    training.run()
    assert seen == [0, 0, 2, 2, 4]


def test_resuming_what_is_complete_trains_no_more(tmp_path: Path) -> None:
    first = Training(tmp_path, 2).run()
    (tmp_path / "model.pt").unlink()
    again = Training(tmp_path, 2, resume=True, initial=1).run()
    assert not again.batches
    assert_equal(torch.load(tmp_path / "model.pt", weights_only=True), dict(first.network.state_dict()))


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(tmp_path, 1).run()
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr("torch.save", half)
    with pytest.raises(OSError, match="disk is full"):
        Training(tmp_path, 2, resume=True).run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def test_refuses_what_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from.*checkpoint.pt.*Train without resume"):
        Training(tmp_path, 2, resume=True).run()
    Training(tmp_path, 2).run()
    with pytest.raises(ValueError, match="another seed: 7, now it is 8"):
        Training(tmp_path, 4, resume=True, seed=8).run()
    with pytest.raises(ValueError, match="iterations per epoch.*: 5, now it is 4"):
        Training(tmp_path, 4, resume=True, epoch_length=4).run()
    with pytest.raises(ValueError, match="2 epochs, more than max_epochs = 1"):
        Training(tmp_path, 1, resume=True).run()

    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({k: v for k, v in content.items() if k != "optimizer"}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="does not belong to this configuration.*needed is.*'optimizer'"):
        Training(tmp_path, 4, resume=True).run()
    torch.save(content | {"network": {"0.weight": torch.zeros(1)}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="'network' does not fit"):
        Training(tmp_path, 4, resume=True).run()
    (tmp_path / "checkpoint.pt").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        Training(tmp_path, 4, resume=True).run()


def test_refuses_persistent_workers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="persistent_workers to false"):
        Training(tmp_path, 1, workers=1, persistent_workers=True).run()


@pytest.mark.parametrize(
    ("objects", "options", "message"),
    [
        ({}, {}, "must hold 'network'"),
        ({"network": 0, "epoch": 0}, {}, "may not be named epoch"),
        ({"network": 0}, {"interval": 0}, "interval is 0"),
    ],
)
def test_wrong_arguments(tmp_path: Path, objects: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResumableCheckpoint(tmp_path, objects, seed=0, **options)


def test_only_rank_0_writes_and_wrappers_leave_no_prefix(tmp_path: Path) -> None:
    other = Training(tmp_path, 1)
    other.trainer.state.rank = 1
    other.run()
    assert not list(tmp_path.iterdir())

    training = Training(tmp_path, 1)
    checkpoint = ResumableCheckpoint(tmp_path, {"network": nn.DataParallel(training.network)}, seed=0)
    checkpoint.attach(training.trainer)
    training.run()
    assert_equal(torch.load(tmp_path / "model.pt", weights_only=True), dict(get_state_dict(training.network)))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["network"].keys() == training.network.state_dict().keys()
