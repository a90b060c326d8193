"""Brings together what the watcher sees, the layers' names, the stream and the gradients, and fills the report."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attntut._checks import check_int
from attntut._extras import extra
from attntut._restore import no_fast_path
from attntut.anatomy.listen import Ears
from attntut.anatomy.names import RolePatterns
from attntut.anatomy.view import ModelView, look, plain
from attntut.diagnose.gradients import Gradients
from attntut.diagnose.layers import FUNCTION, ROOT, Frame, Layers, first_tensor
from attntut.diagnose.report import BY_STEP, Report, average_heads, scalars_of
from attntut.diagnose.statistics import STATISTICS, Logits, Tally, attention_rows
from attntut.diagnose.stream import Block, has_tokens_first, repeated
from attntut.diagnose.watcher import Finish, Watcher

Place = tuple[str, str, int, Any]  # layer, kind, heads, and where in the code
_measuring = threading.local()  # .now is set while any recorder of this thread computes: the others look away


class Recorder:
    """Puts the parts together; arguments as of :func:`~attntut.diagnose.listen`. A context that can be entered once."""

    def __init__(
        self,
        model: nn.Module | None,
        *,
        every: int = 1,
        maps: int = 0,
        steps: int | None = None,
        roles: RolePatterns | None = None,
        to: Callable[[str, float, int], Any] | None = None,
        wants_gradients: bool = True,
        runs_compiled: bool = True,
        thaws: bool = False,
    ) -> None:
        self.model = model
        self.every, self.maps = check_int("every", every), check_int("maps", maps, low=0)
        self.progress = None if steps is None else _bar(check_int("steps", steps))
        self.report, self.to = Report(), to
        self.thread = threading.get_ident()
        self.wants_gradients, self.runs_compiled = wants_gradients, runs_compiled
        self.is_on, self.is_open = False, False
        self.watches_calls = every > 1 and model is not None  # only while they count: to watch costs, each operation
        self.step, self.listened = -1, 0
        self.total: dict[Place, Tally] = {}
        self.now: dict[Place, Tally] = {}
        self.pictures: dict[tuple[str, str], tuple[list[int], Tensor]] = {}
        self.stream: dict[str, Block] = {}
        self.handed_on: dict[tuple[str, type], weakref.ref[Tensor]] = {}  # by the last block there
        self.notes: dict[str, None] = {}
        self.skipped: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()  # a layer: softmaxes of scores that have met no values
        self.layers = Layers(model, self._entered, self._left, self._follows)
        self.watcher = Watcher(self)
        self.gradients: Gradients | None = None
        self.roles = roles
        self.ears = None if model is None else Ears(model)
        self.thaws = thaws
        self.seen: ModelView | None = None
        self.parameters: set[int] = set()  # their memory, and that of buffers that may be matrices
        self.buffers: set[int] = set()

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.enter_context(no_fast_path())
            self.is_on = self.is_open = True
            stack.callback(self._close)
            if self.ears is not None and self.thaws:
                stack.callback(self.ears.freeze)
                self.ears.thaw()
            self.layers.hook()
            self.parameters = {each.untyped_storage()._cdata for each in self._parameters()}
            buffers = () if self.model is None else self.model.buffers()
            self.buffers = {each.untyped_storage()._cdata for each in buffers if not is_lazy(each) and each.ndim > 1}
            if self.model is not None and self.roles is not None:
                with plain(self.model):
                    look(self.model, roles=self.roles)  # a pattern that matches nothing is refused before it runs
            self._watch = stack.enter_context(ExitStack())
            if not self.watches_calls:
                self._watch.enter_context(self.watcher)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def pause(self) -> None:
        """See no more operations; gradients are still heard."""
        self._watch.close()

    # ---- what the watcher asks and tells

    def is_listening(self) -> bool:
        """Whether what runs now is part of a step that counts."""
        return self._follows() and not _in_backward()  # there, a checkpoint runs the forward pass again

    def note(self, text: str) -> None:
        """Say once what could not be seen."""
        self.notes[text] = None

    def skipped_softmax(self) -> None:
        """Count a softmax that is no attention."""
        self.skipped[self.layers.name] += 1

    def attention(self, logits: Logits, *, certain: bool = True) -> Finish:
        """Measure an attention; it counts once its weights meet the values.

        Args:
            logits: where to get them.
            certain: whether they are normalized; of exponentials that is seen later.

        Returns:
            To be called with what the heads hand on ``(B, H, n, d)``, or None; and the axis that was attended:
            ``"keys"``; by mistake ``"queries"``, ``"heads"`` or ``"batch"``; or ``"competition"``, if queries compete
            for each key on purpose (slot attention).
        """
        B, H, n, m = logits.shape
        before, behind = logits.extra
        keys = m - before - behind
        if logits.device.type == "meta":
            self.note("Tensors on the meta device have no values: the attention was not measured.")
            return lambda output, axis: None
        kind = "cross" if self.layers.is_cross(n, keys) else "self"
        logits.diagonal = before + keys - n if kind == "self" and keys >= n else None
        layer, site = self.layers.name, _site()
        tally, picture = Tally(H, input_axis=self.layers.input_axis(n, keys), scale=logits.scale), None
        with _quiet(logits.device):
            tally.add_weights(logits)
            if self.maps and B and n and m:
                rows = torch.linspace(0, n - 1, min(n, self.maps)).round().long()
                picture = rows.tolist(), attention_rows(logits, 0, rows)
        self.unused[layer] += certain

        def finish(output: Tensor | None, axis: str) -> None:
            self.unused[layer] -= certain
            if axis == "competition":
                self.note(f"In {layer} the queries compete for each key (as in slot attention): that is not measured.")
                return
            if axis != "keys":
                heads, queries, keys = logits.product or (H, n, m)
                place = "cross" if self.layers.is_cross(queries, keys) else "self"
                self._count(layer, place, site, Tally(heads, calls=1, n_query=queries, n_key=keys, axis=axis))
                return
            measured = tally
            if output is not None:
                with _quiet(output.device):
                    measured.add_output(output)
            if picture is not None:
                self.pictures[layer, kind] = picture
            self._count(layer, kind, site, measured)

        return finish

    def _count(self, layer: str, kind: str, site: Any, tally: Tally) -> None:
        self.layers.attentions += 1
        self.now.setdefault((layer, kind, tally.n_heads, site), Tally(tally.n_heads)).add(tally)

    # ---- what the hooks tell

    def _follows(self) -> bool:
        is_here = threading.get_ident() == self.thread
        if self.is_on and not is_here and not _in_backward():
            self.note("Modules ran in other threads (as in nn.DataParallel): attention in there is not seen.")
        return self.is_on and is_here and not getattr(_measuring, "now", False)

    def _hears_gradients(self) -> bool:
        return self.is_on and self.is_open

    def _entered(self, frame: Frame) -> None:
        if self.ears is not None and self.seen is None:
            self.ears.entered(frame.name, frame.module)
        if frame.name == "" and self.is_open and not _in_backward():
            self._finish_step()
            self.step += 1
            self.is_on = self.step % self.every == 0
            self.watcher.forget()
            if self.watches_calls and self.is_on:
                self._watch.enter_context(self.watcher)
            if self.progress is not None:
                self.progress.update()

    def _left(self, frame: Frame, output: Any) -> None:
        if self.ears is not None and self.seen is None:
            self.ears.left(frame.module, output)
            if frame.name == "" and self.is_open and not _in_backward():
                self._read_anatomy(output)
        if frame.name == "" and self.watches_calls:
            self._watch.close()
        container = self.layers.containers.get(frame.name)
        held_attention = _in_backward() or frame.attentions < self.layers.attentions
        if not self.is_open or container is None or not held_attention:
            return
        stream, source = first_tensor(output), frame.first
        if stream is None or source is None or stream.shape != source.shape or not stream.is_floating_point():
            return
        block = self.stream.get(frame.name)
        if block is None:
            if _in_backward():
                return
            place = container, type(frame.module)
            before, self.handed_on[place] = self.handed_on.get(place), weakref.ref(stream)
            follows = (before is None or before() is source) if frame.name in self.layers.loose else None
            block = self.stream[frame.name] = Block(*place, has_tokens_first(frame.module), follows)
        if self.is_listening():
            with self._forgiving(f"the stream after {frame.name}"), _quiet(stream.device):
                block.add(stream)
        if stream.requires_grad and self.is_on:
            stream.register_hook(block.listen_to_gradient(self._hears_gradients))

    def _read_anatomy(self, output: Any) -> None:
        """After the first forward pass: which matrix played which role."""
        assert self.model is not None and self.ears is not None
        self.ears.freeze()
        heard = None
        with self._forgiving("the roles of the weights"):
            heard = self.ears.hear(output)
        is_outside = heard is not None and not heard.attention and bool(self.layers.attentions)
        with plain(self.model) as is_computed:  # the graph tells what computed matrices are made of, not what they do
            self.seen = look(self.model, heard=None if is_computed or is_outside else heard, roles=self.roles)
            if is_outside:
                self.note(
                    "No attention is in the graph that autograd records (it is detached, run under no_grad or in a "
                    "function of its own, or its softmax is written out): roles are those of known names, if any."
                )
            if self.wants_gradients:
                self.gradients = Gradients(self.seen, self._hears_gradients)

    # ---- the report

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a fault of ours must not end the user's run
            self.note(f"Could not measure {what}: {type(error).__name__}: {error}")

    def _finish_step(self) -> None:
        if not self.now:
            return
        self.listened += 1
        for key, tally in self.now.items():
            self.total.setdefault(key, Tally(key[2])).add(tally)
            rows = [{"head": head, **row} for head, row in enumerate(tally.heads())]
            means = average_heads(rows)
            step = {"step": max(self.step, 0), "layer": key[0], "kind": key[1]}
            step |= {name: means[name] for name in STATISTICS}
            step["heads"] = {name: [row[name] for row in rows] for name in BY_STEP}
            self.report.steps.append(step)
            if self.to is not None:
                for scalar in scalars_of(step):
                    self.to(*scalar)
        self.now = {}

    def _close(self) -> None:
        """Take every hook away, and fill the report."""
        self._finish_step()
        self.is_on = self.is_open = False
        self.layers.unhook()
        self.watcher.forget()
        if self.gradients is not None:
            self.gradients.close()
        if self.progress is not None:
            self.progress.close()
        report = self.report
        for (layer, kind, *_), tally in self.total.items():
            sizes = {"n_query": tally.n_query, "n_key": tally.n_key, "calls": tally.calls}
            report.rows += [
                {"layer": layer, "kind": kind, "head": head, **sizes, **row} for head, row in enumerate(tally.heads())
            ]
        report.stream += [{"layer": name, **self.stream[name].row()} for name in repeated(self.stream)]
        report.gradients += [] if self.gradients is None else self.gradients.rows()
        for (layer, kind), (queries, rows) in self.pictures.items():
            report.maps += [
                {"layer": layer, "kind": kind, "head": head, "queries": queries, "weights": each.tolist()}
                for head, each in enumerate(rows)
            ]
        if self.listened < 2:
            report.steps.clear()
        report.model |= self._describe()
        if self.model is not None:
            from attntut.diagnose import weights  # reads the catalogue of schemes

            with self._forgiving("the weights"), plain(self.model) as is_computed:
                if is_computed:
                    report.notes.append(
                        "Weights that are computed (torch.nn.utils.parametrize) are read as they are stored."
                    )
                weights.fill(report, self.seen or look(self.model, roles=self.roles))
        for record in report.weights:
            record["layer"] = record["layer"] or ROOT
        report.notes += [each for each in self._remarks() if each not in report.notes]

    def _describe(self) -> dict[str, Any]:
        model = self.model
        parameters = self._parameters()
        return {
            "name": "(none)" if model is None else type(model).__name__,
            "parameters": sum(each.numel() for each in parameters),
            "training": model is not None and model.training,
            "dtype": str(parameters[0].dtype).removeprefix("torch.") if parameters else "",
            "device": str(parameters[0].device) if parameters else "",
            "steps": self.listened,
        }

    def _parameters(self) -> list[Tensor]:
        return [] if self.model is None else [each for each in self.model.parameters() if not is_lazy(each)]

    def _remarks(self) -> Iterator[str]:
        yield from self.notes
        for layer, times in (+self.unused).items():
            yield (
                f"{times} softmax{'es' if times > 1 else ''} of a product of queries and keys in {layer} not counted: "
                "no product of the weights with values was seen."
            )
        undivided = sum(not each.is_done for each in self.watcher.undivided)
        if not (self.total or self.notes or +self.unused or undivided):  # else it is named
            seen = ", ".join(f"{count} {what}" for what, count in self.watcher.seen.items())
            yield (
                f"No attention was {'measured' if seen else 'seen'}: no softmax of a product of queries and keys that "
                f"then averages values, and no fused kernel{seen and f', but {seen}'}. Attention without a softmax "
                "(linear, sigmoid, hashed), additive attention and compiled code cannot be measured."
            )
        if undivided:
            yield (
                f"{undivided} times values were averaged with exponentials of a product of queries and keys that were "
                "not seen to be divided by their sum (linear attention, or a softmax in pieces): not measured."
            )
        for layer, times in self.skipped.items():
            yield (
                f"{times} softmax{'es' if times > 1 else ''} in {layer} not counted: what is normalized there is no "
                "matrix product of two computed tensors (a router or classifier, say; additive attention is not seen)."
            )
        forgotten = [layer for (layer, *_), tally in self.total.items() if tally.input_axis == 0]
        if forgotten and self.model is not None and has_tokens_first(self.model):
            yield (
                f"{forgotten[0]} attends along the first dimension of the input, as torch does by default. If that is "
                "the batch, sequences hear each other, and tokens do not: set batch_first=True."
            )
        inside = {layer for layer, *_ in self.total} - {ROOT, FUNCTION}  # an older torch runs them uncompiled
        for name in self.layers.compiled if self.runs_compiled else ():
            if any(name == ROOT or layer.startswith(f"{name}.") for layer in inside):
                continue
            yield f"{name} is compiled: only diagnose, which runs it uncompiled, sees the attention in there."


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Compute without gradients or autocast, whatever the model runs under, and unheard by other listeners."""
    is_cast = torch.is_autocast_enabled(device.type)
    before, _measuring.now = getattr(_measuring, "now", False), True
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False) if is_cast else nullcontext():
            yield
    finally:
        _measuring.now = before


def _bar(steps: int) -> Any:
    with extra("train"):
        from tqdm import tqdm
    return tqdm(total=steps, desc="listening", disable=None)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _site() -> tuple[Any, ...]:
    """The lines of code of the module that runs: two attentions of one layer stand in different ones."""
    frame: FrameType | None = sys._getframe(2)
    lines, ours = [], (os.path.dirname(__file__), os.path.dirname(torch.__file__))
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        if not frame.f_code.co_filename.startswith(ours):
            lines.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return () if frame is None else tuple(lines)
