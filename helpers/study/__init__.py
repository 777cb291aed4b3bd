"""Freeze or fine-tune? Arms that race, a final over several splits, and a verdict that says how sure it is.

trials       what has to be done and what is done
cluster      who does it: this process, or Dask's workers
experiment   the network and the images, and what each arm makes of them
plan         what a budget buys
study        race, final, and the table of arms
verdict      what follows from the paired difference, in words
labels       both arms with fewer labels, and what more would bring
"""

from helpers.study.experiment import Experiment
from helpers.study.labels import LabelCurve
from helpers.study.study import Study, summarize

__all__ = ["Experiment", "LabelCurve", "Study", "summarize"]
