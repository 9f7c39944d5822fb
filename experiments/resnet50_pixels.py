"""Does it help to count errors in the photograph's own pixels, as the contest does?

An attempt of the contest's ResNet50 entry: the squared error of every picture is weighed by the
area that a crop pixel covers in it, so that the loss is the contest's score.

Run      python tools/train.py experiments/resnet50_pixels.py --data.root DIR --out RUN
Against  experiments/resnet50.py; weighed absolute errors: --model.loss mae
Cost     that of experiments/resnet50.py
Outcome  expected: worse than the absolute error; its author did not keep it.
"""

from dataclasses import replace

from experiments import resnet50

EXPERIMENT = replace(
    resnet50.EXPERIMENT,
    name="resnet50_pixels",
    model=replace(resnet50.MODEL, loss="mse"),
    train=replace(resnet50.EXPERIMENT.train, pixel_weights=True),
)
