"""Writes a checkpoint of a published shape with random weights: what memory and time can be measured on without a Hub.

    python benchmarks/random_checkpoint.py 16 -o /tmp/random

makes ``var_d16.pth`` and, beside it, ``vae_ch160v4096z32.pth``, in the layout and of about the size of
the published files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.weights.published import published_state
from actvar_cli.weights.zoo import VAE, published_config


def write(folder: Path, depth: int, *, seed: int = 0) -> Path:
    """Write the two files where they are not there yet, and return the transformer's."""
    path, tokenizer = folder / f"var_d{depth}.pth", folder / VAE.file
    folder.mkdir(parents=True, exist_ok=True)
    config = published_config(depth)
    if not path.exists() or not tokenizer.exists():
        torch.manual_seed(seed)
        model = ActVAR(config, VAR(config), Tokenizer(config.tokenizer))
        for target, state in ((path, published_state(model)), (tokenizer, model.tokenizer.state_dict())):
            torch.save(state, target)
    return path


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depth", type=int, help="16, 20, 24, 30 or 36")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    path = write(args.output, args.depth)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
