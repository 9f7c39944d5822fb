"""How far does the organisers' baseline come: ResNet, pooled, linear to coordinates?

Run      python tools/train.py experiments/baseline.py --data.root DIR --out RUN
Against  experiments/unet.py
"""

from heatmap.config import Direct, Experiment, Optimizer, Schedule, Train

EXPERIMENT = Experiment(
    name="baseline",
    model=Direct(encoder="resnet18", weights="imagenet"),
    optimizer=Optimizer(kind="adam", lr=1e-3, weight_decay=0.0, amsgrad=True),
    schedule=Schedule(kind="constant", warmup=0.0),
    train=Train(epochs=1, batch=512),
)
