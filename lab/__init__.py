# SPDX-License-Identifier: Apache-2.0
"""The laboratory: experiments that show what SAN and MonoFlow claim, each a command that writes a picture and
numbers.

    python -m lab.mixture      GAN against SAN on eight Gaussians, three losses, ten seeds or more
    python -m lab.direction    the discriminator's direction against the optimal one, of the same runs
    python -m lab.monoflow     particles along the field of each h; where `vanilla` vanishes
    python -m lab.dcgan        a DCGAN on Fashion-MNIST, GAN against SAN, conditional and not
    python -m lab.projected    StyleSAN-XL against StyleGAN-XL: train.py with --san=True and --san=False
    python -m lab.claims       the tables of docs/method.md from the numbers of all of them

Results lie in docs/lab/.
"""
