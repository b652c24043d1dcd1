"""How much predictions depend on each neuron."""

from __future__ import annotations

import torch

from actvar_cli.convert.convert import convert
from actvar_cli.convert.recording import draw_samples
from actvar_cli.convert.sensitivity import taylor_scores
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.progress import Progress
from tests.distill.conftest import teacher_model


def test_a_neuron_that_nothing_reads_does_not_matter_and_a_loud_one_does() -> None:
    model = teacher_model()
    with torch.no_grad():
        model.transformer.stack[0].ffn.fc2.weight[:, 3] = 0
        model.transformer.stack[1].ffn.fc2.weight[:, 7] *= 30
    before = model.transformer.state_dict()
    scores = taylor_scores(model, draw_samples(model, 8, seed=0, progress=Progress()), Progress())
    assert [len(block) for block in scores] == [128, 128]
    assert scores[0][3] == 0
    assert (scores[0] > 0).sum() == 127
    assert scores[1].argmax() == 7
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.transformer.state_dict().items())


def test_by_taylor_the_first_expert_has_the_neurons_that_matter_most() -> None:
    model = teacher_model()
    with torch.no_grad():
        model.transformer.stack[0].ffn.fc2.weight[:, 40:72] *= 30
    ffn = convert(model, ConvertSettings(experts=4, images=16, method="taylor")).model.transformer.stack[0].ffn
    assert sorted(ffn.permutation[:32].tolist()) == list(range(40, 72))
