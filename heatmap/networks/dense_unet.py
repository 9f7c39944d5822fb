"""DenseUNet, the 2-D network of H-DenseUNet, on the DenseNets of smp."""

from torch import Tensor, nn
from torch.nn import functional

from heatmap import config
from heatmap.networks.encoder import load_encoder
from heatmap.networks.heatmap_network import HeatmapNetwork, padded_hw

# The paper's decoder, from stride 16 down to stride 1.
STAGE_CHANNELS = (768, 384, 96, 96, 64)
NUM_STAGES = {1: 5, 2: 4, 4: 3}


class DenseUNetNetwork(HeatmapNetwork):
    """A DenseNet encoder; the decoder's stages add the raw outputs of its blocks.

    With densenet161, stride 1, width 64 and three outputs it equals the paper's DenseUNet-167.
    Wider models expand the last 64 channels, and coarser strides omit the last stages. Batch
    normalisation's own factors replace the scale layers of the authors' code.

    Source: Li et al. 2018, https://arxiv.org/abs/1709.07330, and the authors' published code.
    """

    def __init__(self, model: config.DenseUNet, crop: config.Crop, num_landmarks: int) -> None:
        encoder, channels = load_encoder(model.encoder, model.weights, padded_hw(crop))
        # a block outputs as many channels as its transition normalises
        norms = [encoder.get_submodule(f"features.transition{i}.norm") for i in (1, 2, 3)]
        blocks = [len(norm.get_parameter("weight")) for norm in norms]
        decoder = _Decoder([channels[1], *blocks, channels[-1]], model)
        super().__init__(model, crop, num_landmarks, decoder, decoder.out_channels)
        self.encoder = encoder

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Returns features of the first convolution and the four blocks, at strides 2 to 32."""
        layer = self.encoder.get_submodule("features").get_submodule
        features = [functional.relu(layer("norm0")(layer("conv0")(images)))]
        x = layer("pool0")(features[0])
        for block in (1, 2, 3):
            features.append(layer(f"denseblock{block}")(x))
            x = layer(f"transition{block}")(features[-1])
        return [*features, functional.relu(layer("norm5")(layer("denseblock4")(x)))]


class _Decoder(nn.Module):
    def __init__(self, channels: list[int], model: config.DenseUNet) -> None:
        super().__init__()
        count = NUM_STAGES[model.stride]
        skips, below = (*channels[-2::-1], 0)[:count], channels[-1]
        stages = []
        for stage, (skip, out) in enumerate(zip(skips, STAGE_CHANNELS, strict=False)):
            stages.append(_Stage(below, skip, out, model.dropout if stage == 4 else 0.0))
            below = out
        self.stages = nn.ModuleList(stages)
        self.out_channels = below

    def forward(self, features: list[Tensor]) -> Tensor:
        x, skips = features[-1], [*features[-2::-1], None]
        for stage, skip in zip(self.stages, skips, strict=False):
            x = stage(x, skip)
        return x


class _Stage(nn.Module):
    """Upsamples by 2, adds the skip and applies one convolution."""

    def __init__(self, below: int, skip: int, out: int, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Identity() if skip in (0, below) else nn.Conv2d(skip, below, 1)
        self.convolution = nn.Conv2d(below, out, 3, padding=1)
        self.dropout, self.norm = nn.Dropout(dropout), nn.BatchNorm2d(out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if skip is not None:
            x = x + self.projection(skip)
        return functional.relu(self.norm(self.dropout(self.convolution(x))))
