"""An experiment, typed: frozen, keyword-only dataclasses that check themselves.

A variant is made with `dataclasses.replace`. Imports no torch, so that `--help` answers at once.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from heatmap.errors import UserError

T = TypeVar("T")

# Options of version 0.1.0 by class, with their new names, or None where they are gone.
OPTIONS_OF_0_1: dict[str, dict[str, str | None]] = {
    "Data": {"crop_cache": None},
    "Wandb": {"pictures_every": "images_every"},
}


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


# Numbers with the interval that they must lie in.
Count = Annotated[int, "[1, inf)"]
Size = Annotated[int, "[32, inf)"]
Index = Annotated[int, "[0, inf)"]
Positive = Annotated[float, "(0, inf)"]
NotNegative = Annotated[float, "[0, inf)"]
Fraction = Annotated[float, "[0, 1]"]
BelowOne = Annotated[float, "[0, 1)"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of an experiment, whose numbers lie in the intervals that their types name."""

    _prefix = ""

    def __init_subclass__(cls, prefix: str = "") -> None:
        cls._prefix = prefix or cls._prefix

    def __post_init__(self) -> None:
        """Raises UserError with the first number that does not, as the command line names it."""
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for part in (hint, *typing.get_args(hint)):  # of int | None, too
                if typing.get_origin(part) is Annotated and value is not None:
                    _check_interval(f"{self._prefix}.{name}", value, *part.__metadata__)


def _check_interval(name: str, value: float, interval: str) -> None:
    low, high = (float(end) for end in interval[1:-1].split(","))
    at_end = (interval[0] == "[" and value == low) or (interval[-1] == "]" and value == high)
    wanted = f"in {interval}"
    if high == math.inf:
        wanted = f"at least {low:g}" if interval[0] == "[" else "positive"
    _check(low < value < high or at_end, f"{name} must be {wanted}, not {value}")


@dataclass(frozen=True, kw_only=True)
class Data(Part, prefix="data"):
    """Where the contest lies and how its rows are split."""

    root: Path = Path("data")
    """Folder that holds train/landmarks.csv, train/images, test/ (or contest01_data with these)."""
    split: Literal["auto", "person", "order", "hash", "random"] = "auto"
    """Validation rows: whole persons, the table's last rows, names with a low hash (rows keep their
    side when others are added), or random rows; auto: person if names allow, else order."""
    split_file: Path | None = None
    """In place of a rule: table of tools/data.py split (comma or TAB; file_name, and part: train or
    validation, or fold: 0, 1, ... of which `fold` validates), or split.json of a run."""
    split_seed: Index = 42
    """Of the random rows; its own, so that runs with other seeds share their rows."""
    validation: BelowOne = 0.2
    """Share of the rows; 0 trains on all: there are no scores, and best.pt is the last epoch."""
    folds: Annotated[int, "[2, inf)"] | None = None
    """In place of validation: parts, by the same rule, of which one validates."""
    fold: int = 0
    """Of the folds, the one that validates; fold 0 is what a share of 1/folds holds out."""
    exclude: Path | None = None
    """Table (comma or TAB; file_name) of images not to train on; they still validate."""
    person_pattern: str = "(.+)_[^_]+$"
    """Regular expression on the file name; its first group is the person."""
    multiplier: Count = 1
    """Passes over the training rows in an epoch, each with random changes of its own."""
    boxes: Path | None = None
    """For crop.rule box: table (comma or TAB; file_name, x0, y0, x1, y1) of the training images'
    face boxes in image pixels; --boxes names that of other images."""
    weights: Path | None = None
    """Table (comma or TAB; file_name, weight) of every training image's weight in the loss;
    tools/data.py pose makes one in which turned heads count more."""
    symmetry: Path | None = None
    """Mirror permutation and groups, by tools/data.py symmetry; 971, 68, 15 landmarks need none."""
    cache: Path | None = None
    """Folder of what is kept for later starts; None: heatmap in $XDG_CACHE_HOME or ~/.cache."""
    workers: Index = 2
    """Processes that read images; 0 reads them in the training process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.fold >= 0 and (self.split_file is not None or self.fold < (self.folds or 1)),
            f"data.fold must be in [0, data.folds), not {self.fold} with data.folds {self.folds}",
        )
        both = self.folds is not None and self.split_file is not None
        _check(not both, "data.split_file has its own folds; leave data.folds away")

    @property
    def all_rows_train(self) -> bool:
        return self.split_file is None and self.folds is None and self.validation == 0


@dataclass(frozen=True, kw_only=True)
class Crop(Part, prefix="crop"):
    """What of an image the network sees."""

    height: Size = 128
    width: Size = 128
    """Size of the network's input in pixels."""
    rule: Literal["cover", "contain", "box"] = "cover"
    """cover: the image fills the crop, its long ends are cut off (the organisers' crop); contain:
    the whole image, with black beside it; box: the whole box of data.boxes."""
    box_scale: Positive = 1.0
    """For rule box: factor that enlarges the boxes about their middle."""
    trim_border: Annotated[int, "[0, 255)"] = 0
    """First cuts off rows and columns at the sides whose pixels all have a channel mean of at most
    this; 0 for none, 9 for images padded with black."""


@dataclass(frozen=True, kw_only=True)
class Augment(Part, prefix="augment"):
    """Random changes of the training crops, each drawn anew for every crop; 0 switches one off."""

    mirror: Fraction = 0.0
    """Probability of a mirrored crop; left and right landmarks change names."""
    rotate_deg: Annotated[float, "[0, 180]"] = 0.0
    """Largest rotation to either side; 180 is any rotation."""
    scale: Fraction = 0.0
    """Largest change of size, as a fraction: 0.2 draws factors from 1/1.2 to 1.2."""
    shift: Fraction = 0.0
    """Largest shift along each axis, as a fraction of the crop."""
    aspect: Fraction = 0.0
    """Largest stretch of width against height, as a fraction like scale; the area stays."""
    fill: Literal["black", "edge", "noise", "mixed"] = "black"
    """What a moved crop shows outside the image: black, its edge's colours, noise, or mixed (edge
    for three crops of four, noise for the fourth). Validation and test show black."""
    brightness: Fraction = 0.0
    """Largest change added, as a fraction of white; 0.068 spreads as a normal one with 10 / 255."""
    contrast: Fraction = 0.0
    """Largest change of contrast, as a fraction; 0.087 spreads as a normal one with 0.05."""
    saturation: Fraction = 0.0
    """Largest change of saturation, as a fraction; 1 reaches grey."""
    hue: Annotated[float, "[0, 0.5]"] = 0.0
    """Largest turn of the colours, as a fraction of the colour circle; 0.5 is any turn."""
    gray: Fraction = 0.0
    """Probability of a crop without colours."""
    sharpness: Fraction = 0.0
    """Largest change of sharpness, as a fraction: 1 draws from smoothed to sharpened twice."""
    blur: Annotated[float, "[0, 10]"] = 0.0
    """Largest standard deviation of a Gaussian blur, in crop pixels."""
    noise: Fraction = 0.0
    """Largest standard deviation of Gaussian noise, as a fraction of white."""
    jpeg: Fraction = 0.0
    """Largest loss of JPEG quality, as a fraction: 0.7 draws qualities from 100 down to 30."""
    erase: Fraction = 0.0
    """Probability of a rectangle of one colour somewhere on the crop; landmarks under it stay."""
    erase_area: tuple[float, float] = (0.01, 0.02)
    """Smallest and largest area of that rectangle, as fractions of the crop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smallest, largest = self.erase_area
        wanted = "augment.erase_area must be two rising fractions from above 0 to 1"
        _check(0 < smallest <= largest <= 1, f"{wanted}, not {smallest} and {largest}")


# The names in `losses.LOSSES`, which imports torch.
HeatmapLoss = Literal["adaptive_wing", "mse"]
PointLoss = Literal["mse", "mae", "smooth_l1", "wing"]


@dataclass(frozen=True, kw_only=True)
class HeatmapModel(Part, prefix="model"):
    """What every network of the heatmap road has: features, times an embedding a landmark."""

    encoder: str = "resnet34"
    """Any encoder of segmentation_models_pytorch, or tu-NAME for one of timm's."""
    weights: str = "imagenet"
    """The encoder's start: a name of pretrained weights, a local file, or none (random)."""
    stride: Literal[1, 2, 4] = 4
    """Input pixels per heatmap pixel."""
    width: Count = 128
    """Feature channels; sharp maps need the lesser of 0.25 height width / sigma² and landmarks."""
    sigma: Annotated[float, "[0.5, 10]"] = 1.5
    """Standard deviation of the target Gaussians in heatmap pixels."""
    sigma_start: float | None = None
    """Adaloss: the targets' first sigma, which shrinks to `sigma` as the training loss settles."""
    loss: HeatmapLoss | Literal["none"] = "adaptive_wing"
    """Of every heatmap pixel; none trains on coordinates alone (coordinate_loss)."""
    weight_map: NotNegative = 10.0
    """Extra weight of the pixels near a landmark in the loss; 0 is the plain loss."""
    coordinate_loss: PointLoss | Literal["none"] = "none"
    """Of the soft-argmax of the maps, in crop pixels, trained end to end (integral regression)."""
    coordinate_weight: NotNegative = 1.0
    """Factor of the coordinate loss beside the others."""
    divergence: NotNegative = 0.0
    """Factor of the Jensen-Shannon divergence of the maps' softmax from the targets (DSNT's)."""
    decoder: Literal["window", "parabola", "global", "softmax"] = "window"
    """Soft-argmax in a window round the peak; a parabola through the peak's logarithms; soft-argmax
    over the whole map, its temperature following the peak or as coordinate_loss trains it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.sigma_start is None or self.sigma <= self.sigma_start <= 10,
            f"model.sigma_start must be in [model.sigma, 10], not {self.sigma_start}",
        )
        if self.loss == "none":
            _check(
                self.coordinate_loss != "none" or self.divergence > 0,
                "model.loss is none, so there is nothing to train on: set model.coordinate_loss",
            )
            wanted = "maps without a heatmap loss are read by model.decoder softmax"
            _check(self.decoder == "softmax", f"{wanted}, not {self.decoder}")


@dataclass(frozen=True, kw_only=True)
class UNet(HeatmapModel):
    """The heatmap road on any encoder, with a decoder that climbs back to the wanted stride."""

    architecture: Literal["unet", "unetplusplus", "fpn", "linknet"] = "unet"
    """Of the decoder: U-Net, U-Net++, feature pyramid or LinkNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.architecture != "fpn" or self.width % 32 == 0
        _check(fits, f"model.width must be a multiple of 32 for fpn, not {self.width}")


@dataclass(frozen=True, kw_only=True)
class DenseUNet(HeatmapModel):
    """The heatmap road by H-DenseUNet's 2-D network: a DenseNet whose raw blocks are added in."""

    encoder: Literal["densenet121", "densenet161", "densenet169", "densenet201"] = "densenet161"
    """densenet161 makes the paper's DenseUNet-167."""
    dropout: BelowOne = 0.3
    """Of the last stage at stride 1, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Direct(Part, prefix="model"):
    """The direct road: encoder, pooled, fully connected to coordinates."""

    encoder: str = "resnet18"
    """Any encoder of segmentation_models_pytorch, or tu-NAME for one of timm's."""
    weights: str = "imagenet"
    """The encoder's start: a name of pretrained weights, a local file, or none (random)."""
    hidden: Index = 0
    """Width of a layer with ReLU before the last one; 0 for none, as the organisers' baseline."""
    dropout: BelowOne = 0.0
    """Share of the last layer's inputs that is dropped in training."""
    loss: PointLoss = "mse"
    """Of the distances along x and y, in crop pixels."""


Model = UNet | DenseUNet | Direct


@dataclass(frozen=True, kw_only=True)
class Optimizer(Part, prefix="optimizer"):
    """How a gradient changes the weights."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    """Learning rate at the schedule's top."""
    weight_decay: NotNegative = 0.01
    momentum: BelowOne = 0.9
    """Of SGD."""
    amsgrad: bool = False
    """Of Adam and AdamW."""
    clip_norm: Positive | None = None
    """Gradients longer than this are shortened to it."""


@dataclass(frozen=True, kw_only=True)
class Schedule(Part, prefix="schedule"):
    """The learning rate over a stage, as a factor of its top."""

    kind: Literal["cosine", "step", "constant", "plateau", "onecycle", "cyclic"] = "cosine"
    """cosine: down to the floor; step: times gamma every step_epochs; plateau: times gamma when the
    score no longer improves; onecycle: from 1/25 up over the warm-up, then to nearly nothing;
    cyclic: between floor and a top that shrinks by gamma every step (exp_range)."""
    warmup: BelowOne = 0.05
    """Part of the stage over which the rate rises; not of cyclic. torch's OneCycleLR has 0.3."""
    gamma: Annotated[float, "(0, 1]"] = 0.1
    """Factor of step, plateau and cyclic."""
    floor: BelowOne = 0.0
    """Lowest factor of cosine, step, plateau and cyclic."""
    step_epochs: Count = 1
    """Of step."""
    patience: Index = 4
    """Of plateau: epochs without a better score that are borne."""
    threshold: NotNegative = 0.01
    """Of plateau: what a better score is lower by, in square pixels."""
    rise_steps: Count = 2000
    """Of cyclic: steps from the floor to the top, and as many back."""


@dataclass(frozen=True, kw_only=True)
class Rates(Part, prefix="rates"):
    """Factors of the learning rate for a network's parts; 0 freezes one, with its statistics."""

    block1: NotNegative = 1.0
    """Of the encoder: what its first features (stride 2) need."""
    block2: NotNegative = 1.0
    block3: NotNegative = 1.0
    block4: NotNegative = 1.0
    block5: NotNegative = 1.0
    decoder: NotNegative = 1.0
    """Of the heatmap road."""
    head: NotNegative = 1.0
    """The fully connected layers, or the landmarks' embeddings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(any(vars(self).values()), "rates: with every part frozen there is nothing to train")


FROZEN_ENCODER = Rates(block1=0, block2=0, block3=0, block4=0, block5=0)


@dataclass(frozen=True, kw_only=True)
class Stage(Part, prefix="stage"):
    """A part of a run with its own learning rate and trainable parts; the optimizer starts anew."""

    epochs: Count
    """Of max_minutes the stage gets the share that it has of all stages' epochs."""
    lr: Positive | None = None
    """Learning rate at the schedule's top; optimizer.lr unless given."""
    schedule: Schedule = field(default_factory=Schedule)
    rates: Rates = field(default_factory=Rates)
    start: Literal["last", "best"] = "last"
    """Weights to start from: those of the step before, or the best ones so far."""


@dataclass(frozen=True, kw_only=True)
class Train(Part, prefix="train"):
    """The loop and its budget: it ends at the epochs or at the minutes, whichever comes first."""

    epochs: Count | None = None
    """20 unless given; where the experiment has stages, these have their own."""
    start: Path | None = None
    """Run folder or checkpoint to take weights from; a head for other landmarks is made anew."""
    max_minutes: Positive | None = None
    """Minutes of training and validation; the schedule anneals to them."""
    max_steps: Count | None = None
    """Steps after which the run ends, however many epochs that is."""
    batch: Count = 32
    """Images a step, over all processes."""
    accumulate: Count = 1
    """Parts that a batch is worked off in, to save memory; batch normalisation sees the parts."""
    pixel_weights: bool = False
    """Weigh images by the area that a crop pixel covers in them (by its side for mae, smooth_l1 and
    wing), so that errors count in the images' own pixels."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network; rendering, loss and decoding are float32 always."""
    compile: Literal["off", "loss", "all"] = "loss"
    """What is compiled before the first step: the loss's arithmetic, or the network as well."""
    patience: Count | None = None
    """Epochs without a better validation score after which the run stops."""
    ema: BelowOne = 0.0
    """Decay, a step, of a running mean of the weights (EMA) that is scored and kept in their place;
    0 for none, 0.999 is usual. At most (1 + step) / (10 + step)."""
    keep_every: Count | None = None
    """Epochs between checkpoints that are kept under names of their own (epoch-10.pt)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_minutes: NotNegative = 10.0
    """Minutes between checkpoints inside an epoch, beside the one after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = f"a multiple of train.accumulate ({self.accumulate})"
        _check(self.batch % self.accumulate == 0, f"train.batch ({self.batch}) must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class Wandb(Part, prefix="wandb"):
    """The window on the run in Weights & Biases; the run folder holds the same without it."""

    mode: Literal["online", "offline", "off"] = "offline"
    project: str = "heatmap"
    entity: str | None = None
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()
    images_every: Count = 5
    """Epochs between drawn predictions (and after the last one)."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a run."""

    name: str
    """Of the experiment; the default run folder and the W&B run carry it."""
    seed: int = 0
    data: Data = field(default_factory=Data)
    crop: Crop = field(default_factory=Crop)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=UNet)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    """Of a run without stages."""
    stages: tuple[Stage, ...] = ()
    """One after the other; none for a run with one schedule that trains everything."""
    train: Train = field(default_factory=Train)
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        _check(self.seed >= 0, f"seed must be at least 0, not {self.seed}")
        _check(bool(self.name), "name must not be empty")
        _check(
            not self.stages or self.train.epochs is None,
            "train.epochs and stages exclude each other; stages have their own (--stages.0.epochs)",
        )
        if not self.data.all_rows_train:
            return
        stages = self.all_stages
        scores = "validation scores, and with data.validation 0 there are none"
        _check(self.train.patience is None, f"train.patience needs {scores}")
        no_plateau = all(s.schedule.kind != "plateau" for s in stages)
        _check(no_plateau, f"schedule.kind plateau needs {scores}")
        _check(all(s.start != "best" for s in stages), f"stage.start best needs {scores}")

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages, or the one that a run without stages is."""
        return self.stages or (Stage(epochs=self.train.epochs or 20, schedule=self.schedule),)


def to_dict(part: Any) -> dict[str, Any]:
    """The dataclass as JSON-able values; a part that could be of several kinds carries its kind."""
    values, hints = dict(vars(part)), typing.get_type_hints(type(part))
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            kind = {"type": type(value).__name__} if len(_kinds(hints[name])) > 1 else {}
            values[name] = kind | to_dict(value)
        elif isinstance(value, Path):
            values[name] = str(value)
        elif isinstance(value, tuple):
            values[name] = [to_dict(v) if dataclasses.is_dataclass(v) else v for v in value]
    return values


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass that `to_dict` was given.

    Raises:
        UserError: a name that the dataclass does not have, with the nearest one that it has.
    """
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            if name in OPTIONS_OF_0_1.get(kind.__name__, {}):
                if renamed := OPTIONS_OF_0_1[kind.__name__][name]:
                    arguments[renamed] = value
                continue
            near = difflib.get_close_matches(name, hints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{kind.__name__} has no field {name!r}{hint}")
        kinds = _kinds(hints[name])
        if kinds and isinstance(value, dict):
            by_name, rest = {k.__name__: k for k in kinds}, dict(value)
            wanted = rest.pop("type", kinds[0].__name__) if len(kinds) > 1 else kinds[0].__name__
            if wanted not in by_name:
                raise UserError(f"{kind.__name__}.{name} has no type {wanted!r}")
            arguments[name] = from_dict(by_name[wanted], rest)
        elif hints[name] in (Path, Path | None) and value is not None:
            arguments[name] = Path(value)
        elif isinstance(value, list):
            (item, *_) = typing.get_args(hints[name])
            is_part = dataclasses.is_dataclass(item)
            arguments[name] = tuple(from_dict(item, v) if is_part else v for v in value)
        else:
            arguments[name] = value
    return kind(**arguments)


def flatten(values: Any, name: str = "") -> dict[str, Any]:
    """What `to_dict` gave as the options of the command line name it: train.epochs and so on."""
    if isinstance(values, list) and any(isinstance(inner, dict) for inner in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        return {name: values}
    parts = (flatten(v, f"{name}.{key}" if name else str(key)) for key, v in values.items())
    return {name: value for part in parts for name, value in part.items()}


def _kinds(hint: Any) -> list[type]:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]
