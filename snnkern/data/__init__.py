"""Datasets, and augmentations of their batches."""

from snnkern.data.corrupted import cifar10_c, cifar100_c
from snnkern.data.digits import digits, enlarged_digits
from snnkern.data.events import event_frames
from snnkern.data.images import FORMATS, Format, Images, Samples, Split, loader
from snnkern.data.nmnist import nmnist
from snnkern.data.standard import cifar10, cifar100, fashion_mnist, mnist, svhn
from snnkern.data.synthetic import synthetic
from snnkern.data.tiny_imagenet import tiny_imagenet

__all__ = [
    "FORMATS",
    "Format",
    "Images",
    "Samples",
    "Split",
    "cifar10",
    "cifar10_c",
    "cifar100",
    "cifar100_c",
    "digits",
    "enlarged_digits",
    "event_frames",
    "fashion_mnist",
    "loader",
    "mnist",
    "nmnist",
    "svhn",
    "synthetic",
    "tiny_imagenet",
]
