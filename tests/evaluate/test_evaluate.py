from __future__ import annotations

import pytest
import torch

from actvar_cli.errors import InputError
from actvar_cli.evaluate import reference
from actvar_cli.evaluate.distance import frechet_distance, moments
from actvar_cli.evaluate.evaluate import Evaluation, batch_seed, evaluate
from actvar_cli.evaluate.images import to_uint8
from actvar_cli.evaluate.pairs import sample_pairs
from actvar_cli.model.config import GuidanceConfig, TransformerConfig
from actvar_cli.model.counters import WorkCounter, dense_macs
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress
from tests.evaluate.fashion import stand_in, tiny_fashion
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def _assets(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


class Said(Progress):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


def test_a_model_equals_itself() -> None:
    model = tiny_fashion()
    e = evaluate(model, model, count=20, batch=8)
    assert e.agreement.kl == 0
    assert e.agreement.token_match == e.agreement.sampled_token_match == 1
    assert e.agreement.pixel_difference == 0
    assert e.distance_ratio == 1
    assert e.student.cost == e.teacher.cost == 1


def test_both_models_are_guided_as_the_compressed_one_has_learned() -> None:
    teacher, student = tiny_fashion(), tiny_fashion()
    student.configure(guidance=GuidanceConfig(cfg=3.0))
    e = evaluate(student, teacher, count=20)
    assert e.cfg == 3
    assert e.agreement.sampled_token_match == 1
    assert e.teacher.distance != evaluate(teacher, teacher, count=20).teacher.distance


def test_numbers_are_those_of_the_sampling_done() -> None:
    teacher, student = tiny_fashion(), tiny_fashion(sparse=True)
    student.threshold = 0.0
    e = evaluate(student, teacher, count=25, batch=10, seed=3)
    shipped = reference.load_reference()
    labels, counter, batches = balanced_labels(25, 10), WorkCounter(student.config), []
    for number, y in enumerate(labels.split(10)):
        batches.append(student.sample(y, seed=batch_seed(3, number), counter=counter))
    features, predictions = shipped.judge(to_uint8(torch.cat([b.images for b in batches])))
    assert e.student.cost == pytest.approx(counter.cost)
    assert e.student.cost < 1
    assert e.student.distance == pytest.approx(frechet_distance(*moments(features), *shipped.test), rel=1e-4)
    assert e.student.accuracy == pytest.approx((predictions == labels).float().mean().item())
    by_class = e.student.accuracy_by_class
    assert by_class is not None
    assert list(by_class) == list(reference.CLASS_NAMES)
    assert by_class["bag"] == pytest.approx((predictions[labels == 8] == 8).float().mean().item())
    assert e.floor == pytest.approx(shipped.floor)
    assert e.feature_network == "var-fashion classifier, 128-d"
    assert e.agreement.images == 25
    assert e.agreement.kl > 0
    assert 0 < e.agreement.sampled_token_match < 1
    assert e.seed == 3
    rows = {what: cells for what, *cells in e.rows()}
    assert rows["cost, transformer"] == ["100.0 %", f"{100 * e.student.cost:.1f} %"]


def test_same_seed_same_numbers_other_seed_others() -> None:
    teacher, student = tiny_fashion(), tiny_fashion(sparse=True)
    student.threshold = 0.0
    first, again, other = (evaluate(student, teacher, count=20, batch=10, seed=s) for s in (0, 0, 1))
    assert (first.agreement, first.student.distance) == (again.agreement, again.student.distance)
    assert first.agreement != other.agreement


def test_json_round_trip() -> None:
    e = evaluate(tiny_fashion(), tiny_fashion(seed=1), count=10, batch=10)
    assert Evaluation.model_validate_json(e.model_dump_json()) == e


def test_few_images_are_said_to_be_few() -> None:
    said = Said()
    e = evaluate(tiny_fashion(), tiny_fashion(), count=2, batch=1, progress=said)
    assert said.messages == e.notes
    assert e.notes[0].startswith("2 images are few: below 1000 a Fréchet distance is mostly bias")


def test_other_models_get_their_agreement_and_a_note() -> None:
    model = tiny_model(experts=True)
    model.threshold = 0.0
    e = evaluate(model, tiny_model(), count=4, batch=2)
    assert e.feature_network is e.floor is e.student.distance is e.teacher.accuracy is e.distance_ratio is None
    assert e.agreement.kl > 0
    assert e.notes == [
        "no feature network is shipped for tiny's pictures: agreement with the teacher only, no distance"
    ]
    assert not any("Fréchet" in what for what, _, _ in e.rows())


def test_agreement_is_measured_on_enough_images_not_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actvar_cli.evaluate.evaluate.AGREEMENT_IMAGES", 5)
    assert evaluate(tiny_model(), tiny_model(seed=1), count=12, batch=4).agreement.images == 5


def test_bad_input() -> None:
    with pytest.raises(InputError, match="tiny and var-fashion cannot be compared: their tokenizers or classes differ"):
        evaluate(tiny_model(), tiny_fashion(), count=10)
    with pytest.raises(InputError, match="1 images are too few to evaluate: at least 2, better 1000 or more"):
        evaluate(tiny_model(), tiny_model(), count=1)
    with pytest.raises(InputError, match="batch must be at least 1, not 0"):
        evaluate(tiny_model(), tiny_model(), count=4, batch=0)


def test_tokens_of_another_codebook_are_not_compared() -> None:
    teacher, student = tiny_fashion(), tiny_fashion()
    codes = student.tokenizer.quantize.embedding.weight
    with torch.no_grad():
        # As whoever keeps it in 16 bits has it.
        codes.copy_(codes.bfloat16())
        assert evaluate(student, teacher, count=10).agreement.kl < 0.1
        codes.copy_(codes.roll(1, 0))
    for compare in (lambda: evaluate(student, teacher, count=10), lambda: sample_pairs(student, teacher)):
        with pytest.raises(InputError, match="cannot be compared: their tokenizers have different codebooks"):
            compare()


def test_cost_is_a_share_of_the_teachers() -> None:
    teacher, student = tiny_fashion(), tiny_fashion()
    narrower = TransformerConfig(depth=1, embed_dim=32, num_heads=2, num_classes=10)
    config = student.config.model_copy(update={"transformer": narrower})
    thin = ActVAR(config, VAR(config), student.tokenizer).eval()
    e = evaluate(thin, teacher, count=10)
    assert e.teacher.cost == 1
    assert e.student.cost == pytest.approx(dense_macs(config) / dense_macs(teacher.config))
    assert e.student.cost < 0.7


def test_two_seeds_share_no_batch() -> None:
    seeds = {batch_seed(seed, number) for seed in range(5) for number in range(1000)}
    assert len(seeds) == 5000


def test_pairs_are_of_the_same_seeds_with_real_images_beside() -> None:
    teacher = tiny_fashion()
    rows = sample_pairs(teacher, teacher, per_class=2)
    assert [row.name for row in rows] == list(reference.CLASS_NAMES)
    assert all(torch.equal(row.teacher, row.student) for row in rows)
    assert all(row.real is not None and row.real.shape == (2, 1, 32, 32) for row in rows)
    assert not torch.equal(rows[0].teacher, rows[1].teacher)


def test_pairs_of_other_models_have_numbered_classes() -> None:
    rows = sample_pairs(tiny_model(seed=1), tiny_model(), classes=2, per_class=3)
    assert [(row.name, row.teacher.shape, row.real) for row in rows] == [
        ("class 0", (3, 1, 6, 6), None),
        ("class 1", (3, 1, 6, 6), None),
    ]


def test_pairs_show_each_model_s_own_pictures() -> None:
    teacher, student = tiny_model(seed=1), tiny_model()
    row = sample_pairs(student, teacher, classes=1, per_class=2)[0]
    assert torch.equal(row.teacher, to_uint8(teacher.sample([0, 0], seed=0).images))
    assert torch.equal(row.student, to_uint8(student.sample([0, 0], seed=0).images))
    with pytest.raises(InputError, match="tiny and var-fashion cannot be compared"):
        sample_pairs(tiny_model(), tiny_fashion())


def test_settings_of_sampling_reach_it() -> None:
    def found(**how: float) -> tuple[float, float]:
        made = evaluate(tiny_model(), tiny_model(seed=1), count=6, batch=3, **how)  # type: ignore[arg-type]
        return made.agreement.kl, made.agreement.pixel_difference

    usual = found()
    assert found(cfg=4.0)[0] != usual[0]
    # What is drawn from the logits is another matter than the logits.
    assert found(top_k=1)[1] != usual[1] and found(top_p=0.5)[1] != usual[1]
