"""What fine-tuning changes about a network before it begins (arXiv 2205.14443)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.config import ViTConfig
from leanvit.kernels.relative_position import table_rows
from leanvit.weights.report import Weights

TABLE = "layers.{}.attn.relative_position_bias_table"


def fit_to_tune(weights: Weights, *, drop_path: float, position_bias: bool = False) -> Weights:
    """Return weights as fine-tuning begins with them.

    A plain ViT's view feature becomes the norm of the patches' mean, its `fc_norm` being the `norm`
    that it had, and positions become trained. Other families stay as they are, but for the
    stochastic depth. position_bias: add one to every block, of zeros, which changes nothing yet;
    a bias that is there already stays. Raises ValueError for any network but a plain ViT.
    """
    config = weights.config
    if not isinstance(config, ViTConfig):
        if position_bias:
            raise ValueError(
                f"position_bias is added to plain ViTs, and this network is of the family "
                f"{config.kind}; set it to false."
            )
        return replace(weights, config=replace(config, drop_path=drop_path))
    tuned = replace(
        config,
        pool="mean_norm",
        positions="learned",
        position_bias=config.position_bias or position_bias,
        drop_path=drop_path,
    )
    if weights.state is None:
        return replace(weights, config=tuned)
    state = {
        f"fc_{name}" if name.startswith("norm.") else name: value
        for name, value in weights.state.items()
    }
    if tuned.position_bias and not config.position_bias:
        rows = table_rows(config.image_size // config.patch)
        for block in range(config.depth):
            state[TABLE.format(block)] = torch.zeros(rows, config.heads)
    return replace(weights, config=tuned, state=state)


def keep_first(state: Mapping[str, Tensor], fresh: Backbone, blocks: int) -> dict[str, Tensor]:
    """Return a state whose embedding and first blocks are trained and whose rest is `fresh`'s.

    What is no parameter, such as statistics of batch norm, goes with the parameters of its module.
    Raises ValueError if the network has fewer blocks.
    """
    if blocks > fresh.depth:
        raise ValueError(
            f"keep_blocks is {blocks}, and the network has {fresh.depth} blocks; name fewer."
        )
    depths = dict(fresh.param_layers())
    modules = {name.rpartition(".")[0]: depth for name, depth in depths.items()}

    def depth(name: str) -> int:
        return depths.get(name, modules.get(name.rpartition(".")[0], 0))

    # the final norm is one rung above the last block, and belongs to it
    last = blocks + (blocks == fresh.depth)
    return {
        name: state[name] if depth(name) <= last else value
        for name, value in fresh.state_dict().items()
    }
