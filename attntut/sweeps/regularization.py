"""What helps against overfitting: dropout, weight decay, the size of the start; and new top blocks for fine-tuning."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut.adjust import adjust, layer_lr_decay
from attntut.attention import MultiHeadAttention
from attntut.data import Data, digits
from attntut.device import default_device, seeded
from attntut.init import initialize_
from attntut.sweep import Sweep, grid
from attntut.sweeps import drawn, rates_by_name, trained
from attntut.train import History, train
from attntut.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(n_classes=10, d_input=16, seq_len=4, d_model=32, n_heads=4, n_layers=2, d_ff=64)
DEEP = replace(SMALL, n_classes=5, n_layers=4)
DROPS = ("attention", "branches")  # dropout of its weights, and of what a branch adds
# Decay of all matrices, where a step shrinks a weight anyway, and of queries and keys.
DECAYS = ("decay", "cautious", "query-key")
TUNE = ("top", "layers", "scratch")  # new top blocks, slower lower blocks, nothing of the pretrained model
BATCH, STEPS, EVERY = 20, 200, 25
TUNE_BATCH, TUNE_STEPS = 10, 150
QUERY_KEY = ("query.weight", "key.weight")
MATCHED = 0.1  # the training loss at which test losses are compared


def shape(config: dict[str, Any]) -> tuple[Any, ...]:
    """Runs on the same images, by the same program, can be trained at once."""
    method, seed = config["method"], config["seed"]
    if method in TUNE:
        return "tune", config["strength"] if method == "layers" else 1.0
    return config["images"], seed, method in DROPS


def drop(x: Tensor, p: Tensor) -> Tensor:
    r"""Set entries to 0 with the probability ``p``, and divide the others by :math:`1 - p`: the mean stays.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> drop(torch.ones(2, 4), torch.tensor(0.5))
        tensor([[0., 2., 0., 0.],
                [0., 2., 0., 2.]])
    """
    return x * (torch.rand_like(x) >= p) / (1 - p)


class DroppedAttention(MultiHeadAttention):
    """Attention whose weights are dropped in training, with a probability that each model of many may have its own."""

    p: Tensor

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, return_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        weights = (query @ key.mT * scale).softmax(dim=-1)
        if self.training:
            weights = drop(weights, self.p)
        return weights @ value, weights if return_weights else None


class DroppedBranch(nn.Module):
    """A branch whose result is dropped in training."""

    p: Tensor

    def __init__(self, branch: nn.Module, p: float) -> None:
        super().__init__()
        self.branch = branch
        self.register_buffer("p", torch.tensor(p))

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        found: Tensor = self.branch(x, **options)
        return drop(found, self.p) if self.training else found


def with_dropout(model: Transformer, *, attention: float = 0.0, branches: float = 0.0) -> Transformer:
    """Give every block dropout, in place: of the weights of attention, and of what a branch adds to the stream.

    Args:
        model: without parts in its attention, and without a mask.
        attention: the probability that a weight is dropped.
        branches: the probability that an entry of a branch is dropped.

    Example:
        >>> model = with_dropout(Transformer(SMALL, seed=0), attention=0.5)
        >>> x = torch.randn(1, 4, 16)
        >>> [torch.equal(model.train(mode)(x), model(x)) for mode in (True, False)]
        [False, True]
    """
    for block in model.blocks:
        old = block.get_submodule("attention")
        assert isinstance(old, MultiHeadAttention)
        new = DroppedAttention(old.d_model, old.n_heads, scale=old.scale)
        new.load_state_dict(old.state_dict())
        new.register_buffer("p", torch.tensor(attention))
        block.attention = DroppedBranch(new, branches)
        block.feed_forward = DroppedBranch(block.get_submodule("feed_forward"), branches)
    return model


class Decay:
    """Decoupled weight decay of the matrices, as AdamW has it, with a strength for each of many models.

    Args:
        models: as :func:`~attntut.train.train_many` gets them.
        configs: of each, ``method``, ``strength`` and ``lr``; other methods than :data:`DECAYS` have no decay.
    """

    def __init__(self, models: list[Transformer], configs: list[dict[str, Any]]) -> None:
        members = [dict(model.named_parameters()) for model in models]
        self.old = {
            name: torch.stack([member[name].detach() for member in members])
            for name, parameter in members[0].items()
            if parameter.ndim > 1
        }
        rates = {
            method: torch.tensor([c["lr"] * c["strength"] * (c["method"] == method) for c in configs])[:, None, None]
            for method in DECAYS
        }
        self.everywhere = rates["decay"]
        self.cautious, self.query_key = rates["cautious"], rates["query-key"]

    def __call__(self, parameters: Mapping[str, Tensor]) -> None:
        """After a step: take the decay from the weights, in place."""
        for name, old in self.old.items():
            new = parameters[name]
            rate = self.everywhere + self.cautious * ((old - new) * old >= 0)
            if name.endswith(QUERY_KEY):
                rate = rate + self.query_key
            new -= rate * old
            old.copy_(new)


def start(config: dict[str, Any]) -> Transformer:
    """A model by Xavier's rule, with its method's dropout or gain: of all matrices but those of queries and keys."""
    method, strength = config["method"], config["strength"]
    model = drawn(SMALL, "xavier_normal", config["seed"])
    if method in DROPS:
        with_dropout(model, **{method: strength})
    if method == "gain":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and not name.endswith(QUERY_KEY):
                    parameter *= strength  # type: ignore[misc]
    return model


@lru_cache
def half(classes: str) -> Data:
    """The digits 0 to 4 (``"low"``), or 50 training images of the digits 5 to 9 (``"high"``), and the test set's."""
    data, shift = digits(patch=4), 0 if classes == "low" else 5
    parts = {}  # type: ignore[var-annotated]
    for name in ("train", "test"):
        x, y = getattr(data, f"{name}_inputs"), getattr(data, f"{name}_targets")
        chosen = ((y >= 5) == (classes == "high")).nonzero()[:, 0]
        chosen = chosen[:50] if (name, classes) == ("train", "high") else chosen
        parts |= {f"{name}_inputs": x[chosen], f"{name}_targets": y[chosen] - shift}
    return Data(f"digits, {classes}", n_classes=5, **parts)


@lru_cache
def pretrained() -> Transformer:
    """Four blocks, trained on the digits 0 to 4."""
    model = initialize_(Transformer(DEEP, seed=0), "xavier_normal", generator=seeded(0))
    train(model, half("low"), steps=300, lr=3e-3, progress=False)
    return model


def fine_tuned_start(config: dict[str, Any]) -> Transformer:
    """The pretrained model with a new readout and, of one method, new top blocks; or a new model altogether."""
    fresh = drawn(DEEP, "xavier_normal", config["seed"])
    if config["method"] == "scratch":
        return fresh
    model = copy.deepcopy(pretrained())
    model.readout.load_state_dict(fresh.readout.state_dict())
    if config["method"] == "top" and config["strength"]:
        options: dict[str, Any] = dict(scheme="xavier_normal", generator=seeded(1000 + config["seed"]))
        adjust(model, "reinit_top_layers", n_layers=int(config["strength"]), **options)
    return model


def run(configs: list[dict[str, Any]], *, steps: int | None = None) -> list[dict[str, float]]:
    """Train on few digits by AdamW without a warm-up; runs of one seed see the same images.

    Args:
        configs: of one :func:`shape`, each with ``images``, ``method``, ``strength``, ``lr`` and ``seed`` (of the split
            and the images, the weights and the batches; in fine-tuning, of all but the split and the images).
        steps: fewer than the sweep's.

    Returns:
        For each: ``accuracy`` and ``loss`` of the test set after the last step; ``train_loss`` of all training images,
        without dropout; ``lowest``, the lowest test loss on the way; and ``matched``, the test loss at which the
        training loss went below 0.1 (NaN if it did not, and in fine-tuning).

    Example:
        >>> (numbers,) = run([{"images": 100, "method": "decay", "strength": 1.0, "lr": 1e-3, "seed": 0}], steps=2)
        >>> list(numbers)
        ['accuracy', 'loss', 'train_loss', 'lowest', 'matched']
    """
    first, tunes = configs[0], configs[0]["method"] in TUNE
    data = half("high") if tunes else digits(patch=4, n_train=first["images"], seed=first["seed"])
    options: dict[str, Any]
    if tunes:
        models = [fine_tuned_start(config).to(default_device()) for config in configs]
        options = dict(steps=steps or TUNE_STEPS, batch_size=TUNE_BATCH)
        if first["method"] == "layers":
            options["lr_factors"] = factors(models[0], first["strength"])
    else:
        models = [start(config).to(default_device()) for config in configs]
        options = dict(steps=steps or STEPS, batch_size=BATCH, eval_every=EVERY)
        if any(config["method"] in DECAYS for config in configs):
            options["after_step"] = Decay(models, configs)
    histories = trained(models, data, configs, chunk=len(models), **options)
    return [numbers(*pair, data) for pair in zip(models, histories, strict=True)]


@torch.no_grad()
def numbers(model: nn.Module, history: History, data: Data) -> dict[str, float]:
    """What is kept of a run, to three digits."""
    logits = model.eval()(data.train_inputs)
    found = dict(
        accuracy=history.final_accuracy,
        loss=history.final_loss,
        train_loss=F.cross_entropy(logits, data.train_targets).item(),
        lowest=min(each.loss for each in history.evaluations),
        matched=matched(history, len(data.train_inputs) // BATCH),
    )
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def matched(history: History, epoch: int) -> float:
    """The test loss where the mean training loss of an epoch first falls below 0.1, between two evaluations.

    Example:
        >>> from attntut.train import Evaluation
        >>> path = (Evaluation(0, 3.0, 0.1), Evaluation(2, 2.0, 0.3), Evaluation(4, 1.0, 0.5))
        >>> round(matched(History(torch.tensor([2.0, 2.0, 0.05, 0.05]), path, None, 0.1, 0), epoch=2), 3)
        1.188
    """
    seen = [(each.step, each.loss) for each in history.evaluations if each.step >= epoch]
    points = [(history.losses[step - epoch : step].mean().log().item(), loss) for step, loss in seen]
    goal = math.log(MATCHED)
    for (before, loss), (after, next_loss) in itertools.pairwise(points):
        if before >= goal > after:
            return loss + (next_loss - loss) * (before - goal) / (before - after)
    return math.nan


def factors(model: Transformer, decay: float) -> dict[str, float]:
    """Of each parameter's learning rate, as :func:`~attntut.adjust.layer_lr_decay` has it."""
    return rates_by_name(model, layer_lr_decay(model, lr=1.0, decay=decay))


METHODS = {
    "plain": (0.0,),
    "attention": (0.1, 0.5),
    "branches": (0.1, 0.3),
    "decay": (1.0, 3.0),
    "cautious": (3.0,),
    "query-key": (3.0,),
    "gain": (0.25, 4.0),
}
TUNING = {"top": (0.0, 1.0, 2.0, 4.0), "layers": (0.5,), "scratch": (0.0,)}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SWEEP = Sweep(
    "regularization",
    run,
    [
        *grid(images=(300, 1000), method="plain", strength=0.0, lr=RATES, seed=range(6)),
        *(
            each
            for method, strengths in METHODS.items()
            for each in grid(images=100, method=method, strength=strengths, lr=RATES, seed=range(6))
        ),
        *(
            each
            for method, strengths in TUNING.items()
            for each in grid(
                images=50,
                method=method,
                strength=strengths,
                lr=(*RATES, 1e-1) if method == "layers" else (3e-4, *RATES),
                seed=range(10),
            )
        ),
    ],
    shape=shape,
    at_once=64,
)
