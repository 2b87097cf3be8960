# SPDX-License-Identifier: Apache-2.0
"""Names and values of the metric options. Does not import torch, so that --help does not wait for it."""

INCEPTION = "inception-2015-12-05"
INCEPTION_RANDOM = "inception-random"
LITE0 = "lite0"
DINOV2, CLIP = "dinov2-vitl14", "clip-vitl14-336"
VGG16, VGG16_TORCHVISION = "vgg16-stylegan", "vgg16-torchvision"
DETECTORS = (INCEPTION, INCEPTION_RANDOM, LITE0, DINOV2, CLIP, VGG16, VGG16_TORCHVISION)
# Detectors with a perceptual distance, by the short names of run_inversion.py.
PERCEPTUAL = {"vgg16": VGG16, "vgg16-torchvision": VGG16_TORCHVISION, "lite0": LITE0, "dinov2": DINOV2}
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
POPULATION, UNBIASED = "population", "unbiased"  # covariance over n, as published, or over n - 1
COVARIANCES = (POPULATION, UNBIASED)
LABEL_RULES = ("dataset", "uniform")
# Training again with another seed moves FID by 1 to 2%: three times more than drawing other samples.
RETRAINING = 0.02
