"""Does a target that shrinks while the loss settles (Adaloss) learn faster than a fixed one?

Run      python tools/train.py experiments/unet_adaloss.py --data.root DIR --out RUN
Against  experiments/unet.py, whose sigma is 1.5 heatmap pixels throughout; here it begins with 4
         and ends at 1.5 at least. metrics.jsonl has the sigma of every epoch.
Cost     that of experiments/unet.py
Outcome  expected: the same score at the end, fewer lost landmarks at the beginning; the first four
         epochs have the widest targets, so it needs more than a handful.
"""

from dataclasses import replace

from experiments import unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="unet_adaloss",
    model=replace(unet.MODEL, sigma_start=4.0),
)
