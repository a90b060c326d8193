"""Whether the best learning rate of a narrow model is that of a wide one, with rates that fall with width or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from attntut.anatomy.view import view
from attntut.anatomy.weight import BRANCH_OUT
from attntut.device import seeded
from attntut.init import initialize_, schemes
from attntut.init.width import learning_rates
from attntut.sweep import Sweep, grid
from attntut.sweeps import SIZE, on_digits, rates_by_name
from attntut.transformer import Transformer, TransformerConfig

BASE = SIZE["d_model"]
WRITERS = (*BRANCH_OUT, "embedding")


def shape(config: dict[str, Any]) -> TransformerConfig:
    """The model of a run: two pre-LN blocks of four heads, twice as wide inside; else the scheme's own architecture."""
    d = config["width"]
    asked = schemes()[config["scheme"]].architecture(2, d // SIZE["n_heads"])
    return TransformerConfig(n_layers=2, **SIZE | {"d_model": d, "d_ff": 2 * d} | asked)


def model_of(config: dict[str, Any]) -> Transformer:
    """The model of a run, drawn by its scheme from its seed."""
    model = Transformer(shape(config), seed=config["seed"])
    asks = {"learning rates by role"} & set(schemes()[config["scheme"]].requires)  # which no model can have
    return initialize_(model, config["scheme"], generator=seeded(config["seed"]), force=asks)


def factors(model: Transformer, power: float) -> dict[str, float]:
    r"""The factor of each parameter's learning rate: :math:`(32/d)^\text{power}` where a sum over the width follows.

    These are the matrices of the blocks and the readout (:func:`~attntut.init.width.learning_rates`, which has power
    1). All others have the factor 1, and so have all at width 32.

    Example:
        >>> model = Transformer(shape({"scheme": "mup", "width": 128}), seed=0)
        >>> found = factors(model, 1.0)
        >>> found["blocks.0.attention.query.weight"], found["embedding.weight"]
        (0.25, 1.0)
    """
    rates = rates_by_name(model, learning_rates(model, 1.0, base_width=BASE))
    return {name: rate**power for name, rate in rates.items()}


def to_sphere(model: Transformer) -> Callable[[Mapping[str, Tensor]], None]:
    """What nGPT does after each step: give the rows of readers, the columns of writers, and positions the length 1.

    Example:
        >>> model = model_of({"scheme": "ngpt", "width": 32, "seed": 0})
        >>> weight = dict(model.named_parameters())["blocks.0.attention.output.weight"]
        >>> _ = weight.data.mul_(3)
        >>> to_sphere(model)(dict(model.named_parameters()))
        >>> weight.norm(dim=0).min()
        tensor(1.0000, grad_fn=<...>)
    """
    dims = {entry.parameter: -2 if entry.role in WRITERS else -1 for entry in view(model).entries}

    def after_step(parameters: Mapping[str, Tensor]) -> None:
        for name, dim in dims.items():
            parameters[name].data.copy_(normalize(parameters[name].data, dim=dim))

    return after_step


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Train models of one shape on digits, 2 × 2 patches of 4 × 4 pixels, by AdamW without a warm-up.

    Args:
        configs: each with ``scheme``, ``power`` (of :func:`factors`; one for all), ``width``, ``lr``, ``seed`` (of the
            weights and of the batches).
        options: of :func:`~attntut.train.train_many`, other than 100 steps of 32 images.

    Returns:
        For each: ``accuracy`` and ``loss`` of the test set after the last step, and ``train_loss``, the mean of the
        last epoch (NaN if it diverged).

    Example:
        >>> config = {"scheme": "mup", "power": 1.0, "width": 64, "lr": 1e-2, "seed": 0}
        >>> (numbers,) = run([config], steps=2)
        >>> list(numbers)
        ['accuracy', 'loss', 'train_loss']
    """
    models = [model_of(config) for config in configs]
    options = dict(steps=100, lr_factors=factors(models[0], configs[0]["power"])) | options
    if configs[0]["scheme"] == "ngpt":
        options["after_step"] = to_sphere(models[0])
    return [numbers for _, numbers in on_digits(models, configs, **options)]


RATES = {  # log₂ of the lowest and the highest learning rate
    ("lecun_normal", 0.0): (-12, -6),
    ("lecun_normal", 1.0): (-10, -6),
    ("mup", 1.0): (-9, -5),
    ("spectral", 1.0): (-9, -5),
    ("unit_scaling", 0.0): (-9, -4),
    ("ngpt", 0.0): (-10, -5),
}
SWEEP = Sweep(
    "width",
    run,
    [
        config
        for (scheme, power), (low, high) in RATES.items()
        for config in grid(
            scheme=scheme,
            power=power,
            width=[32, 64, 128, 256],
            lr=[2.0**k for k in range(low, high + 1)],
            seed=range(6),
        )
    ],
    shape=lambda config: (config["power"], shape(config)),
    at_once=12,
    cost=lambda config: config["width"] ** 1.2,
)
