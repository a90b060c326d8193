"""Listen to a model without a change to it: :func:`diagnose` runs it once, :func:`listen` surrounds your own code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attntut import measure
from attntut._restore import RandomState, stepped, tensors_in, untouched
from attntut.anatomy.names import RolePatterns
from attntut.anatomy.view import call
from attntut.diagnose.layers import first_tensor
from attntut.diagnose.recorder import Recorder
from attntut.diagnose.report import Report


def diagnose(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    roles: RolePatterns | None = None,
    maps: int = 0,
) -> Report:
    """Run a model once, and report what its attention does.

    The model is run as it is, in its present mode. Afterwards everything is what it was: weights, gradients, buffers,
    modes, and the random states, so that the next dropout falls as it would have.

    Args:
        model: any torch module, or a function that uses attention.
        inputs: a tensor, a tuple or list of arguments, or a mapping of keywords.
        loss: from the output to a scalar; with it, the gradients are measured too.
        optimizer: with it (and ``loss``), one of its steps is tried, and the change of the output measured.
        roles: for weights whose role is not found by listening, nor by name: as in :func:`attntut.init.view`.
        maps: keep up to this many rows of each head's weights, for pictures.

    Returns:
        The report.

    Raises:
        TypeError: the model or the loss cannot be called, or the loss gives no scalar that depends on the model.
        ValueError: an optimizer without a loss.
        Exception: whatever the model raises; everything is restored first.

    Example:
        >>> model = nn.TransformerEncoderLayer(d_model=16, nhead=2, batch_first=True)
        >>> report = diagnose(model, torch.randn(4, 8, 16), loss=lambda output: output.square().mean())
        >>> [(row["layer"], row["head"], round(row["logit_std"], 1)) for row in report.table()]
        [('self_attn', 0, 0.5), ('self_attn', 1, 0.5)]
    """
    if not callable(model):
        raise TypeError(f"model must be a torch.nn.Module or a function: got {type(model).__name__}.")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function from the model's output to a scalar: got {type(loss).__name__}.")
    if optimizer is not None and loss is None:
        raise ValueError("optimizer needs a loss, whose gradient it steps along: got loss=None.")
    module = model if isinstance(model, nn.Module) else None
    has_graph = _has_graph(module, inputs)

    def measure_once(*, thaws: bool) -> Report:
        recorder = Recorder(
            module, maps=maps, roles=roles, wants_gradients=loss is not None, runs_compiled=False, thaws=thaws
        )
        learning = [] if module is None else [each for each in module.parameters() if each.requires_grad]
        with untouched(module, inputs), _uncompiled():
            start = RandomState()
            with recorder:
                with torch.set_grad_enabled(loss is not None or thaws):  # the graph tells the roles
                    output = call(model, inputs)
                recorder.pause()
                recorder.report.model["random"] = module is not None and start.has_moved()
                before = None if optimizer is None else _main_tensor(output).detach()
                if loss is not None:
                    scalar = _scalar(loss(output))
                    del output  # often the largest tensor of all
                    # Frozen parameters are part of the graph, and ask for nothing.
                    leaves = [*learning, *(each for each in tensors_in(inputs) if each.requires_grad and each.is_leaf)]
                    is_frozen = module is not None and len(learning) < sum(1 for _ in module.parameters())
                    scalar.backward(inputs=leaves if is_frozen and leaves else None)
            if optimizer is not None and before is not None:
                with stepped(optimizer), torch.no_grad():
                    start.restore()
                    after = _main_tensor(call(model, inputs))
                recorder.report.update = measure.update_size(before.float(), after.float()).item()
        return recorder.report

    if not has_graph:
        return measure_once(thaws=False)
    try:
        return measure_once(thaws=True)
    except RuntimeError as error:  # some operations have no gradient, or no parameter that asks for one
        report = measure_once(thaws=False)
        report.notes.append(f"Roles are those of known names: with gradients, the model does not run ({error}).")
        return report


@contextmanager
def listen(
    model: nn.Module | None = None,
    *,
    every: int = 1,
    maps: int = 0,
    steps: int | None = None,
    to: Callable[[str, float, int], Any] | None = None,
) -> Iterator[Report]:
    """Report what attention does in the code of the ``with`` block: a step, or a whole training loop.

    A step is one call of the model. The report is filled when the block ends, also by an exception.

    Args:
        model: names the layers; without one, attention is still seen, but has no name.
        every: listen to every so many steps only. From 2 on, only calls of the model are heard; on the other steps
            nothing is watched.
        maps: keep up to this many rows of each head's weights, of the last step, for pictures.
        steps: how many steps there will be, for a progress bar.
        to: called with ``(tag, value, step)`` of each head's largest logit, logit standard deviation and entropy once a
            listened step is over; ``to=SummaryWriter().add_scalar`` sends them to TensorBoard. See
            :meth:`~attntut.diagnose.Report.scalars`.

    Yields:
        The report; empty until the block ends.

    Raises:
        TypeError: ``model`` is no module, or ``to`` no function.
        ValueError: ``every`` or ``steps`` is not positive, or ``maps`` negative.

    Example:
        >>> model = nn.MultiheadAttention(16, num_heads=2, batch_first=True)
        >>> x = torch.randn(4, 8, 16)
        >>> with listen(model) as report:
        ...     output, _ = model(x, x, x)
        >>> [round(row["entropy_share"], 1) for row in report.table()]
        [0.9, 0.9]
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module: got {type(model).__name__}.")
    if to is not None and not callable(to):
        raise TypeError(f"to must be a function of a tag, a value and a step: got {type(to).__name__}.")
    with Recorder(model, every=every, maps=maps, steps=steps, to=to) as recorder:
        yield recorder.report


def _has_graph(module: nn.Module | None, inputs: Any) -> bool:
    """Whether the calls of a module can be recorded: not those of what was made for inference only."""
    if module is None or torch.is_inference_mode_enabled():
        return False
    own = (each for each in (*module.parameters(), *module.buffers()) if not is_lazy(each))
    return not any(each.is_inference() for each in (*tensors_in(inputs), *own))


def _uncompiled() -> AbstractContextManager[Any]:
    is_imported = "torch._dynamo" in sys.modules  # else nothing is compiled, and importing it takes a second
    return torch.compiler.set_stance("force_eager") if is_imported else nullcontext()


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss must give a scalar tensor: got {got}.")
    if not value.requires_grad:
        raise TypeError(
            "loss must depend on the parameters: got a scalar without gradient. Is all frozen, detached or under "
            "no_grad, or in a checkpoint with use_reentrant=True, which gives none where its input asks for none?"
        )
    return value.sum()


def _main_tensor(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("logits", "last_hidden_state") if key in output), output)
    tensor = first_tensor(output)
    if tensor is None:
        raise TypeError(f"The model must give a tensor, for its change to be measured: got {type(output).__name__}.")
    return tensor
