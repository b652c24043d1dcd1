from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from actvar_cli.errors import InputError
from actvar_cli.evaluate.images import make_grid, save_folder, save_grid, save_npz, to_pixels, to_uint8

LABELS = torch.tensor([3, 7, 3])


def pictures(channels: int = 1) -> torch.Tensor:
    """Three 2 x 2 images of the constant values 0, 100 and 200."""
    return torch.tensor([0, 100, 200], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, channels, 2, 2)


def test_to_uint8_rounds_and_clamps() -> None:
    assert to_uint8(torch.tensor([-0.1, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.2])).tolist() == [0, 0, 0, 1, 255, 255]


def test_uint8_pictures_survive_the_way_through_floats() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 255), values)


@pytest.mark.parametrize("channels", [1, 3])
def test_to_pixels_is_rgb(channels: int) -> None:
    pixels = to_pixels(pictures(channels))
    assert pixels.shape == (3, 2, 2, 3)
    assert pixels[:, 0, 0].tolist() == [[0] * 3, [100] * 3, [200] * 3]


def test_grid_is_square_without_labels() -> None:
    grid = make_grid(pictures(), gap=1)
    assert grid.shape == (7, 7, 3)
    assert [grid[y, x, 0] for y, x in ((0, 0), (1, 1), (1, 3), (1, 4), (4, 1), (4, 4))] == [255, 0, 255, 100, 200, 255]


def test_every_class_starts_a_row() -> None:
    grid = make_grid(pictures(), labels=LABELS, gap=0)
    assert grid[::2, ::2, 0].tolist() == [[0, 200], [100, 255]]


def test_long_classes_go_on_in_the_next_row_and_pixels_are_enlarged() -> None:
    grid = make_grid(pictures(), labels=torch.zeros(3), columns=2, gap=0, enlarge=3)
    assert grid.shape == (12, 12, 3)
    assert grid[::6, ::6, 0].tolist() == [[0, 100], [200, 255]]


def test_png_keeps_every_pixel_and_is_not_overwritten(tmp_path: Path) -> None:
    grid = make_grid(pictures())
    path = save_grid(tmp_path / "grid.png", grid)
    assert np.array_equal((imread(path)[:, :, :3] * 255).round().astype(np.uint8), grid)
    with pytest.raises(InputError, match="exists"):
        save_grid(path, grid)
    save_grid(path, grid, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_folder_has_a_png_for_every_image(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "out", pictures(), LABELS)
    names = ["00000_class3.png", "00001_class7.png", "00002_class3.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert (imread(folder / names[1])[0, 0, :3] * 255).round().tolist() == [100, 100, 100]
    with pytest.raises(InputError, match="not empty"):
        save_folder(folder, pictures(), LABELS)
    save_folder(folder, pictures()[:1], LABELS[:1], force=True)
    assert [p.name for p in folder.iterdir()] == names[:1]


def test_force_does_not_delete_other_peoples_files(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "out", pictures(), LABELS)
    (folder / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        save_folder(folder, pictures(), LABELS, force=True)
    assert len(list(folder.iterdir())) == 4


def test_npz_is_what_the_adm_evaluator_reads(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "samples.npz", pictures(), LABELS)
    with np.load(path) as stored:
        assert stored["arr_0"].shape == (3, 2, 2, 3)
        assert stored["arr_0"].dtype == np.uint8
        assert stored["arr_1"].tolist() == [3, 7, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]
