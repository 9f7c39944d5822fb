"""The heatmap road: networks whose output is features and landmark embeddings."""

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from heatmap import config, frame, losses, maps
from heatmap.maps import Maps
from heatmap.networks.encoder import load_encoder
from heatmap.networks.network import CropPrediction, Network

# Decoder channels from stride 16 down to stride 1, as in smp; the last block has `width` instead.
DECODER_CHANNELS = (256, 128, 64, 32, 16)
NUM_BLOCKS = {1: 5, 2: 4, 4: 3}

POINTWISE = {"adaptive_wing": losses.adaptive_wing, "mse": losses.squared}


class UNetNetwork(Network):
    """U-Net on any smp encoder whose heatmaps are features times embeddings.

    Source: Ronneberger, Fischer, Brox 2015, https://arxiv.org/abs/1505.04597, in smp's form; the
    1 x 1 convolution at its end is kept apart as `embeddings` and `bias`.
    """

    def __init__(self, model: config.UNet, num_landmarks: int) -> None:
        super().__init__(num_landmarks)
        self.stride, self.sigma, self.weight_map = model.stride, model.sigma, model.weight_map
        self.pointwise = POINTWISE[model.loss]
        self.landmark_decoder: str = model.decoder
        self.encoder, channels = load_encoder(model.encoder, model.weights)
        num_blocks = NUM_BLOCKS[model.stride]
        self.decoder = UnetDecoder(
            encoder_channels=channels,
            decoder_channels=(*DECODER_CHANNELS[: num_blocks - 1], model.width),
            n_blocks=num_blocks,
            add_center_block=model.encoder.startswith("vgg"),
        )
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        self.embeddings = nn.Parameter(torch.randn(num_landmarks, model.width) / model.width)
        self.bias = nn.Parameter(torch.zeros(num_landmarks))

    def layers(self, images: Tensor) -> Maps:
        """Features (B, width, H / stride, W / stride) with embeddings (P, width) and bias (P,)."""
        features = self.decoder(self.encoder(self.normalised(images)))
        return Maps(features, self.embeddings, self.bias)

    def loss(self, output: Maps, points_crop: Tensor, weights: Tensor) -> Tensor:
        """The heatmaps' loss, divided by pictures, landmarks and pixels."""
        heatmap_from_crop = torch.linalg.inv(frame.crop_from_heatmap(self.stride))
        return maps.loss(
            output,
            frame.apply(heatmap_from_crop.to(points_crop.device), points_crop),
            weights,
            sigma=self.sigma,
            weight_map=self.weight_map,
            pointwise=self.pointwise,
            block_loss=maps.loss_of_block
            if self.compiled_parts == "off"
            else maps.compiled_loss_of_block,
        )

    def decode(self, output: Maps) -> CropPrediction:
        """What the decoder reads off the maps, in crop pixels."""
        decoded = maps.decode(output, self.sigma, self.landmark_decoder)
        crop_from_heatmap = frame.crop_from_heatmap(self.stride).to(decoded.peak.device)
        points_crop = frame.apply(crop_from_heatmap, decoded.points_heatmap)
        return CropPrediction(
            points_crop.float(), decoded.peak, decoded.covariance * self.stride**2
        )
