"""The models that are known by name: where their files are, how large, with which digest.

Sizes and digests as the Hub states them; FID as the authors' README does (50,000 images, cfg 1.5). The revision is the
commit at which users have recorded these digests, so that a later change of the repository changes nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from actvar_cli.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from actvar_cli.model.config import ModelConfig

ASSETS = Path(str(files("actvar_cli"))) / "assets"
"""Where the embedded model is."""

REVISION = "main"
"""What is fetched of a repository where nobody says otherwise."""

PINNED = "6d0ee6598a42f75079aa79e58b012b57b284c91b"
"""The commit of the published repository that the digests below belong to."""


@dataclass(frozen=True)
class HubFile:
    """One file of a model repository; ``size`` in bytes; ``sha256`` is empty where the publisher's is not known.

    ``superseded``: how the sha256 of older contents of the file begin.
    """

    repo: str
    file: str
    size: int
    sha256: str = ""
    revision: str = REVISION
    superseded: tuple[str, ...] = ()


@dataclass(frozen=True)
class ZooEntry:
    """A known model: its transformer and its tokenizer, on the Hub or, as file names in `ASSETS`, in the package."""

    name: str
    what: str
    transformer: HubFile | str
    tokenizer: HubFile | str
    fid: float | None = None
    license: str = "mit"
    depth: int | None = None

    @property
    def embedded(self) -> bool:
        """Whether the model ships with the package."""
        return isinstance(self.transformer, str)


VAE = HubFile(
    "FoundationVision/var",
    "vae_ch160v4096z32.pth",
    436_075_834,
    "7c3ec27ae28a3f87055e83211ea8cc8558bd1985d7b51742d074fb4c2fcf186c",
    PINNED,
)
"""The tokenizer of every published model."""


def _published(depth: int, side: int, size: int, sha256: str, fid: float, superseded: tuple[str, ...] = ()) -> ZooEntry:
    file = HubFile("FoundationVision/var", f"var_d{depth}.pth", size, sha256, PINNED, superseded)
    return ZooEntry(f"var-d{depth}", f"VAR of depth {depth}, ImageNet {side} px", file, VAE, fid, depth=depth)


KNOWN: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry(
            "var-fashion",
            "small VAR trained on Fashion-MNIST, 32 px; ships with actvar",
            "var-fashion.safetensors",
            "var-fashion-tokenizer.safetensors",
        ),
        ZooEntry(
            "var-fashion-actvar",
            "var-fashion, compressed: --budget 0.3 to 0.75; ships with actvar",
            "var-fashion-actvar.safetensors",
            "var-fashion-tokenizer.safetensors",
        ),
        _published(
            16,
            256,
            1_243_116_346,
            "4f6151aad91c94e03e224dd7358d8389fa05301c0c291279566998efb54b0ecb",
            3.55,
            ("535dc4e5",),
        ),
        _published(
            20,
            256,
            2_405_720_018,
            "f7d232978e6fe82a4f2e0f5d82b012e01b1aa5abfe93ce2b56104ec0e878a10f",
            2.95,
            ("d75d4027",),
        ),
        # The exact sizes of d24 and d30 are not known here: they are rounded.
        _published(24, 256, 4_100_000_000, "12c03619b2d3906ed19fe59539a90aadf60d72287dbaa31cf540435e76ddf789", 2.33),
        _published(30, 256, 8_040_000_000, "7b11551dd4d794c7d6ed10b3d2822d42efe609a86128171b646e543dd2633b56", 1.97),
        _published(36, 512, 9_436_153_085, "660201c829c6f7b775b9119867c12c11aaa68c72770dc33653eec1fa67e27d4d", 2.63),
    )
}


def published_config(depth: int) -> ModelConfig:
    """The architecture that was published at ``depth``: for 512 px where that is 36, for 256 px at all others."""
    from actvar_cli.model.config import ModelConfig, TokenizerConfig, TransformerConfig

    large = depth == 36
    return ModelConfig(
        name=f"var-d{depth}",
        tokenizer=TokenizerConfig(patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)) if large else TokenizerConfig(),
        transformer=TransformerConfig(depth=depth, embed_dim=64 * depth, num_heads=depth, shared_aln=large),
    )


def what_is_old(digest: str) -> str:
    """What a file of this sha256 is, in words, if its publisher has replaced it; else an empty string."""
    for entry in KNOWN.values():
        file = entry.transformer
        if isinstance(file, HubFile) and digest.startswith(file.superseded):
            return f"an old {file.file} (sha256 {digest[:8]}…) that its authors replaced in April 2024"
    return ""


def of_shape(depth: int, width: int, heads: int) -> str | None:
    """The name of the published model with that many blocks, channels and heads."""
    shape = published_config(depth).transformer
    if (width, heads) != (shape.embed_dim, shape.num_heads):
        return None
    return next((entry.name for entry in KNOWN.values() if entry.depth == depth), None)


def base_of(names: Iterable[str | None], digests: Iterable[str | None]) -> ZooEntry | None:
    """The first known model that one of ``names`` or of the sha256s, maybe joined by ``+``, belongs to."""
    for name in names:
        if name in KNOWN:
            return KNOWN[name]
    by_digest = {e.transformer.sha256: e for e in KNOWN.values() if isinstance(e.transformer, HubFile)}
    for digest in digests:
        for part in (digest or "").split("+"):
            if part in by_digest:
                return by_digest[part]
    return None


def entry_of(name: str) -> ZooEntry:
    """The entry called ``name``; InputError with the nearest name otherwise."""
    if name not in KNOWN:
        raise InputError(f"unknown model {name!r}{did_you_mean(name, list(KNOWN))}: `actvar ls` shows the known ones")
    return KNOWN[name]
