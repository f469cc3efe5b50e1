"""One round of training at one hospital, under patient-level differential privacy. Opacus is used here only."""

from fedtwin_client.training.local_steps import train

__all__ = ["train"]
