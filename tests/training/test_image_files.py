"""Folders of images: how `--data FOLDER` reads them, and what it refuses before training begins."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest

from fastvae.training.datasets import load_source

from .test_datasets import _refused, _save_image

Image = pytest.importorskip("PIL.Image", reason="the extra of training is not installed")


def test_a_folder_of_grey_images_in_the_order_of_their_names(tmp_path):
    for name, level in (("b.png", 51), ("a.jpg", 0), ("sub.PNG", 255)):
        _save_image(tmp_path / name, color=level)
    (tmp_path / "notes.txt").write_text("not an image")
    source = load_source(str(tmp_path))
    assert source.train.event_shape == (1, 6, 8)
    assert source.train.x[:, 0, 0, 0].tolist() == [0, 51, 255]
    assert source.label_names is None


def test_subfolders_are_labels(tmp_path):
    for label in ("cat", "dog"):
        for number in range(3):
            _save_image(tmp_path / label / "deep" / f"{number}.png", color=(200, 0, number), mode="RGB")
    source = load_source(str(tmp_path))
    assert source.label_names == ("cat", "dog")
    assert source.train.event_shape == (3, 6, 8)
    _save_image(tmp_path / "beside.png", color=(0, 0, 0), mode="RGB")
    assert load_source(str(tmp_path)).label_names is None


def test_one_colour_image_makes_all_rgb_and_what_is_transparent_is_white(tmp_path):
    _save_image(tmp_path / "grey.png", color=10)
    _save_image(tmp_path / "clear.png", color=(0, 0, 0, 0), mode="RGBA")
    x = load_source(str(tmp_path)).train.x
    assert x.shape == (2, 3, 6, 8)
    assert x[0].min() == 255
    assert x[1].tolist() == np.full((3, 6, 8), 10).tolist()


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    Image.fromarray(np.full((6, 8), 51 * 257, dtype=np.uint16)).save(tmp_path / "a.png")
    _save_image(tmp_path / "b.png")
    assert load_source(str(tmp_path)).train.x[0].tolist() == np.full((1, 6, 8), 51).tolist()


def test_different_sizes_are_refused_and_cropped_on_request(tmp_path):
    _save_image(tmp_path / "a.png", size=(8, 6))
    _save_image(tmp_path / "b.png", size=(10, 30))
    _refused(tmp_path, "a.png is 8x6", "b.png is 10x30", "--image-size")
    assert load_source(str(tmp_path), image_size=4).train.event_shape == (1, 4, 4)


def test_an_image_is_cropped_to_its_middle(tmp_path):
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 200
    for name in ("a.png", "b.png"):
        Image.fromarray(wide).save(tmp_path / name)
    assert load_source(str(tmp_path), image_size=10).train.x.min() == 200


def test_images_stand_as_the_camera_was_held(tmp_path):
    turned = Image.new("L", (8, 6))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.jpg", exif=exif)
    _save_image(tmp_path / "b.jpg", size=(6, 8))
    assert load_source(str(tmp_path)).train.event_shape == (1, 8, 6)


def test_a_file_that_is_no_image_is_named(tmp_path):
    _save_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    _refused(tmp_path, "b.png cannot be read as an image")
    (tmp_path / "b.png").write_bytes(b"nothing")
    _refused(tmp_path, "b.png cannot be read as an image")


def test_an_empty_folder_is_refused(tmp_path):
    _refused(tmp_path, "has no images", ".png")


@pytest.mark.parametrize("size", [0, -3])
def test_the_side_of_an_image_is_positive(tmp_path, size):
    _save_image(tmp_path / "a.png")
    _refused(tmp_path, f"--image-size is {size}", "1 or more", image_size=size)


def test_images_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    from fastvae.training import image_files

    _save_image(tmp_path / "a.png")
    _save_image(tmp_path / "b.png")
    monkeypatch.setattr(image_files.os, "sysconf", lambda name: 10)
    _refused(tmp_path, "more than half", "--image-size", ".npy")


def _save_big_endian(path, level):
    """An uncompressed TIFF of 16 bits, 8x6, in Motorola's order of bytes, which Pillow reads and does not write."""
    pixels = np.full((6, 8), level, dtype=">u2").tobytes()
    short = {256: 8, 257: 6, 258: 16, 259: 1, 262: 1, 277: 1, 278: 6}
    entries = [(tag, 3, value << 16) for tag, value in short.items()] + [(273, 4, 8), (279, 4, len(pixels))]
    directory = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in sorted(entries))
    start = struct.pack(">2sHI", b"MM", 42, 8 + len(pixels))
    path.write_bytes(start + pixels + struct.pack(">H", len(entries)) + directory + bytes(4))


def test_sixteen_bits_in_either_order_of_bytes_are_the_same(tmp_path):
    for name in ("a.tif", "b.tif"):
        _save_big_endian(tmp_path / name, 51 * 257)
    x = load_source(str(tmp_path)).train.x
    assert x.tolist() == np.full((2, 1, 6, 8), 51).tolist()


def test_levels_of_no_known_range_are_refused(tmp_path):
    for name, values in (
        ("float.tif", np.full((6, 8), 0.5, np.float32)),
        ("int.tif", np.full((6, 8), 70000, np.int32)),
    ):
        path = tmp_path / name.partition(".")[0] / name
        path.parent.mkdir()
        for copy in (path, path.with_stem("other")):
            Image.fromarray(values).save(copy)
        _refused(path.parent, f"{values[0, 0]}", "8 or 16 bits", ".npy")


def test_a_file_cut_off_among_its_pixels_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "gif", "tif", "webp"):
        folder = tmp_path / suffix
        folder.mkdir()
        for name in ("a", "b"):
            Image.fromarray(noise).save(folder / f"{name}.{suffix}")
        cut = folder / f"b.{suffix}"
        cut.write_bytes(cut.read_bytes()[:-1000])
        _refused(folder, f"b.{suffix} cannot be read as an image")


def test_sizes_are_compared_before_anything_is_decoded(tmp_path, monkeypatch):
    from PIL import ImageFile

    _save_image(tmp_path / "a.png", size=(8, 6))
    _save_image(tmp_path / "b.png", size=(10, 30))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    _refused(tmp_path, "a.png is 8x6", "b.png is 10x30")


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for label in ("cat", "dog", ".checkpoints"):
        _save_image(tmp_path / label / "a.png")
    (tmp_path / "cat" / "._a.png").write_bytes(b"not an image")
    source = load_source(str(tmp_path))
    assert source.label_names == ("cat", "dog")
    assert len(source.train.x) == 2


def test_a_folder_with_the_name_of_an_array_is_a_folder(tmp_path):
    for name in ("a.png", "b.png"):
        _save_image(tmp_path / "x.npy" / name)
    assert load_source(str(tmp_path / "x.npy")).train.event_shape == (1, 6, 8)


def test_images_are_read_without_tqdm(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        _save_image(tmp_path / name)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(load_source(str(tmp_path)).train.x) == 2


def test_without_pillow_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    _save_image(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    _refused(tmp_path, "Pillow", 'pip install "fastvae-kernels[train]"')


def test_all_unreadable_files_are_named_at_once(tmp_path):
    for number in range(4):
        _save_image(tmp_path / f"{number}.png", color=(200, 0, 10 * number), mode="RGB")
    (tmp_path / "broken.png").write_bytes(b"no image")
    cut = (tmp_path / "3.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) - 25])  # readable but for its pixels
    _refused(tmp_path, "broken.png", "cut.png", "--skip-unreadable")
    source = load_source(str(tmp_path), skip_unreadable=True)
    assert source.train.x.shape == (4, 3, 6, 8)
    (note,) = source.notes
    assert "broken.png" in note
    assert "cut.png" in note
    assert source.train.x[:, 2, 0, 0].tolist() == [0, 10, 20, 30]


def test_labels_stay_with_their_images_where_some_are_left_out(tmp_path):
    for label, blue in (("a", 0), ("b", 100), ("c", 200)):
        for number in range(2):
            _save_image(tmp_path / label / f"{number}.png", color=(0, 0, blue), mode="RGB")
    (tmp_path / "b" / "0.png").write_bytes(b"")
    source = load_source(str(tmp_path), skip_unreadable=True)
    together = sorted(zip(source.train.index, source.train.labels, strict=True))
    for row, label in together:
        assert source.train.x[row, 2, 0, 0] == 100 * label


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for skip in (False, True):
        _refused(tmp_path, "none of the 1 images", "a.png", skip_unreadable=skip)


def test_twelve_bits_in_files_of_sixteen_are_scaled_as_twelve(tmp_path):
    for name, level in (("a.png", 4095), ("b.png", 2048), ("c.png", 0)):
        Image.fromarray(np.full((6, 8), level, dtype=np.uint16)).save(tmp_path / name)
    source = load_source(str(tmp_path))
    assert source.train.x[:, 0, 0, 0].tolist() == [255, 128, 0]
    assert source.notes == ("files of 16 bits have levels up to 4095, read as 12 bits",)
