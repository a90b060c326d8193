"""One entry of the catalogue: data about a paper, and the function from a weight to a law."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from attntut.anatomy.weight import Weight, weights
from attntut.init import requirements
from attntut.init.laws import Constant, Law
from attntut.init.register import Entry, keywords


class Prediction(NamedTuple):
    """What a scheme promises, before anything is drawn."""

    std: dict[str, float]
    """Role to the standard deviation of its entries."""
    logit_std: float
    """Row-wise standard deviation of the attention logits, for uncorrelated inputs of unit variance."""


@dataclass(frozen=True, kw_only=True)
class Scheme(Entry):
    """One entry of the catalogue of schemes.

    Attributes:
        function: from a weight to its law; its keyword arguments are options.
        bias_function: the law of a weight's bias; zeros by default.
        finish: ``finish(model_view, generator, **options)``, called after the laws have been drawn, without autograd.
        predicts: ``predicts(weight, **options)``, the standard deviation where ``finish`` changes it.
        predicts_logits: ``predicts_logits(query, key, scale, **options)`` where queries and keys are not independent.
        by_depth: ``n_layers`` to the settings of :class:`~attntut.TransformerConfig` that depend on the depth.
    """

    kind = "scheme"
    function: Callable[..., Law]
    bias_function: Callable[..., Law] | None = None
    finish: Callable[..., None] | None = None
    predicts: Callable[..., float] | None = None
    predicts_logits: Callable[..., float] | None = None
    by_depth: Callable[[int], dict[str, Any]] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the options, those of the law first."""
        functions = (self.function, self.bias_function, self.finish)
        return {name: default for function in functions for name, default in keywords(function).items()}

    def law(self, weight: Weight, **options: Any) -> Law:
        return self._call(self.function, weight, options=options)

    def bias(self, weight: Weight, **options: Any) -> Law:
        self.check_options(options)
        return Constant(0.0) if self.bias_function is None else self._call(self.bias_function, weight, options=options)

    def std(self, weight: Weight, **options: Any) -> float:
        """Of a weight's entries, when all is done: also what ``finish`` does."""
        if self.predicts is not None:
            return self._call(self.predicts, weight, options=options)
        return self.law(weight, **options).std(*weight.shape)

    def finish_(self, view: Any, generator: Any, **options: Any) -> None:
        """What is left to do once every weight has been drawn."""
        if self.finish is not None:
            self._call(self.finish, view, generator, options=options)

    def architecture(self, n_layers: int = 1, d_head: int = 16) -> dict[str, Any]:
        """The settings of :class:`~attntut.TransformerConfig` that satisfy the requirements.

        >>> from attntut.init import schemes
        >>> schemes()["t5"].architecture(n_layers=6, d_head=16)["scale"]
        1.0
        """
        return requirements.architecture(self.requires, d_head) | (self.by_depth(n_layers) if self.by_depth else {})

    def predict(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_layers: int = 1,
        d_ff: int | None = None,
        layer: int = 1,
        scale: float | None = None,
        **options: Any,
    ) -> Prediction:
        r"""The scale of every role's weight and of the logits.

        .. math:: \sigma_s = |\text{scale}| \sqrt{d_\text{head}}\; \text{fan\_in}\; \sigma_q \sigma_k

        for inputs of unit variance, and matrices of mean 0 that are drawn independently.

        Args:
            d_model, n_heads, n_layers, d_ff, layer: as in :func:`~attntut.anatomy.weight.weights`.
            scale: the factor before the softmax; by default what the scheme requires, or else
                :math:`1/\sqrt{d_\text{head}}`.

        Example:
            >>> from attntut.init import schemes
            >>> prediction = schemes()["xavier_normal"].predict(d_model=256, n_heads=4)
            >>> prediction.std["query"], prediction.logit_std
            (0.0625, 1.0)
        """
        each = weights(d_model, n_heads, n_layers=n_layers, layer=layer, d_ff=d_ff)
        query, key = each["query"], each["key"]
        if scale is None:
            scale = self.architecture(n_layers, query.d_head).get("scale", query.d_head**-0.5)
        std = {role: self.std(weight, **options) for role, weight in each.items()}
        return Prediction(std, self.logit_std(query, key, scale, **options))

    def logit_std(self, query: Weight, key: Weight, scale: float, **options: Any) -> float:
        """Row-wise standard deviation of the logits of one attention, as in :meth:`predict`."""
        if self.predicts_logits is not None:
            return self._call(self.predicts_logits, query, key, scale, options=options)
        # tr E[W_q W_qᵀ] E[W_k W_kᵀ] of one head; what the entries share (their mean) adds up over the head
        mean_q, mean_k = (self.law(weight, **options).mean ** 2 for weight in (query, key))
        apart = (self.std(query, **options) ** 2 + mean_q) * (self.std(key, **options) ** 2 + mean_k)
        together = (query.d_head - 1) * mean_q * mean_k
        width = query.d_head * query.fan_in * key.fan_in
        return abs(scale) * math.sqrt(width * (apart + together))

    def _call(self, function: Callable[..., Any], *args: Any, options: Mapping[str, Any]) -> Any:
        self.check_options(options)
        known = keywords(function)
        return function(*args, **{name: value for name, value in options.items() if name in known})
