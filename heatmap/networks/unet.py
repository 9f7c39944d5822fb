"""U-Net, U-Net++, FPN and LinkNet on any encoder, cut off at the model's stride."""

from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from torch import Tensor, nn

from heatmap import config
from heatmap.networks.encoder import load_encoder
from heatmap.networks.heatmap_network import HeatmapNetwork, padded_hw

# Decoder channels from stride 16 down to stride 1, as in smp; the last block has `width`.
DECODER_CHANNELS = (256, 128, 64, 32, 16)
NUM_BLOCKS = {1: 5, 2: 4, 4: 3}


class UNetNetwork(HeatmapNetwork):
    """An encoder and a decoder of smp.

    Sources: Ronneberger, Fischer, Brox 2015 (U-Net), https://arxiv.org/abs/1505.04597; Zhou et al.
    2018 (U-Net++), https://arxiv.org/abs/1807.10165; Lin et al. 2017 (feature pyramids),
    https://arxiv.org/abs/1612.03144; Chaurasia, Culurciello 2017 (LinkNet),
    https://arxiv.org/abs/1707.03718.
    """

    def __init__(self, model: config.UNet, crop: config.Crop, num_landmarks: int) -> None:
        encoder, channels = load_encoder(model.encoder, model.weights, padded_hw(crop))
        super().__init__(model, crop, num_landmarks, *_decoder(model, channels))
        self.encoder = encoder

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Returns features at strides 1 (the images themselves) to 32."""
        features: list[Tensor] = self.encoder(images)
        return features


def _decoder(model: config.UNet, channels: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Returns a decoder for features of `channels`, and its number of output channels."""
    num_blocks, width = NUM_BLOCKS[model.stride], model.width
    decoder_channels = (*DECODER_CHANNELS[: num_blocks - 1], width)
    match model.architecture:
        case "unet":
            centre = model.encoder.startswith("vgg")
            unet = UnetDecoder(channels, decoder_channels, num_blocks, add_center_block=centre)
            return unet, width
        case "unetplusplus":
            return _NestedDecoder(channels, decoder_channels), width
        case "fpn":
            pyramid = FPNDecoder(list(channels), segmentation_channels=width, dropout=0.0)
            upsample = nn.Upsample(scale_factor=4 // model.stride, mode="bilinear")
            return nn.Sequential(pyramid, upsample), width
        case "linknet":
            link = LinknetDecoder(list(channels), prefinal_channels=width, n_blocks=num_blocks)
            return link, width if model.stride == 1 else channels[-1 - num_blocks]


class _NestedDecoder(UnetPlusPlusDecoder):
    """U-Net++ that ends at its finest node with a skip; smp's block after it is for stride 1."""

    def __init__(self, channels: tuple[int, ...], decoder_channels: tuple[int, ...]) -> None:
        at_stride_1 = len(decoder_channels) == len(DECODER_CHANNELS)
        blocks = decoder_channels if at_stride_1 else (*decoder_channels, decoder_channels[-1])
        super().__init__(channels, blocks, n_blocks=len(blocks))
        if not at_stride_1:
            self.blocks[f"x_0_{self.depth}"] = nn.Identity()
