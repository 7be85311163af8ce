"""Class-conditional DDPM on the bundled digits: samples by class, and guidance.

Paper:    Ho and Salimans 2022, Classifier-Free Diffusion Guidance (label dropout); Dhariwal and
          Nichol 2021 (the class embedding). The network and its training are those of
          configs/digits.py otherwise.
Command:  python train.py --config configs/digits_cond.py
Hardware: two CPU cores, a few minutes.
Expected: a class to each row of the sample grid. Classifiers trained on 1,797 samples with their
          labels alone (no guidance, 250 steps, seed 0) are right on the real 1,797 digits, in
          scikit-learn: SVC(C=10) 97.9 %, the nearest neighbour 97.9 %, logistic regression 96.1 %
          (measured once).
"""

import pathlib

from ddpm_jax.experiments.config import load_config


def get_config():
    config = load_config(pathlib.Path(__file__).with_name("digits.py"))
    config.condition.num_classes = 10
    config.condition.label_dropout = 0.1
    config.train.num_samples = 80  # eight of each digit
    return config
