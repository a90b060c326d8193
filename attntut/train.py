"""Training: one model, or many of one shape at once."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from attntut._checks import check_choice, check_int, check_number
from attntut.data import UNSCORED, Data
from attntut.device import seeded

OPTIMIZERS = ("adamw", "adam", "sgd")
BETAS = (0.9, 0.999)
EPS = 1e-8
CHUNK = 32
EVAL_BATCH = 256


class Evaluation(NamedTuple):
    """The model on the whole test set.

    Attributes:
        step: how many updates it had had.
        loss: mean cross-entropy of the scored targets, in nats.
        accuracy: share of the scored targets that are the most probable class.
    """

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """What happened in one training run.

    Attributes:
        losses: ``(steps,)`` float64, the loss of the batch before each update; NaN after a divergence.
        evaluations: on the test set, the last one after the last update.
        diverged_at: the step whose loss or gradient was not finite, or whose loss was above the limit; the weights are
            those before that step. None if there was no such step.
        lr: the learning rate.
        seed: the seed of the batches.

    Example:
        >>> history = History(torch.tensor([2.3, 0.4]), (Evaluation(2, 0.5, 0.9),), None, lr=0.1, seed=0)
        >>> history
        History(steps=2, test loss 0.5000, accuracy 0.900, lr=0.1, seed=0)
    """

    losses: Tensor
    evaluations: tuple[Evaluation, ...]
    diverged_at: int | None
    lr: float
    seed: int

    @property
    def diverged(self) -> bool:
        """Whether the run ended early."""
        return self.diverged_at is not None

    @property
    def final_loss(self) -> float:
        """Test loss of the final weights."""
        return self.evaluations[-1].loss

    @property
    def final_accuracy(self) -> float:
        """Test accuracy of the final weights."""
        return self.evaluations[-1].accuracy

    def __repr__(self) -> str:
        end = f", diverged at step {self.diverged_at}" if self.diverged else ""
        result = f"test loss {self.final_loss:.4f}, accuracy {self.final_accuracy:.3f}"
        return f"History(steps={len(self.losses)}, {result}, lr={self.lr:g}, seed={self.seed}{end})"


def train(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    batch_size: int = 32,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    betas: tuple[float, float] = BETAS,
    warmup: int = 0,
    clip_norm: float | None = None,
    max_loss: float = math.inf,
    eval_every: int | None = None,
    progress: bool | None = None,
) -> History:
    r"""Train a model in place by cross-entropy, with an optimizer of torch.

    Batches come from shuffled passes over the training set; what is left at the end of a pass and fills no batch is
    skipped. The learning rate of update :math:`t = 1, 2, \dots` is :math:`\text{lr} \cdot \min(1, t / \text{warmup})`.

    Args:
        model: maps a batch of inputs to logits, ``(B, n_classes)`` or ``(B, T, n_classes)`` as the targets demand.
            Parameters with ``requires_grad=False`` stay as they are.
        data: moved to the device and the dtype of the model.
        steps: number of updates.
        lr: learning rate.
        seed: of the order of the batches, and of dropout if there is any.
        batch_size: inputs a batch; at most the size of the training set.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"``, as in :mod:`torch.optim`.
        weight_decay: decoupled for AdamW, added to the gradient for the others.
        momentum: of SGD.
        betas: of Adam and AdamW.
        warmup: updates until the learning rate is reached.
        clip_norm: the gradient is scaled down to this norm where it is longer.
        max_loss: a loss above it counts as a divergence, like one that is not finite.
        eval_every: evaluate before the first update and after every so many; the end is evaluated in any case.
        progress: whether to draw a bar; by default only where stderr is a terminal.

    Returns:
        The history. After a divergence the model has the weights from before the bad step.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the model's output does not fit the targets.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.data import digits
        >>> model = Transformer(TransformerConfig(n_classes=10, d_input=4, n_layers=1, d_ff=32), seed=0)
        >>> train(model, digits(), steps=100, lr=1e-2).final_accuracy > 0.6
        True
    """
    _check_model("model", model)
    check_number("lr", lr, low=0), check_int("seed", seed, low=0)
    settings = _Settings(
        steps, batch_size, optimizer, weight_decay, momentum, betas, warmup, clip_norm, max_loss, eval_every
    )
    data = _fitting(data, model, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    update = _torch_optimizer(parameters, lr, settings)
    batches = _batches(seed, len(data.train_inputs), settings)  # (steps, batch)
    losses = torch.full((steps,), math.nan, dtype=torch.float64)
    evaluations: list[Evaluation] = []
    diverged_at = None

    with _restored_mode(model), _own_randomness(seed, parameters[0].device), _bar(steps, progress) as bar:
        for step, batch in enumerate(batches):
            if settings.evaluates(step):
                evaluations.append(_evaluate(model, data, step))
            if diverged_at is not None:
                continue
            model.train()
            loss = _loss(model(data.train_inputs[batch]), data.train_targets[batch], data.n_classes)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            norm = get_total_norm(gradients)
            losses[step] = value = loss.item()
            if not (math.isfinite(value) and value <= max_loss and math.isfinite(norm)):
                diverged_at = step
                continue
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if clip_norm is not None:
                clip_grads_with_norm_(parameters, clip_norm, norm)
            update.param_groups[0]["lr"] = lr * settings.warmth(step)
            update.step()
            bar.update()
        update.zero_grad()
        evaluations.append(_evaluate(model, data, steps))
    return History(losses, tuple(evaluations), diverged_at, float(lr), seed)


def train_many(
    models: Sequence[nn.Module],
    data: Data,
    *,
    steps: int,
    lrs: float | Sequence[float],
    seeds: Sequence[int] | None = None,
    batch_size: int = 32,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    betas: tuple[float, float] = BETAS,
    warmup: int = 0,
    clip_norm: float | None = None,
    max_loss: float = math.inf,
    eval_every: int | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
) -> list[History]:
    """Train many models of one shape in place and at once: what :func:`train` does to each, in a fraction of the time.

    The weights of all models are stacked; :func:`torch.func.vmap` runs the model over the stack, so that the many small
    products of matrices become a few large ones, and one vectorized update serves all. A member that diverges keeps the
    weights from before its bad step, and the others do not notice.

    Args:
        models: may differ in the values of their weights, and in nothing else. Dropout works, but draws other numbers
            than :func:`train` would.
        data: as in :func:`train`.
        steps: number of updates.
        lrs: one learning rate for all, or one a model.
        seeds: of the order of the batches, one a model; 0, 1, 2 … by default. Equal seeds see equal batches.
        batch_size, optimizer, weight_decay, momentum, betas: as in :func:`train`.
        warmup, clip_norm, max_loss, eval_every: as in :func:`train`.
        chunk: how many models are trained at a time, which bounds the memory; at most 32 by default.
        progress: as in :func:`train`.

    Returns:
        One history a model, in their order.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the models are not of one shape.

    Example:
        Three learning rates, two initial weights each:

        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.data import digits
        >>> config = TransformerConfig(n_classes=10, d_input=4, n_layers=1, d_ff=32)
        >>> models = [Transformer(config, seed=seed) for _ in range(3) for seed in range(2)]
        >>> histories = train_many(models, digits(), steps=10, lrs=[1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2])
        >>> [history.lr for history in histories]
        [0.0001, 0.0001, 0.001, 0.001, 0.01, 0.01]
    """
    models = _check_alike(models)
    lrs = _one_each("lrs", lrs, len(models))
    for i, lr in enumerate(lrs):
        check_number(f"lrs[{i}]", lr, low=0)
    seeds = _one_each("seeds", range(len(models)) if seeds is None else seeds, len(models))
    for i, seed in enumerate(seeds):
        check_int(f"seeds[{i}]", seed, low=0)
    chunk = min(len(models), CHUNK) if chunk is None else check_int("chunk", chunk)
    settings = _Settings(
        steps, batch_size, optimizer, weight_decay, momentum, betas, warmup, clip_norm, max_loss, eval_every
    )
    data = _fitting(data, models[0], settings)
    histories: list[History] = []
    starts = range(0, len(models), chunk)
    with _bar(steps * len(starts), progress) as bar:
        for start in starts:
            part = slice(start, start + chunk)
            histories += _train_stack(models[part], data, lrs[part], seeds[part], settings, bar)
    return histories


def _train_stack(
    models: list[nn.Module], data: Data, lrs: list[float], seeds: list[int], settings: _Settings, bar: tqdm
) -> list[History]:
    stack = _Stack(models)
    device = stack.flat.device
    batches = torch.stack([_batches(seed, len(data.train_inputs), settings) for seed in seeds], dim=1)  # (steps, M, B)
    lr = torch.tensor(lrs, dtype=stack.flat.dtype, device=device)[:, None]  # (M, 1)
    update = _StackedOptimizer(stack.flat, settings)
    losses = torch.full((settings.steps, len(models)), math.nan, dtype=torch.float64, device=device)
    alive = torch.ones(len(models), dtype=torch.bool, device=device)
    diverged_at = torch.full((len(models),), -1, device=device)
    evaluations: list[list[Evaluation]] = []

    with _own_randomness(seeds[0], device), _fast_vmap(device):
        for step, batch in enumerate(batches):
            if settings.evaluates(step):
                evaluations.append(stack.evaluate(data, step))
            if not alive.any():
                continue
            loss = stack.losses(data.train_inputs[batch], data.train_targets[batch], data.n_classes)  # (M,)
            (gradient,) = torch.autograd.grad(loss.sum(), stack.flat)  # (M, P)
            norm = torch.linalg.vector_norm(gradient, dim=1)
            loss = loss.detach()
            losses[step] = loss.where(alive, math.nan)
            good = loss.isfinite() & (loss <= settings.max_loss) & norm.isfinite()
            diverged_at[alive & ~good] = step
            alive &= good
            if settings.clip_norm is not None:
                gradient *= (settings.clip_norm / (norm + 1e-6)).clamp(max=1)[:, None]  # as torch's clip_grad_norm_
            if not alive.all():
                gradient[~alive] = 0
            update.step(gradient, lr * settings.warmth(step) * alive[:, None])
            bar.update()
        evaluations.append(stack.evaluate(data, settings.steps))
    stack.write_back(models)
    ends = [at if at >= 0 else None for at in diverged_at.tolist()]
    own = zip(losses.T.cpu().contiguous(), zip(*evaluations, strict=True), ends, map(float, lrs), seeds, strict=True)
    return [History(*member) for member in own]


class _Stack:
    """The weights of M models as one matrix ``(M, P)``, and their one program run over its rows."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.program = copy.deepcopy(models[0])
        self.shapes = {name: p.shape for name, p in models[0].named_parameters() if p.requires_grad}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        rows = [[dict(m.named_parameters())[name].detach().flatten() for name in self.shapes] for m in models]
        self.flat = torch.stack([torch.cat(row) for row in rows]).requires_grad_()
        others = [_untrained(model) for model in models]
        self.others = {name: torch.stack([other[name].detach() for other in others]) for name in others[0]}

    def parameters(self) -> dict[str, Tensor]:
        parts = self.flat.split(self.sizes, dim=1)
        return {n: part.view(-1, *shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def losses(self, x: Tensor, y: Tensor, n_classes: int) -> Tensor:
        """The loss of each model on its own batch, ``(M,)``; ``x`` is ``(M, B, T, …)``."""

        def loss(parameters: dict[str, Tensor], others: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return _loss(functional_call(self.program, (parameters, others), (x,)), y, n_classes)

        self.program.train()
        return vmap(loss, randomness="different")(self.parameters(), self.others, x, y)

    @torch.no_grad()
    def evaluate(self, data: Data, step: int) -> list[Evaluation]:
        def scores(parameters: dict[str, Tensor], others: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return _scores(functional_call(self.program, (parameters, others), (x,)), y, data.n_classes)

        self.program.eval()
        run = vmap(scores, in_dims=(0, 0, None, None), randomness="different")
        total = torch.stack([run(self.parameters(), self.others, x, y) for x, y in _pieces(data)]).sum(dim=0)  # (M, 3)
        return [_evaluation(step, row) for row in total]

    @torch.no_grad()
    def write_back(self, models: list[nn.Module]) -> None:
        stacked = {**self.parameters(), **self.others}
        for i, model in enumerate(models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(stacked[name][i])


class _StackedOptimizer:
    """SGD, Adam or AdamW as in torch.optim, on the rows of a matrix, each with its own learning rate."""

    def __init__(self, flat: Tensor, settings: _Settings) -> None:
        self.flat, self.settings, self.t = flat, settings, 0
        self.first = torch.zeros_like(flat, requires_grad=False)
        self.second = torch.zeros_like(flat, requires_grad=False) if settings.optimizer != "sgd" else None

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: Tensor) -> None:
        """Update the rows with the learning rates ``lr``, ``(M, 1)``; a row with 0 stays as it is."""
        s, flat = self.settings, self.flat
        self.t += 1
        if s.weight_decay and s.optimizer == "adamw":
            flat.mul_(1 - lr * s.weight_decay)
        elif s.weight_decay:
            gradient = gradient.add_(flat, alpha=s.weight_decay)
        if self.second is None:
            if s.momentum:
                gradient = self.first.mul_(s.momentum).add_(gradient)
            flat.addcmul_(gradient, -lr)
            return
        beta1, beta2 = s.betas
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (self.second.sqrt()).div_(math.sqrt(1 - beta2**self.t)).add_(EPS)
        flat.addcmul_(torch.div(self.first, scale, out=scale), -lr / (1 - beta1**self.t))


@dataclass(frozen=True)
class _Settings:
    """The arguments that the two functions share, checked."""

    steps: int
    batch_size: int
    optimizer: str
    weight_decay: float
    momentum: float
    betas: tuple[float, float]
    warmup: int
    clip_norm: float | None
    max_loss: float
    eval_every: int | None

    def __post_init__(self) -> None:
        check_int("steps", self.steps), check_int("batch_size", self.batch_size)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_number("weight_decay", self.weight_decay, low=0)
        check_number("momentum", self.momentum, low=0, high=1)
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum must be 0 unless optimizer is 'sgd': got {self.momentum}, {self.optimizer!r}.")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise TypeError(f"betas must be a pair of numbers: got {self.betas!r}.")
        for i, beta in enumerate(self.betas):
            if check_number(f"betas[{i}]", beta, low=0) >= 1:
                raise ValueError(f"betas[{i}] must be less than 1: got {beta}.")
        check_int("warmup", self.warmup, low=0)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, low=0, open_low=True)
        if isinstance(self.max_loss, bool) or not isinstance(self.max_loss, numbers.Real):
            raise TypeError(f"max_loss must be a number > 0, or infinite: got {self.max_loss!r}.")
        if not self.max_loss > 0:
            raise ValueError(f"max_loss must be a number > 0, or infinite: got {self.max_loss!r}.")
        if self.eval_every is not None:
            check_int("eval_every", self.eval_every)

    def warmth(self, step: int) -> float:
        """The factor of the learning rate in step 0, 1, …"""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def evaluates(self, step: int) -> bool:
        return self.eval_every is not None and step % self.eval_every == 0


def _batches(seed: int, n: int, settings: _Settings) -> Tensor:
    """Which training inputs each batch holds, ``(steps, batch_size)``: shuffled passes, incomplete batches left out."""
    generator, a_pass = seeded(seed), n // settings.batch_size
    passes = [
        torch.randperm(n, generator=generator)[: a_pass * settings.batch_size].view(a_pass, -1)
        for _ in range(math.ceil(settings.steps / a_pass))
    ]
    return torch.cat(passes)[: settings.steps]


def _loss(logits: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    _check_output(logits, targets, n_classes)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=UNSCORED)


def _scores(logits: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """Sum of the losses, number of right answers, number of scored targets: ``(3,)``."""
    _check_output(logits, targets, n_classes)
    loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=UNSCORED, reduction="sum")
    right = (logits.argmax(dim=-1) == targets).sum()
    return torch.stack([loss.double(), right.double(), (targets != UNSCORED).sum().double()])


def _check_output(logits: Tensor, targets: Tensor, n_classes: int) -> None:
    if not isinstance(logits, Tensor) or logits.shape[:-1] != targets.shape or logits.shape[-1] < n_classes:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model must return logits of shape {(*targets.shape, n_classes)} for targets of shape "
            f"{tuple(targets.shape)}: got {got}."
        )


def _pieces(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(data.test_inputs.split(EVAL_BATCH), data.test_targets.split(EVAL_BATCH), strict=True)


@torch.no_grad()
def _evaluate(model: nn.Module, data: Data, step: int) -> Evaluation:
    model.eval()
    scores = [_scores(model(x), y, data.n_classes) for x, y in _pieces(data)]
    return _evaluation(step, torch.stack(scores).sum(dim=0))


def _evaluation(step: int, total: Tensor) -> Evaluation:
    loss, right, scored = total.tolist()
    return Evaluation(step, loss / scored, right / scored)


def _torch_optimizer(parameters: list[nn.Parameter], lr: float, s: _Settings) -> torch.optim.Optimizer:
    fused = parameters[0].device.type in ("cpu", "cuda")
    if s.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=s.momentum, weight_decay=s.weight_decay, fused=fused)
    kind = torch.optim.AdamW if s.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, betas=s.betas, eps=EPS, weight_decay=s.weight_decay, fused=fused)


@contextmanager
def _fast_vmap(device: torch.device) -> Iterator[None]:
    """On a CPU, vmap has no batched form of torch's fused attention and loops over the models: use the plain one."""
    if device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), _LessTraffic():
        yield


class _LessTraffic(TorchFunctionMode):
    """The same functions with fewer passes over memory, which is what a step of a stack on a CPU waits for.

    A batched ``linear`` makes a new tensor to add the bias; torch's plain attention looks for rows that see nothing,
    which there are not without a mask. Together they take a fifth of a step.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) == 3 and args[2] is not None:
            x, weight, bias = args
            return (x @ weight.mT).add_(bias)
        if func is F.scaled_dot_product_attention and len(args) == 3 and _is_unmasked(kwargs):
            query, key, value = args
            scale = kwargs.get("scale")
            scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
            return torch.softmax(scaled @ key.mT, dim=-1) @ value
        return func(*args, **kwargs)


def _is_unmasked(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("attn_mask") is None and not any(map(kwargs.get, ("is_causal", "dropout_p", "enable_gqa")))


def _bar(total: int, progress: bool | None) -> tqdm:
    disable = None if progress is None else not progress  # None: only a terminal gets a bar
    return tqdm(total=total, disable=disable, unit="step", leave=False)


@contextmanager
def _restored_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """What dropout draws follows from ``seed``, and the global generators are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _untrained(model: nn.Module) -> dict[str, Tensor]:
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(model.named_buffers())}


def _fitting(data: Data, model: nn.Module, settings: _Settings) -> Data:
    if not isinstance(data, Data):
        raise TypeError(f"data must be an attntut.data.Data: got {type(data).__name__}.")
    n = len(data.train_inputs)
    if settings.batch_size > n:
        raise ValueError(f"batch_size must be at most {n}, the size of the training set: got {settings.batch_size}.")
    weight = next(p for p in model.parameters() if p.requires_grad)
    return data.to(weight.device, weight.dtype)


def _check_model(name: str, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module: got {type(model).__name__}.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{name} must have a parameter that requires a gradient: {type(model).__name__} has none.")
    return model


def _check_alike(models: Iterable[nn.Module]) -> list[nn.Module]:
    if (isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)) or not isinstance(models, Iterable):
        raise TypeError(f"models must be a sequence of torch.nn.Module: got {type(models).__name__}.")
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one model: got none.")
    for i, model in enumerate(models):
        _check_model(f"models[{i}]", model)
        if any(model is other for other in models[:i]):
            raise ValueError(f"models must be different objects: models[{i}] came before.")
        _check_like_first(i, model, models[0])
    return models


def _check_like_first(i: int, model: nn.Module, first: nn.Module) -> None:
    """Raise unless the model is the first one with other weights."""

    def differs(what: str, theirs: object, ours: object) -> ValueError:
        return ValueError(
            f"models must differ in the values of their weights only: {what} is {theirs} in models[0] "
            f"and {ours} in models[{i}]."
        )

    if type(model) is not type(first):
        raise differs("the type", type(first).__name__, type(model).__name__)
    for kind in ("parameters", "buffers"):
        theirs, ours = (dict(getattr(m, f"named_{kind}")()) for m in (first, model))
        for name in [*theirs, *(name for name in ours if name not in theirs)]:
            a, b = (_description(tensors.get(name)) for tensors in (theirs, ours))
            if a != b:
                raise differs(f"{kind[:-1]} {name!r}", a, b)
    theirs, ours = _plain_attributes(first), _plain_attributes(model)
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if theirs.get(name, "missing") != ours.get(name, "missing"):
            raise differs(repr(name), theirs.get(name, "missing"), ours.get(name, "missing"))


def _plain_attributes(model: nn.Module) -> dict[str, object]:
    """What a model is besides its tensors: ``{"blocks.0.attention.scale": 0.35, …}``."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        found[path or "the model"] = type(module).__name__
        for key, value in vars(module).items():
            if key == "training" or key.startswith("_"):
                continue
            for field, item in vars(value).items() if is_dataclass(value) else (("", value),):
                if isinstance(item, bool | int | float | str | tuple | None):
                    found[".".join(filter(None, (path, key, field)))] = item
    return found


def _description(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    frozen = "" if tensor.requires_grad or not isinstance(tensor, nn.Parameter) else ", frozen"
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}{frozen}"


def _one_each(name: str, values: Any, n: int) -> list[Any]:
    if isinstance(values, numbers.Real) and name == "lrs":
        return [values] * n
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must hold one number a model: got {values!r}.")
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    if len(values) != n:
        raise ValueError(f"{name} must hold one number a model, {n} in all: got {len(values)}.")
    return values
