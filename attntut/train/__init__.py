"""Training: one model, or many of one shape at once."""

from attntut.train.many import train_many
from attntut.train.one import train
from attntut.train.scoring import Evaluation, History
from attntut.train.settings import Settings

__all__ = ["Evaluation", "History", "Settings", "train", "train_many"]
