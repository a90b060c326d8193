"""The sweeps of the book, one a module: its ``SWEEP`` is what ``nox -s runs -- NAME`` makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from attntut.data import Data, digits
from attntut.device import default_device, seeded
from attntut.init import initialize_
from attntut.train import History, train, train_many
from attntut.transformer import Transformer, TransformerConfig

PATCH, STEPS = 4, 300
SIZE: dict[str, Any] = dict(
    n_classes=10, d_input=PATCH**2, seq_len=(8 // PATCH) ** 2, d_model=32, n_heads=4, d_ff=64
)  # of every model


def drawn(config: TransformerConfig, scheme: str, seed: int) -> Transformer:
    """A model that is drawn by a scheme, all of it from one seed."""
    return initialize_(Transformer(config, seed=seed), scheme, generator=seeded(seed))


def trained(
    models: Sequence[nn.Module],
    data: Data,
    configs: list[dict[str, Any]],
    *,
    alone: Callable[[nn.Module], dict[str, Any]] | None = None,
    **options: Any,
) -> list[History]:
    """Train models at once; or one by one, where ``alone`` gives the options that are each model's own.

    Args:
        models: one a configuration.
        data, options: as :func:`~attntut.train.train_many` takes them.
        configs: each with ``lr`` and ``seed`` (of the batches).
        alone: from a model to more options of :func:`~attntut.train.train`.
    """
    lrs, seeds = ([config[name] for config in configs] for name in ("lr", "seed"))
    if alone is None:
        return train_many(models, data, lrs=lrs, seeds=seeds, progress=False, **options)
    return [
        train(model, data, lr=lr, seed=seed, progress=False, **options, **alone(model))
        for model, lr, seed in zip(models, lrs, seeds, strict=True)
    ]


def rates_by_name(model: nn.Module, groups: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The learning rate of each parameter by its name, from the groups of an optimizer."""
    rate = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    return {name: rate[parameter] for name, parameter in model.named_parameters()}


def on_digits(
    models: Iterable[nn.Module], configs: list[dict[str, Any]], **options: Any
) -> list[tuple[History, dict[str, float]]]:
    """Train models of one shape on digits, 2 × 2 patches of 4 × 4 pixels, by AdamW without a warm-up.

    Args:
        models: of :data:`SIZE`, one a configuration.
        configs: each with ``lr`` and ``seed`` (of the batches).
        options: of :func:`~attntut.train.train_many`, other than 300 steps of 32 images.

    Returns:
        For each its history, and ``accuracy`` and ``loss`` of the test set after the last step and ``train_loss``, the
        mean of the last epoch (NaN if it diverged).
    """
    data = digits(patch=PATCH)
    options = dict(steps=STEPS, batch_size=32) | options
    models = [model.to(default_device()) for model in models]
    histories = trained(models, data, configs, **options)
    epoch = len(data.train_inputs) // options["batch_size"]
    return [
        (
            history,
            dict(
                accuracy=history.final_accuracy,
                loss=history.final_loss,
                train_loss=history.losses[-epoch:].mean().item(),
            ),
        )
        for history in histories
    ]
