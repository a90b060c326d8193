"""Which start and which method fit a model, best first: by the rules of the book's map, its records and stored runs."""

from attntut.recommend.advice import Advice, Recommendation, recommend

__all__ = ["Advice", "Recommendation", "recommend"]
