from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actvar_cli.errors import InputError
from actvar_cli.model.config import ModelConfig, TokenizerConfig, TransformerConfig
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.weights.infer import infer_patch_nums, infer_tokenizer, infer_transformer

PN512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def shapes(depth: int, *, shared_aln: bool = False, patch_nums: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """The tensors of a published depth, without storage."""
    tokenizer = TokenizerConfig(patch_nums=patch_nums) if patch_nums else TokenizerConfig()
    arch = TransformerConfig(depth=depth, embed_dim=64 * depth, num_heads=depth, shared_aln=shared_aln)
    with torch.device("meta"):
        return dict(VAR(ModelConfig(name="x", tokenizer=tokenizer, transformer=arch)).state_dict())


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
def test_published_256(depth: int) -> None:
    tensors = shapes(depth)
    assert infer_patch_nums(tensors, "f") == TokenizerConfig().patch_nums
    assert infer_transformer(tensors, "f") == TransformerConfig(depth=depth, embed_dim=64 * depth, num_heads=depth)


def test_published_512() -> None:
    tensors = shapes(36, shared_aln=True, patch_nums=PN512)
    assert infer_patch_nums(tensors, "f") == PN512
    expected = TransformerConfig(depth=36, embed_dim=2304, num_heads=36, shared_aln=True)
    assert infer_transformer(tensors, "f") == expected


@pytest.mark.parametrize(
    "config",
    [
        TokenizerConfig(),
        TokenizerConfig(vocab_size=64, z_channels=8, ch=32, ch_mult=(1, 2, 3), num_res_blocks=1, in_channels=1),
    ],
)
def test_tokenizer(config: TokenizerConfig) -> None:
    with torch.device("meta"):
        tensors = dict(Tokenizer(config).state_dict())
    assert infer_tokenizer(tensors, config.patch_nums, "f") == config


def test_patch_numbers_of_no_known_schedule() -> None:
    tensors = {"pos_1LC": torch.zeros(1, 14, 8), "lvl_embed.weight": torch.zeros(3, 8)}
    with pytest.raises(InputError, match=r"^f: 14 tokens in 3 scales fit no known patch numbers; keep the buffer"):
        infer_patch_nums(tensors, "f")
    tensors["lvl_1L"] = torch.tensor([[0] + [1] * 4 + [2] * 9])
    assert infer_patch_nums(tensors, "f") == (1, 2, 3)
    tensors["lvl_1L"] = torch.tensor([[0] * 2 + [1] * 3 + [2] * 9])
    with pytest.raises(InputError, match="'lvl_1L' does not describe square scales of 14 tokens"):
        infer_patch_nums(tensors, "f")


@pytest.mark.parametrize("scales", [[-1.0] * 5, [float("nan")] * 5, [1e13] * 5, [0.0, 1, 1, 1, 1, 2]])
def test_scales_of_positions_that_make_no_sense(scales: list[float]) -> None:
    tensors = {"pos_1LC": torch.zeros(1, 5, 8), "lvl_embed.weight": torch.zeros(2, 8), "lvl_1L": torch.tensor([scales])}
    with pytest.raises(InputError, match="'lvl_1L' does not describe square scales of 5 tokens"):
        infer_patch_nums(tensors, "f")
    assert infer_patch_nums({**tensors, "lvl_1L": torch.tensor([[0, 1, 1, 1, 1]])}, "f") == (1, 2)


def test_empty_tensors() -> None:
    with pytest.raises(InputError, match=r"'class_emb\.weight' has shape \(4, 0\): it is empty"):
        infer_transformer({"class_emb.weight": torch.zeros(4, 0)}, "f")


def test_heads_without_l2_norm_need_the_published_width() -> None:
    tensors = {k: v for k, v in shapes(16).items() if "scale_mul" not in k}
    config = infer_transformer(tensors, "f")
    assert (config.num_heads, config.attn_l2_norm) == (16, False)
    tensors["class_emb.weight"] = torch.zeros(11, 100)
    with pytest.raises(InputError, match="width 100 is no multiple of 64: the number of heads is unknown"):
        infer_transformer(tensors, "f")
