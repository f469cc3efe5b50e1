"""One round of training at one hospital, under patient-level differential privacy. Opacus is used here only.

`private_step` says what a step releases, `engine` how each patient's gradient is computed at an ordinary price.
"""

from fedtwin_client.training.local_steps import train

__all__ = ["train"]
