"""Networks: ordinary modules from images to logits."""

from snnkern.models.fc_conv import conv_net, fc_net
from snnkern.models.network import Normalize, SpikingNetwork
from snnkern.models.resnet import resnet12, resnet20
from snnkern.models.vgg import vgg5, vgg11, vgg11_tiny_imagenet
from snnkern.models.wide_resnet import wrn16_4

__all__ = [
    "Normalize",
    "SpikingNetwork",
    "conv_net",
    "fc_net",
    "resnet12",
    "resnet20",
    "vgg5",
    "vgg11",
    "vgg11_tiny_imagenet",
    "wrn16_4",
]
