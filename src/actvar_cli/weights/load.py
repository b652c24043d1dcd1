"""From the name of a model to the model, ready to sample.

A name is a known model's, the path of a file or a folder, or ``hf://owner/repo[@revision][/file]``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from actvar_cli.errors import ActvarError, InputError, NotHereError, did_you_mean
from actvar_cli.model.config import ModelConfig, TokenizerConfig, TokenizerReference, TransformerConfig
from actvar_cli.model.device import usable_device
from actvar_cli.model.precision import set_dtype
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress
from actvar_cli.weights.artefact import CONFIG_KEY, parse_config, tokenizer_beside
from actvar_cli.weights.checkpoint import Checkpoint, read_checkpoint
from actvar_cli.weights.converted import published_digest
from actvar_cli.weights.export import TOKENIZER, WEIGHTS
from actvar_cli.weights.fetch import fetch, fetch_tokenizer, here, hub_file, parse_hub_name
from actvar_cli.weights.hub_model import hub_model, is_missing, sibling
from actvar_cli.weights.infer import infer_patch_nums, infer_tokenizer, infer_transformer
from actvar_cli.weights.shards import INDEX, files_of, is_index
from actvar_cli.weights.zoo import KNOWN, VAE, HubFile, of_shape

DERIVED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
"""Buffers of published state dicts that follow from the architecture."""


def tokenizer_files(path: Path) -> tuple[str, ...]:
    """Where the tokenizer of a plain state dict is looked for, beside it; the first that is there counts."""
    return tokenizer_beside(path).name, TOKENIZER, VAE.file


@dataclass(frozen=True)
class Source:
    """A file on disk, what to call the model in it, and how to get a file from beside it (``None``: there is none).

    ``file`` is what the file is called where it comes from: a converted one has a name of its own. ``known_tokenizer``
    gets the tokenizer of a known model.
    """

    path: Path
    name: str
    file: Path
    beside: Callable[[str], Path | None]
    zoo_name: str | None = None
    known_tokenizer: Callable[[str], Path] = fetch_tokenizer

    def tokenizer(self) -> Path | None:
        """The tokenizer beside a plain state dict, if there is one."""
        names = () if self.zoo_name else tokenizer_files(self.file)
        return next((path for name in names if (path := _try(self.beside, name))), None)


def load(name: str | Path, *, device: str = "cpu", budget: float | None = None, dtype: str = "float32") -> ActVAR:
    """A model by its name, in eval mode on ``device``, at ``budget``, its weights in ``dtype`` (see `set_dtype`).

    Without ``budget`` it works at the one it was made for, and dense if it was made for none; ``1.0`` is dense.
    Raises InputError, one line, for whatever is wrong with the name, the file, the budget, the device or the type.
    """
    source = locate(str(name))
    checkpoint = read_checkpoint(source.path)
    if checkpoint.transformer is None:
        raise InputError(f"{source.path} is a tokenizer (VQVAE), not a transformer: name the VAR file")
    config, tokenizer_tensors = _describe(source, checkpoint)
    model = build(config, checkpoint.transformer, tokenizer_tensors, str(source.path))
    try:
        model.set_budget(_default_budget(model) if budget is None else budget)
    except ValueError as error:
        raise InputError(str(error)) from error
    set_dtype(model, dtype)
    return model.to(usable_device(device))


def _default_budget(model: ActVAR) -> float:
    """The budget a model was made for, or the calibrated one nearest to it; 1 for a dense model."""
    wanted, calibrated = model.config.default_budget, model.budgets()
    return min(max(wanted, calibrated[0]), calibrated[-1]) if wanted is not None and calibrated else 1.0


def locate(name: str, *, progress: Progress | None = None) -> Source:
    """The file that ``name`` stands for, fetched if it is not on this machine."""
    if name in KNOWN:
        path = fetch(name, progress=progress)
        return Source(path, name, path, lambda _: None, zoo_name=name)
    if name.startswith("hf://"):
        return _hub_source(name, progress)
    if not name:
        # As a path that would be the folder where one happens to be.
        raise InputError("no model is named: `actvar ls` shows the known ones")
    path = Path(name).expanduser()
    if path.is_dir():
        path = _file_in(path)
    if not path.exists():
        if path.suffix or os.sep in name:
            raise InputError(f"no such file: {name}")
        raise InputError(f"unknown model {name!r}{did_you_mean(name, list(KNOWN))}: `actvar ls` shows the known ones")
    stem = path.name.split(".")[0] if is_index(path) else path.stem
    stem = path.parent.resolve().name if stem == "model" else stem
    return Source(path, stem, path, lambda file: p if (p := path.parent / file).is_file() else None)


def _hub_source(name: str, progress: Progress | None) -> Source:
    file, path = hub_model(name, progress=progress)

    def beside(other: str) -> Path:
        return hub_file(sibling(file, other), progress=progress)

    known = partial(fetch_tokenizer, progress=progress)
    return Source(path, file.repo.split("/")[-1], Path(file.file), beside, None, known)


def locate_here(name: str) -> Source | None:
    """What `locate` finds, if it is on this machine: asks no network, and converts nothing."""
    if name in KNOWN:
        path = here(KNOWN[name].transformer)
        return Source(path, name, path, lambda _: None, name, _tokenizer_here) if path else None
    if not name.startswith("hf://"):
        return replace(locate(name), known_tokenizer=_tokenizer_here)
    file = parse_hub_name(name)
    found = [file, replace(file, file=INDEX)] if file.file == WEIGHTS else [file]
    for one in found:
        path = here(one)
        if path and _is_whole(path):
            beside = partial(_sibling_here, one)
            return Source(path, file.repo.split("/")[-1], Path(one.file), beside, None, _tokenizer_here)
    return None


def _is_whole(path: Path) -> bool:
    try:
        return bool(files_of(path))
    except InputError:
        return False  # A shard has not come yet.


def _sibling_here(file: HubFile, name: str) -> Path:
    path = here(sibling(file, name))
    if path is None:
        raise NotHereError(f"{name} of {file.repo} is not on this machine: actvar fetch hf://{file.repo}")
    return path


def _tokenizer_here(name: str) -> Path:
    path = here(KNOWN[name].tokenizer)
    if path is None:
        raise NotHereError(f"the tokenizer of {name} is not on this machine: actvar fetch {name}")
    return path


def config_of(source: Source) -> ModelConfig | None:
    """The configuration of the model in a file, its tokenizer fetched if that is not on this machine.

    ``None`` where the file holds no transformer.
    """
    checkpoint = read_checkpoint(source.path)
    return None if checkpoint.transformer is None else _describe(source, checkpoint)[0]


def _file_in(folder: Path) -> Path:
    for name in (WEIGHTS, INDEX):
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".pth"))
    found = [p for p in found if "tokenizer" not in p.name and not p.name.startswith("vae")]
    if len(found) == 1:
        return found[0]
    names = ", ".join(p.name for p in found[:4]) or "none"
    raise InputError(f"{folder} holds no model.safetensors; name one file of it (checkpoints there: {names})")


def _describe(source: Source, checkpoint: Checkpoint) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the tokenizer's tensors: as the artefact says, else inferred."""
    assert checkpoint.transformer is not None
    if CONFIG_KEY in checkpoint.metadata:
        config = parse_config(checkpoint.metadata[CONFIG_KEY], source.path)
        return config, _referenced_tokenizer(source, config)
    file = str(source.path)
    patch_nums = infer_patch_nums(checkpoint.transformer, file)
    tokenizer, reference = checkpoint.tokenizer, None
    if tokenizer is None:
        tokenizer, reference = _guessed_tokenizer(source, checkpoint.transformer, patch_nums)
    try:
        config = ModelConfig(
            name=source.name,
            tokenizer=infer_tokenizer(tokenizer, patch_nums, file),
            transformer=infer_transformer(checkpoint.transformer, file),
            tokenizer_reference=reference,
        )
    except ValidationError as error:
        raise InputError(f"{file}: no VAR has these shapes: {error.errors()[0]['msg']}") from error
    return config, tokenizer


def _referenced_tokenizer(source: Source, config: ModelConfig) -> dict[str, Tensor]:
    reference = config.tokenizer_reference
    if reference is None:
        raise InputError(f"{source.path} names no tokenizer")
    known, file = reference.name in KNOWN, Path(reference.name).name
    path = source.known_tokenizer(reference.name) if known else source.beside(file)
    if path is None:
        raise InputError(f"the tokenizer of {source.path} is missing: expected {reference.name!r} beside it")
    digest = published_digest(path)
    if digest != reference.sha256:
        raise InputError(
            f"{path} is not the tokenizer that {source.path} was made with: its sha256 is {digest[:12]}…, "
            f"expected {reference.sha256[:12]}…"
        )
    return _tokenizer_tensors(path)


def _guessed_tokenizer(
    source: Source, transformer: Mapping[str, Tensor], patch_nums: tuple[int, ...]
) -> tuple[dict[str, Tensor], TokenizerReference | None]:
    """The tokenizer of a plain state dict: a file beside it, else the published one if it fits."""
    zoo = [n for n, entry in KNOWN.items() if not entry.embedded]
    published = zoo[-1] if patch_nums[-1] == 32 else zoo[0]
    fits = _vocab_and_channels(transformer) == (4096, 32) and patch_nums[-1] in (16, 32)
    path = source.tokenizer()
    if path is None and not fits:
        raise InputError(
            f"{source.path} is not of the published tokenizer, and has none of its own: "
            f"put the tokenizer beside it as {TOKENIZER!r}"
        )
    path = path or source.known_tokenizer(source.zoo_name or published)
    file, digest = KNOWN[published].tokenizer, published_digest(path)
    known = isinstance(file, HubFile) and file.sha256 == digest
    return _tokenizer_tensors(path), TokenizerReference(name=published, sha256=digest) if known else None


def _try(beside: Callable[[str], Path | None], file: str) -> Path | None:
    try:
        return beside(file)
    except ActvarError as error:
        # A repository need not hold the tokenizer: the published one may still fit. One that it holds must come.
        if isinstance(error, NotHereError) or is_missing(error):
            return None
        raise


def _vocab_and_channels(transformer: Mapping[str, Tensor]) -> tuple[int, int]:
    vocab, channels = transformer.get("head.weight"), transformer.get("word_embed.weight")
    return (len(vocab) if vocab is not None else 0, channels.shape[-1] if channels is not None else 0)


def _tokenizer_tensors(path: Path) -> dict[str, Tensor]:
    tensors = read_checkpoint(path).tokenizer
    if tensors is None:
        raise InputError(f"{path} is not a tokenizer (VQVAE): it holds a transformer")
    return tensors


def build(config: ModelConfig, transformer: Mapping[str, Tensor], tokenizer: Mapping[str, Tensor], file: str) -> ActVAR:
    """The model of ``config`` with these weights in float32; InputError naming the first key that does not fit."""
    # Built without storage and given the file's own tensors: a model of many GB is then in memory once.
    with torch.device("meta"):
        var, tok = VAR(config), Tokenizer(config.tokenizer)
    _fill(var, {k: v for k, v in transformer.items() if not k.endswith(DERIVED)}, file, _in_words(config, transformer))
    var.derive_buffers()
    hits = "quantize.ema_vocab_hit_SV"
    # A statistic of training, which only some files hold; it has no part in the result.
    blank = torch.zeros(len(config.tokenizer.patch_nums), config.tokenizer.vocab_size)
    kept = {k: v for k, v in tokenizer.items() if k != hits}
    stored = tokenizer.get(hits)
    kept[hits] = stored if stored is not None and stored.shape == blank.shape else blank
    _fill(tok, kept, f"tokenizer of {file}", _tokenizer_in_words(config.tokenizer))
    return ActVAR(config, var, tok).eval()


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], file: str, words: str) -> None:
    expected = module.state_dict()
    for key, wanted in expected.items():
        if key not in tensors:
            raise InputError(f"{file}: tensor {key!r} is missing; the file looks like {words}")
        found, shape = tuple(tensors[key].shape), tuple(wanted.shape)
        if found != shape:
            raise InputError(f"{file}: tensor {key!r} has shape {found}, expected {shape} for {words}")
    for key, tensor in tensors.items():
        if key not in expected:
            raise InputError(f"{file}: tensor {key!r} has no place in {words}")
        if expected[key].is_floating_point() != tensor.is_floating_point() or tensor.is_complex():
            raise InputError(f"{file}: tensor {key!r} has values of type {str(tensor.dtype).removeprefix('torch.')}")
    full = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    module.load_state_dict(full, assign=True)


def _in_words(config: ModelConfig, transformer: Mapping[str, Tensor]) -> str:
    """What was expected; and what the tensors look like, where an artefact's config says otherwise than they."""
    expected = _arch_in_words(config.transformer)
    try:
        found = _arch_in_words(infer_transformer(transformer, ""))
    except (InputError, ValidationError):
        return expected
    return expected if found == expected else f"{expected}, but the tensors are of {found}"


def _arch_in_words(arch: TransformerConfig) -> str:
    known = of_shape(arch.depth, arch.embed_dim, arch.num_heads)
    like = f" (like {known})" if known else ""
    return f"a VAR of depth {arch.depth}, width {arch.embed_dim}, {arch.num_heads} heads{like}"


def _tokenizer_in_words(config: TokenizerConfig) -> str:
    return f"a tokenizer of {config.vocab_size} codes, {config.z_channels} channels, width {config.ch}"
