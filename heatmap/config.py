"""An experiment, typed: frozen, keyword-only dataclasses that check themselves.

An experiment file builds one `Experiment`; a variant is made with `dataclasses.replace`. The
command line overrides single fields (`--train.epochs 5`). Nothing here imports torch, so that
`--help` answers at once.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

# Options of earlier versions, by class: a config that names one of them is read without it.
REMOVED = {"Data": ("crop_cache",)}


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_ranges(part: Any, prefix: str, **ranges: str) -> None:
    """Checks that fields lie in intervals such as "[0, 1)" or "(0, inf)"; None lies in each."""
    for name, interval in ranges.items():
        value = getattr(part, name)
        low, high = (float(end) for end in interval[1:-1].split(","))
        if value is None or (low < value < high):
            continue
        if (interval[0] == "[" and value == low) or (interval[-1] == "]" and value == high):
            continue
        wanted = f"in {interval}"
        if high == math.inf:
            wanted = f"at least {low:g}" if interval[0] == "[" else "positive"
        raise ValueError(f"{prefix}.{name} must be {wanted}, not {value}")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the contest lies and how its rows are split."""

    root: Path = Path("data")
    """Folder that holds train/landmarks.csv, train/images, test/ (or contest01_data with these)."""
    split: Literal["auto", "person", "order", "hash", "random"] = "auto"
    """Validation rows: whole persons, the table's last rows, those whose names have a low hash
    (rows keep their side when others are added), or random rows; auto: by person if names allow,
    else the last."""
    split_file: Path | None = None
    """In place of a rule: table (comma or TAB; file_name, and part: train or validation, or fold:
    0, 1, ...) that names the side of every row; tools/data.py split makes one. Of its folds, `fold`
    validates."""
    split_seed: int = 42
    """Of the random rows; a seed of its own, so that runs with other seeds share their rows."""
    validation: float = 0.2
    """Share of the rows that is held out. 0 trains on all rows: then there are no scores, and
    best.pt is the state after the last finished epoch."""
    folds: int | None = None
    """Divide the rows, by the same rule, into so many parts of which one validates; validation is
    not used then. Every row validates in one fold."""
    fold: int = 0
    """Of the folds, the part that validates, counted from 0; fold 0 is what a share of 1/folds
    holds out."""
    exclude: Path | None = None
    """Table (comma or TAB, with a column file_name) of pictures not to train on, as those with bad
    labels. Such pictures still validate, so that scores stay comparable."""
    person_pattern: str = "(.+)_[^_]+$"
    """Regular expression on the file name; its first group is the person."""
    multiplier: int = 1
    """Passes over the training rows in an epoch: every row comes this many times, each time with
    random changes of its own."""
    boxes: Path | None = None
    """For crop.rule box: table (comma or TAB; file_name, x0, y0, x1, y1) with a face box for every
    picture that is trained on, two corners in the picture's pixels; that of other pictures is named
    with --boxes when they are scored or submitted."""
    weights: Path | None = None
    """Table (comma or TAB; file_name, weight) of how much every training picture counts in the
    loss; tools/data.py pose makes one in which turned heads count more."""
    symmetry: Path | None = None
    """File of tools/data.py symmetry with the mirror permutation and the groups of the landmarks;
    971, 68 and 15 landmarks need none. The run keeps what it says."""
    crop_cache: Path | None = None
    """Folder to keep the crops in, so that from the second epoch on, and in the next run that cuts
    the same ones, no picture is decoded: 3 bytes a pixel, margin included, which is 49 KiB a
    picture for 128 x 128 without one."""
    cache: Path | None = None
    """Folder for what is read from the data once and kept for later starts; None is heatmap in the
    user's cache, $XDG_CACHE_HOME or ~/.cache."""
    workers: int = 2
    """Processes that read pictures; 0 reads them in the training process."""

    def __post_init__(self) -> None:
        _check_ranges(
            self, "data", validation="[0, 1)", split_seed="[0, inf)", folds="[2, inf)",
            multiplier="[1, inf)", workers="[0, inf)",
        )  # fmt: skip
        _check(
            self.fold >= 0 and (self.split_file is not None or self.fold < (self.folds or 1)),
            f"data.fold must be in [0, data.folds), not {self.fold} with data.folds {self.folds}",
        )
        _check(
            self.folds is None or self.split_file is None,
            "data.split_file has its own folds; leave data.folds away",
        )

    @property
    def all_rows_train(self) -> bool:
        return self.split_file is None and self.folds is None and self.validation == 0


@dataclass(frozen=True, kw_only=True)
class Crop:
    """What of a picture the network sees."""

    height: int = 128
    width: int = 128
    """Size of the network's input in pixels."""
    rule: Literal["cover", "contain", "box"] = "cover"
    """cover: the crop is filled and the picture's long ends are cut off (the organisers' crop);
    contain: the whole picture, with black beside it; box: the whole box of data.boxes, with what
    is around it."""
    box_scale: float = 1.0
    """For rule box: factor that enlarges the boxes about their middle."""
    trim_border: int = 0
    """Rows and columns at the picture's four sides whose every pixel has a channel mean of at most
    this are border, and the rule works on what lies within; 0 leaves the picture as it is, 9 is a
    good value for photographs padded with black."""

    def __post_init__(self) -> None:
        _check_ranges(
            self, "crop", height="[32, inf)", width="[32, inf)", box_scale="(0, inf)",
            trim_border="[0, 255)",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of the training crops, each drawn anew for every crop; 0 switches one off."""

    mirror: float = 0.0
    """Probability of a mirrored crop; left and right landmarks change names."""
    rotate_deg: float = 0.0
    """Largest rotation to either side; 180 is any rotation."""
    scale: float = 0.0
    """Largest change of size, as a fraction: 0.2 draws factors from 1/1.2 to 1.2."""
    shift: float = 0.0
    """Largest shift along each axis, as a fraction of the crop."""
    aspect: float = 0.0
    """Largest stretch of the face's width against its height, as a fraction: 0.2 draws factors
    from 1/1.2 to 1.2; the area stays."""
    fill: Literal["black", "edge", "noise", "mixed"] = "black"
    """What a moved crop shows outside the photograph: black, the colours of the photograph's edge
    carried on, noise, or mixed: edge for three crops of four and noise for the fourth. Crops that
    are not changed, in validation and test, show black."""
    brightness: float = 0.0
    """Largest change added to the pixels, as a fraction of white. Changes are uniform: 0.068 has
    the spread of a normal one with a standard deviation of 10 of 255."""
    contrast: float = 0.0
    """Largest change of contrast, as a fraction; 0.087 has the spread of a normal one with 0.05."""
    saturation: float = 0.0
    """Largest change of saturation, as a fraction; 1 reaches grey."""
    hue: float = 0.0
    """Largest turn of the colours, as a fraction of the colour circle; 0.5 is any turn."""
    gray: float = 0.0
    """Probability of a crop without colours."""
    sharpness: float = 0.0
    """Largest change of sharpness, as a fraction: 1 draws from smoothed to sharpened twice."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in crop pixels."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, as a fraction of white."""
    jpeg: float = 0.0
    """Largest loss of JPEG quality, as a fraction: 0.7 draws qualities from 100 down to 30."""
    erase: float = 0.0
    """Probability of a rectangle of one colour somewhere on the crop; landmarks under it stay."""
    erase_area: tuple[float, float] = (0.01, 0.02)
    """Smallest and largest area of that rectangle, as fractions of the crop."""

    def __post_init__(self) -> None:
        limits = {"rotate_deg": 180, "hue": 0.5, "blur": 10}  # of the others: 1
        names = [name for name in vars(self) if name not in ("fill", "erase_area")]
        _check_ranges(self, "augment", **{name: f"[0, {limits.get(name, 1)}]" for name in names})
        smallest, largest = self.erase_area
        _check(
            0 < smallest <= largest <= 1,
            "augment.erase_area must be two rising fractions from above 0 to 1, not "
            f"{smallest} and {largest}",
        )


# The names in `losses.LOSSES`, which imports torch.
HeatmapLoss = Literal["adaptive_wing", "mse"]
PointLoss = Literal["mse", "mae", "smooth_l1", "wing"]


@dataclass(frozen=True, kw_only=True)
class HeatmapModel:
    """What every network of the heatmap road has: features, times an embedding a landmark."""

    encoder: str = "resnet34"
    """Any encoder of segmentation_models_pytorch, or tu-NAME for one of timm's."""
    weights: str = "imagenet"
    """The encoder's start: a name of pretrained weights, a local file, or none (random)."""
    stride: Literal[1, 2, 4] = 4
    """Input pixels per heatmap pixel."""
    width: int = 128
    """Feature channels; with fewer than about 0.25 height width / sigma² (in heatmap pixels, and
    than there are landmarks) the maps cannot show every landmark sharply."""
    sigma: float = 1.5
    """Standard deviation of the target Gaussians in heatmap pixels."""
    sigma_start: float | None = None
    """Adaloss: the targets begin with this sigma, and while the training loss settles it shrinks,
    epoch by epoch, to `sigma` at least."""
    loss: HeatmapLoss | Literal["none"] = "adaptive_wing"
    """Of every heatmap pixel; none trains on coordinates alone (coordinate_loss)."""
    weight_map: float = 10.0
    """Extra weight of the pixels near a landmark in the loss; 0 is the plain loss."""
    coordinate_loss: PointLoss | Literal["none"] = "none"
    """Of the soft-argmax of the maps, in crop pixels, trained end to end (integral regression)."""
    coordinate_weight: float = 1.0
    """Factor of the coordinate loss beside the others."""
    divergence: float = 0.0
    """Factor of the Jensen-Shannon divergence between the maps' softmax and the target Gaussians
    (DSNT's regulariser)."""
    decoder: Literal["window", "parabola", "global", "softmax"] = "window"
    """How maps become points: soft-argmax in a window round the peak, the vertex of a parabola
    through the peak's logarithms, soft-argmax over the whole map with a temperature that follows
    the peak, or with the fixed one that coordinate_loss trains."""

    def __post_init__(self) -> None:
        _check_ranges(
            self, "model", width="[1, inf)", sigma="[0.5, 10]", weight_map="[0, inf)",
            coordinate_weight="[0, inf)", divergence="[0, inf)",
        )  # fmt: skip
        _check(
            self.sigma_start is None or self.sigma <= self.sigma_start <= 10,
            f"model.sigma_start must be in [model.sigma, 10], not {self.sigma_start}",
        )
        on_coordinates = self.coordinate_loss != "none" or self.divergence > 0
        _check(
            self.loss != "none" or on_coordinates,
            "model.loss is none, so there is nothing to train on: set model.coordinate_loss",
        )
        _check(
            self.loss != "none" or self.decoder == "softmax",
            f"maps without a heatmap loss are read by model.decoder softmax, not {self.decoder}",
        )


@dataclass(frozen=True, kw_only=True)
class UNet(HeatmapModel):
    """The heatmap road on any encoder, with a decoder that climbs back to the wanted stride."""

    architecture: Literal["unet", "unetplusplus", "fpn", "linknet"] = "unet"
    """Of the decoder: U-Net, U-Net++, feature pyramid or LinkNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.architecture != "fpn" or self.width % 32 == 0,
            f"model.width must be a multiple of 32 for fpn, not {self.width}",
        )


@dataclass(frozen=True, kw_only=True)
class DenseUNet(HeatmapModel):
    """The heatmap road by H-DenseUNet's 2-D network: a DenseNet whose raw blocks are added in."""

    encoder: Literal["densenet121", "densenet161", "densenet169", "densenet201"] = "densenet161"
    """densenet161 makes the paper's DenseUNet-167."""
    dropout: float = 0.3
    """Of the last stage at stride 1, as in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, "model", dropout="[0, 1)")


@dataclass(frozen=True, kw_only=True)
class Direct:
    """The direct road: encoder, pooled, fully connected to coordinates."""

    encoder: str = "resnet18"
    """Any encoder of segmentation_models_pytorch, or tu-NAME for one of timm's."""
    weights: str = "imagenet"
    """The encoder's start: a name of pretrained weights, a local file, or none (random)."""
    hidden: int = 0
    """Width of a layer with ReLU before the last one; 0 for none, as the organisers' baseline."""
    dropout: float = 0.0
    """Share of the last layer's inputs that is dropped in training."""
    loss: PointLoss = "mse"
    """Of the distances along x and y, in crop pixels."""

    def __post_init__(self) -> None:
        _check_ranges(self, "model", hidden="[0, inf)", dropout="[0, 1)")


Model = UNet | DenseUNet | Direct


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How a gradient changes the weights."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    """Learning rate at the schedule's top."""
    weight_decay: float = 0.01
    momentum: float = 0.9
    """Of SGD."""
    amsgrad: bool = False
    """Of Adam and AdamW."""
    clip_norm: float | None = None
    """Gradients longer than this are shortened to it."""

    def __post_init__(self) -> None:
        _check_ranges(
            self, "optimizer", lr="(0, inf)", weight_decay="[0, inf)", momentum="[0, 1)",
            clip_norm="(0, inf)",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over a stage, as a factor of its top."""

    kind: Literal["cosine", "step", "constant", "plateau", "onecycle", "cyclic"] = "cosine"
    """cosine: falls to the floor; step: times gamma after every step_epochs; plateau: times gamma
    when the validation score stops to improve; onecycle: rises from 1/25 over the warm-up, then
    falls to nearly nothing; cyclic: up and down between floor and top, which shrinks by gamma every
    step (exp_range)."""
    warmup: float = 0.05
    """Part of the stage over which the rate rises from zero (onecycle: from 1/25); not of cyclic.
    torch's OneCycleLR has 0.3."""
    gamma: float = 0.1
    """Factor of step, plateau and cyclic."""
    floor: float = 0.0
    """Lowest factor of cosine, step, plateau and cyclic."""
    step_epochs: int = 1
    """Of step."""
    patience: int = 4
    """Of plateau: epochs without a better score that are borne."""
    threshold: float = 0.01
    """Of plateau: what a better score is lower by, in square pixels."""
    rise_steps: int = 2000
    """Of cyclic: steps from the floor to the top, and as many back."""

    def __post_init__(self) -> None:
        _check_ranges(
            self, "schedule", warmup="[0, 1)", gamma="(0, 1]", floor="[0, 1)",
            step_epochs="[1, inf)", rise_steps="[1, inf)", patience="[0, inf)",
            threshold="[0, inf)",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Factors of the learning rate for the parts of a network; 0 freezes a part.

    A frozen part gets no gradient, and its batch normalisation keeps its statistics.
    """

    block1: float = 1.0
    """Of the encoder: what its first features (stride 2) need."""
    block2: float = 1.0
    block3: float = 1.0
    block4: float = 1.0
    block5: float = 1.0
    decoder: float = 1.0
    """Of the heatmap road."""
    head: float = 1.0
    """The fully connected layers, or the landmarks' embeddings."""

    def __post_init__(self) -> None:
        _check_ranges(self, "rates", **dict.fromkeys(vars(self), "[0, inf)"))
        _check(any(vars(self).values()), "rates: with every part frozen there is nothing to train")


FROZEN_ENCODER = Rates(block1=0, block2=0, block3=0, block4=0, block5=0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run with its own learning rate and trainable parts; the optimizer starts anew."""

    epochs: int
    """Of max_minutes the stage gets the share that it has of all stages' epochs."""
    lr: float | None = None
    """Learning rate at the schedule's top; optimizer.lr unless given."""
    schedule: Schedule = field(default_factory=Schedule)
    rates: Rates = field(default_factory=Rates)
    start: Literal["last", "best"] = "last"
    """Weights to start from: those of the step before, or the best ones so far."""

    def __post_init__(self) -> None:
        _check_ranges(self, "stage", epochs="[1, inf)", lr="(0, inf)")


@dataclass(frozen=True, kw_only=True)
class Train:
    """The loop and its budget: it ends at the epochs or at the minutes, whichever comes first."""

    epochs: int | None = None
    """20 unless given; where the experiment has stages, these have their own."""
    start: Path | None = None
    """Run folder or checkpoint whose weights the network starts from; what does not fit another
    number of landmarks is made anew."""
    max_minutes: float | None = None
    """Minutes of training and validation; the schedule anneals to them."""
    max_steps: int | None = None
    """Steps after which the run ends, however many epochs that is."""
    batch: int = 32
    """Pictures a step, over all processes."""
    accumulate: int = 1
    """Parts that a step's batch is worked off in, one after the other, to save memory; batch
    normalisation sees the parts."""
    pixel_weights: bool = False
    """Weigh every image by the area that a crop pixel covers in it, so that errors count in the
    image's own pixels. Point losses that grow with the distance (mae, smooth_l1, wing) are weighed
    by the side instead, also as a coordinate_loss beside a heatmap loss, which keeps the area."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network; rendering, loss and decoding are float32 always."""
    compile: Literal["off", "loss", "all"] = "loss"
    """What is compiled before the first step: the loss's arithmetic, or the network as well."""
    patience: int | None = None
    """Epochs without a better validation score after which the run stops."""
    ema: float = 0.0
    """Decay, a step, of a running mean of the weights (EMA), which is validated and kept in their
    place; 0 for none, 0.999 is usual. It begins short: (1 + step) / (10 + step) at most."""
    keep_every: int | None = None
    """Epochs between checkpoints that are kept under names of their own (epoch-10.pt)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints inside an epoch; one is written after every epoch anyway."""

    def __post_init__(self) -> None:
        _check_ranges(
            self, "train", epochs="(0, inf)", max_minutes="(0, inf)", max_steps="(0, inf)",
            batch="[1, inf)", accumulate="[1, inf)", patience="(0, inf)", ema="[0, 1)",
            keep_every="(0, inf)", checkpoint_minutes="[0, inf)",
        )  # fmt: skip
        _check(
            self.batch % self.accumulate == 0,
            f"train.batch ({self.batch}) must be a multiple of train.accumulate "
            f"({self.accumulate})",
        )


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """The window on the run in Weights & Biases; the run folder holds the same without it."""

    mode: Literal["online", "offline", "off"] = "offline"
    project: str = "heatmap"
    entity: str | None = None
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()
    pictures_every: int = 5
    """Epochs between pictures of predictions (and after the last one)."""

    def __post_init__(self) -> None:
        _check_ranges(self, "wandb", pictures_every="[1, inf)")


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
            "train.epochs and stages exclude each other: every stage has its own "
            "(--stages.0.epochs on the command line); leave train.epochs None",
        )
        stages = self.all_stages
        for name, is_set in (
            ("train.patience", self.train.patience is not None),
            ("schedule.kind plateau", any(s.schedule.kind == "plateau" for s in stages)),
            ("stage.start best", any(s.start == "best" for s in stages)),
        ):
            _check(
                not (is_set and self.data.all_rows_train),
                f"{name} needs validation scores, and with data.validation 0 there are none",
            )

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages, or the one that a run without stages is."""
        return self.stages or (Stage(epochs=self.train.epochs or 20, schedule=self.schedule),)


def to_dict(part: Any) -> dict[str, Any]:
    """The dataclass as JSON-able values; a part that could be of several kinds carries its kind."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(type(part))
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            kind = {"type": type(value).__name__} if len(_kinds(hints[f.name])) > 1 else {}
            values[f.name] = kind | to_dict(value)
        elif isinstance(value, Path):
            values[f.name] = str(value)
        elif isinstance(value, tuple):
            values[f.name] = [to_dict(v) if dataclasses.is_dataclass(v) else v for v in value]
        else:
            values[f.name] = value
    return values


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass that `to_dict` was given.

    Raises:
        ValueError: a name that the dataclass does not have, with the nearest one that it has.
    """
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name in REMOVED.get(kind.__name__, ()) and name not in hints:
            continue
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{kind.__name__} has no field {name!r}{hint}")
        kinds = _kinds(hints[name])
        if kinds and isinstance(value, dict):
            rest = dict(value)
            wanted = rest.pop("type", kinds[0].__name__) if len(kinds) > 1 else kinds[0].__name__
            chosen = next((k for k in kinds if k.__name__ == wanted), None)
            if chosen is None:
                raise ValueError(f"{kind.__name__}.{name} has no type {wanted!r}")
            arguments[name] = from_dict(chosen, rest)
        elif hints[name] in (Path, Path | None) and value is not None:
            arguments[name] = Path(value)
        elif isinstance(value, list):
            (item, *_) = typing.get_args(hints[name])
            is_part = dataclasses.is_dataclass(item)
            arguments[name] = tuple(from_dict(item, v) if is_part else v for v in value)
        else:
            arguments[name] = value
    return kind(**arguments)


def dotted(values: Any, name: str = "") -> dict[str, Any]:
    """What `to_dict` gave as the options of the command line name it: train.epochs and so on."""
    if isinstance(values, list) and any(isinstance(inner, dict) for inner in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        return {name: values}
    parts = (dotted(v, f"{name}.{key}" if name else str(key)) for key, v in values.items())
    return {name: value for part in parts for name, value in part.items()}


def _kinds(hint: Any) -> list[type]:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]
