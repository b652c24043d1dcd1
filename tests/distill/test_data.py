"""Training on a folder of pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from actvar_cli.distill.data import encoded_pictures, find_pictures, training_samples
from actvar_cli.distill.distill import distill
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.errors import InputError
from actvar_cli.model.config import GuidanceConfig
from actvar_cli.model.guidance import guidance_by_position, guide
from actvar_cli.model.sampling import ActVAR, paired_rows
from actvar_cli.progress import Progress
from tests.distill.conftest import teacher_model
from tests.recipe.tiny_files import save_picture, save_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, and beside them files that are none."""
    data = save_pictures(tmp_path / "data")
    (data / "bag/notes.txt").write_text("no picture")
    (data / "list.csv").write_text("no class")
    return data


def settings(folder: Path, images: int = 12, guidance: int = 2) -> DistillSettings:
    budget = 0.45 if guidance else 0.8
    stages = {"guidance": {"steps": guidance}, "experts": {"steps": 2}, "tokens": {"steps": 0}}
    return DistillSettings.model_validate(
        {"data": str(folder), "images": images, "batch": 4, "budget": budget, "precision": "no", "stages": stages}
    )


def test_samples_are_the_tokens_of_the_pictures_with_the_classes_in_turn(folder: Path) -> None:
    teacher = teacher_model()
    samples = encoded_pictures(teacher, str(folder), 18, seed=0, progress=Progress())
    assert samples.labels.tolist() == [0, 1, 2] * 6
    for label in range(3):
        shades = torch.arange(6) * 10 + 80 * label
        flat = (shades / 127.5 - 1).view(6, 1, 1, 1).expand(6, 1, 6, 6)
        expected = torch.cat(teacher.tokenizer.encode(flat), dim=1)
        assert sorted(samples.tokens[label::3].tolist()) == sorted(expected.tolist())


def test_another_seed_draws_other_pictures_and_the_same_seed_the_same(folder: Path) -> None:
    teacher = teacher_model()
    a, b, c = (encoded_pictures(teacher, str(folder), 9, seed=s, progress=Progress()).tokens for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_larger_picture_is_shrunk_and_its_middle_kept(tmp_path: Path) -> None:
    teacher = teacher_model()
    wide = np.zeros((12, 36, 3), np.uint8)
    wide[:, 6:30] = 200
    for name in "abc":
        save_picture(tmp_path / name / "1.PNG", wide)
    found = encoded_pictures(teacher, str(tmp_path), 3, seed=0, progress=Progress()).tokens
    middle = torch.full((1, 1, 6, 6), 200 / 127.5 - 1)
    assert torch.equal(found[0], torch.cat(teacher.tokenizer.encode(middle), dim=1)[0])


def test_what_the_teacher_says_is_kept_as_it_would_be_computed(folder: Path) -> None:
    teacher = teacher_model()
    samples = training_samples(teacher, settings(folder), GuidanceConfig(cfg=1.5), 0, Progress())
    rows = teacher.transformer(*paired_rows(teacher, samples.labels, samples.tokens))
    said = guide(rows, guidance_by_position(teacher.config, 1.5, teacher.device))
    assert samples.logits is not None
    torch.testing.assert_close(samples.logits.float(), said, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("guidance", [0, 2], ids=["two rows", "one row"])
def test_a_student_is_taught_on_pictures_and_the_teacher_samples_nothing(
    folder: Path, converted: ActVAR, monkeypatch: pytest.MonkeyPatch, guidance: int
) -> None:
    chosen, teacher = settings(folder, guidance=guidance), teacher_model()
    monkeypatch.setattr(teacher, "sample_tokens", lambda *_, **__: pytest.fail("the teacher was sampled"))
    made = distill(teacher, converted, chosen)
    assert len(made.history) == 2 + guidance
    assert chosen.budget in made.model.budgets()


def test_folders_that_are_numbered_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "100", "1"):
        save_picture(tmp_path / name / "1.png", np.zeros((6, 6), np.uint8))
    assert list(find_pictures(str(tmp_path)).of_class) == ["1", "9", "10", "100"]
    save_picture(tmp_path / "none/1.png", np.zeros((6, 6), np.uint8))
    assert list(find_pictures(str(tmp_path)).of_class) == ["1", "10", "100", "9", "none"]


def test_any_change_of_the_pictures_changes_the_digest(folder: Path) -> None:
    seen = {find_pictures(str(folder)).digest}
    os.utime(folder / "bag/1.png", (1, 1))
    seen.add(find_pictures(str(folder)).digest)
    (folder / "bag/1.png").rename(folder / "bag/one.png")
    seen.add(find_pictures(str(folder)).digest)
    (folder / "bag/one.png").unlink()
    seen.add(find_pictures(str(folder)).digest)
    assert len(seen) == 4
    (folder / "bag/notes.txt").unlink()
    assert find_pictures(str(folder)).digest in seen


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data.rename(data.with_name("elsewhere")), "no such folder: .*one subfolder for each class"),
        (lambda data: (data / "hat").mkdir(), "has 4 subfolders, the model 3 classes"),
        (lambda data: (data / "bag/2.png").unlink(), "has 5 pictures in bag, 18 images need 6 of each class"),
        (
            lambda data: (data / "bag/2.png").write_bytes(b"\x89PNG"),
            r"cannot read the picture .*2\.png: mend or remove",
        ),
        (lambda data: (data / "bag/9.png").symlink_to("gone.png"), r"cannot read the picture .*9\.png: No such file"),
    ],
    ids=["missing", "classes", "few", "broken", "dangling"],
)
def test_an_unfit_folder_is_refused(folder: Path, converted: ActVAR, spoil: object, message: str) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        distill(teacher_model(), converted, settings(folder, images=18))
