from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from actvar_cli.model.config import Dial
from actvar_cli.weights.card import About, Metric, model_card
from tests.tiny import tiny_config

METRICS = (
    Metric("cost", "cost, transformer: share of the dense FLOPs", 0.7812349, "78.1 %", "100.0 %"),
    Metric("frechet_distance", "Fréchet distance (net)", 0.5, "0.500", "0.400", ("fashion_mnist", "Fashion-MNIST")),
)


def card(about: About) -> ModelCard:
    config = tiny_config(experts=True).model_copy(update={"default_budget": 0.8})
    return ModelCard(model_card(config, dtype="float32", about=about))


def test_the_header_reads_back() -> None:
    data = card(About(base_model="FoundationVision/var", license="mit", metrics=METRICS)).data
    assert (data.base_model, data.license, data.library_name) == ("FoundationVision/var", "mit", "actvar")
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.model_name == "tiny"
    found = [(r.metric_type, r.metric_name, r.metric_value, r.dataset_name) for r in data.eval_results]
    assert found == [
        ("cost", "cost, transformer: share of the dense FLOPs", 0.781235, "images sampled from this model"),
        ("frechet_distance", "Fréchet distance (net)", 0.5, "Fashion-MNIST"),
    ]


def test_what_is_not_known_is_not_said() -> None:
    data = card(About()).data.to_dict()
    assert not {"base_model", "license", "model-index"} & data.keys()


def test_the_text() -> None:
    text = card(About(metrics=METRICS, lineage={"seed": 1, "steps": [{"step": "convert", "experts": 4}]})).text
    assert "| what | dense | this model |\n|---|---|---|\n| cost, transformer: share of" in text
    assert "| Fréchet distance (net) | 0.400 | 0.500 |" in text
    assert "- seed: 1\n\n1. convert: experts 4" in text
    assert "split into 4 experts" in text
    assert 'actvar_cli.load("path/to/this/folder", budget=0.8)' in text


def test_a_pushed_card_shows_how_to_load_it() -> None:
    assert 'actvar_cli.load("hf://me/small", budget=0.8)' in card(About(repo="me/small")).text


def test_what_a_token_gate_decides() -> None:
    def told(**changes: Any) -> str:
        config = tiny_config(experts=True, token_gate=True)
        gate = config.token_gate.model_copy(update=changes) if config.token_gate else None
        return model_card(config.model_copy(update={"token_gate": gate}), dtype="float32", about=About())

    assert "which tokens of the scales 2x2, 3x3 are computed." in told()
    assert "which tokens of the scales 2x2, 3x3 attend." in told(skips="attention")
    assert "token gate" not in card(About()).text


def test_what_begins_as_the_original() -> None:
    dials = [Dial(budget=b, threshold=0.0, cost=b, paired_scales=k) for b, k in ((0.4, 0), (0.5, 0), (0.6, 2))]
    config = tiny_config(experts=True, guidance=True).model_copy(update={"dials": tuple(dials)})
    assert "Above a budget of 0.5 the first scales are" in model_card(config, dtype="float32", about=About())
    assert "both rows know" not in model_card(config, dtype="float32", about=About())
    guided = tiny_config(experts=True, guidance=True, context=True).model_copy(update={"dials": tuple(dials)})
    assert "what both rows know is read by one" in model_card(guided, dtype="float32", about=About())
    alone = config.model_copy(update={"dials": tuple(dials[:2])})
    assert "Above a budget" not in model_card(alone, dtype="float32", about=About())
