"""actvar sample."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.image import imread

import actvar_cli
from actvar_cli.model import cache
from actvar_cli.weights.artefact import read_config
from tests.cli.conftest import Actvar


def test_a_grid(actvar: Actvar, models: Path) -> None:
    done = actvar("sample", models / "dense.safetensors", "--classes", "0,2", "-n", "3", "-o", "g.png", "-q")
    assert (done.code, done.out, done.err) == (0, "g.png\n", "")
    # Two classes are two rows of three images, 6 x 6 pixels enlarged 16 times, 2 pixels apart.
    assert imread("g.png").shape[:2] == (2 * 98 + 2, 3 * 98 + 2)


def test_arrays_are_what_the_library_samples(actvar: Actvar, models: Path) -> None:
    model = models / "compressed.safetensors"
    done = actvar("sample", model, "--classes", "0,2", "-n", "2", "--seed", "7", "-o", "x.npz", "--json")
    assert done.json == {"path": "x.npz", "images": 4, "classes": [0, 2], "seed": 7}
    with np.load("x.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert labels.tolist() == [0, 0, 2, 2]
    expected = actvar_cli.load(model).sample([0, 0, 2, 2], seed=7).images[:, 0].mul(255).round().numpy()
    assert images.shape == (4, 6, 6, 3)
    np.testing.assert_allclose(images[..., 0], expected, atol=1)


def test_a_folder(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    model = models / "dense.safetensors"
    assert actvar("sample", model, "-n", "1", "-o", "pictures").code == 0
    names = ["00000_class0.png", "00001_class1.png", "00002_class2.png"]
    assert sorted(p.name for p in Path("pictures").iterdir()) == names
    done = actvar("sample", model, "-n", "1", "-o", "pictures")
    assert done.code == 2
    assert done.err == "error: pictures exists and is not empty: choose another name, or replace it with --force\n"
    assert actvar("sample", model, "-n", "2", "-o", "pictures", "--force").code == 0
    assert len(list(Path("pictures").iterdir())) == 6


def test_seeds_batches_and_options_change_what_they_should(actvar: Actvar, models: Path) -> None:
    def images(*arguments: str) -> np.ndarray:  # type: ignore[type-arg]
        model = models / "dense.safetensors"
        assert actvar("sample", model, "-n", "2", *arguments, "-o", "x.npz", "--force", "-q").code == 0
        with np.load("x.npz") as arrays:
            return arrays["arr_0"]  # type: ignore[no-any-return]

    first = images()
    assert np.array_equal(first, images("--seed", "0"))
    assert not np.array_equal(first, images("--seed", "1"))
    assert not np.array_equal(first, images("--top-k", "1"))
    assert not np.array_equal(first, images("--top-p", "0.5"))
    assert not np.array_equal(first, images("--cfg", "4"))
    assert not np.array_equal(first, images("--more-smooth"))
    # The first batch is the same, the others have seeds of their own.
    small = images("--batch", "2")
    assert not np.array_equal(first[2:], small[2:])
    # By default, as many as may take so much memory.
    with patch.object(cache, "TOGETHER_BYTES", 2 * cache.bytes_of_image(read_config(models / "dense.safetensors"))):
        assert np.array_equal(images(), small)


def test_fewer_bits(actvar: Actvar, models: Path) -> None:
    done = actvar("sample", models / "dense.safetensors", "-n", "2", "--dtype", "bfloat16", "-o", "x.npz", "-q")
    assert done.code == 0
    expected = actvar_cli.load(models / "dense.safetensors", dtype="bfloat16").sample([0, 0, 1, 1, 2, 2], seed=0)
    with np.load("x.npz") as arrays:
        images = arrays["arr_0"]
    np.testing.assert_allclose(images[..., 0], expected.images[:, 0].mul(255).round().numpy(), atol=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dtype", "bf16", "-o", "g.png"],
            "--dtype must be 'float32', 'bfloat16' or 'float16', not 'bf16' (did you mean 'bfloat16'?)",
        ),
        (["--classes", "3,7", "-o", "g.png"], "class 3 does not exist: the model has the classes 0 to 2"),
        (["--classes", "cat", "-o", "g.png"], "--classes must be labels with commas between, such as 3,7, not 'cat'"),
        (["-o", "g.jpg"], "g.jpg: samples are written as .png (a grid), .npz, or a folder of PNGs (no suffix)"),
        (["-n", "0", "-o", "g.png"], "--count must be greater than or equal to 1, not 0"),
        (["--top-p", "1.5", "-o", "g.png"], "--top-p must be less than or equal to 1, not 1.5"),
        (["--budget", "0.8", "-o", "g.png"], "tiny is dense: it has no experts to leave out, convert it first"),
    ],
)
def test_wrong_input(actvar: Actvar, models: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = actvar("sample", models / "dense.safetensors", *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_that_of_the_pictures(actvar: Actvar, models: Path) -> None:
    made = []
    for budget in ("0.7", "0.8", "1"):
        sampled = ("sample", models / "compressed.safetensors", "-n", "2", "--budget", budget)
        assert actvar(*sampled, "-o", f"{budget}.npz", "-q").code == 0
        with np.load(f"{budget}.npz") as arrays:
            made.append(arrays["arr_0"])
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[1], made[2])
