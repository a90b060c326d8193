"""What to change when the initialization was not enough: a catalogue of methods, on any model, that can be undone.

``adjust(model, name, **options)`` applies a method that acts on a model, and gives a handle that takes it away; the
functions of the other families (groups, schedules, optimizers, loss) give ordinary torch objects, and are called as
they are. A method is one decorated function in the file of its family; what it says of itself is in the decorator.

A function on a model gets a :class:`Patch`: its ``attend``, ``hook``, ``parametrize``, ``replace`` and ``keep`` change
the model by torch's own means and know the way back; ``patch.view`` has the roles (:mod:`attntut.anatomy`). Inside
attention, an :class:`AttentionChange` is asked at each place (queries and keys, values, logits before and after the
mask, weights, merged heads), with one shape in every model, for fused kernels and for a softmax that is written out.

What torch has as it is needs no function here: ``torch.optim.RAdam`` (a warm-up that Adam's second moment sets itself),
``betas=(0.9, 0.95)`` (a second moment that forgets a spike sooner), ``dropout`` of attention.
"""

from attntut.adjust import blocks, gradients, groups, logits, loss, optimizers, projections, schedules, weights  # noqa: F401
from attntut.adjust.attention import AttentionChange
from attntut.adjust.groups import layer_lr_decay, mup_groups, qk_weight_decay
from attntut.adjust.handle import Handle, Patch, acting_on, adjust
from attntut.adjust.loss import entropy_penalty, z_loss
from attntut.adjust.optimizers import cautious_decay, lamb, muon
from attntut.adjust.registry import Adjustment, adjustment, adjustments
from attntut.adjust.schedules import cosine, inverse_sqrt, noam, warmup, wsd

__all__ = [
    "Adjustment",
    "AttentionChange",
    "Handle",
    "Patch",
    "acting_on",
    "adjust",
    "adjustment",
    "adjustments",
    "cautious_decay",
    "cosine",
    "entropy_penalty",
    "inverse_sqrt",
    "lamb",
    "layer_lr_decay",
    "muon",
    "mup_groups",
    "noam",
    "qk_weight_decay",
    "warmup",
    "wsd",
    "z_loss",
]
