# SPDX-License-Identifier: Apache-2.0
"""Experiments that test the claims of SAN and MonoFlow. Each is a command that writes a picture and numbers.

    python -m lab.mixture      GAN and SAN on eight Gaussians, three losses, ten seeds or more
    python -m lab.direction    the discriminator's direction and the optimal one, in the same runs
    python -m lab.monoflow     particles moved along the field of each h; where `vanilla` vanishes
    python -m lab.dcgan        a DCGAN on Fashion-MNIST, GAN and SAN, conditional and unconditional
    python -m lab.projected    StyleSAN-XL and StyleGAN-XL: train.py with --san=True and --san=False
    python -m lab.recognition  which share of a network's images shows the class asked for, by class
    python -m lab.noise        the gradient of class directions with independent and with equal classes
    python -m lab.power        which differences between two methods the seeds of these experiments can show
    python -m lab.claims       writes the tables of docs/method.md from all numbers

The results are in docs/lab/.
"""
