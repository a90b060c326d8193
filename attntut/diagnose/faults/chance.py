"""Faults of chance: a model that draws numbers when nothing should be random."""

from __future__ import annotations

from collections.abc import Iterator

from attntut.diagnose.faults.facts import Facts
from attntut.diagnose.faults.fault import NOTE, REGULARIZATION, Hit, fault, hit


@fault(
    "random in evaluation",
    NOTE,
    quantity="forward passes in evaluation mode that drew random numbers",
    source="eval() switches off what asks for self.training, as nn.Dropout does; a call of F.dropout that is not told, "
    "and the dropout_p of F.scaled_dot_product_attention, go on",
    text="The model is in evaluation mode and draws random numbers: two passes over one input differ, unless the seed "
    "is set before each.",
    remedies=(
        "Is a part still in training mode? If not, look for dropout_p=… and F.dropout(…): the first must be 0.0 and "
        "the second be told training=False. If it draws on purpose (a random mask, say), all is well.",
    ),
    chapter=REGULARIZATION + "#what-attention-dropout-adds",
    over="model",
)
def random_in_evaluation(model: Facts, facts: Facts) -> Iterator[Hit]:
    """A model that is not in training mode moved one of the global generators: torch's or Python's."""
    if facts.is_random:
        yield hit(1, expected=0)
