"""Networks: ordinary modules from images to logits."""

from snnkern.models.fc_conv import conv_net, fc_net
from snnkern.models.network import Normalize, SpikingNetwork
from snnkern.models.vgg import vgg5, vgg11

__all__ = ["Normalize", "SpikingNetwork", "conv_net", "fc_net", "vgg5", "vgg11"]
