"""All of one round's steps at one site: global parameters in, locally trained parameters out."""

from __future__ import annotations

import logging
from typing import Final

import torch

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import Network, build_network, extract_parameters
from fedtwin_client.randomness import KeyStream, Randomness
from fedtwin_client.training.batch import as_batch
from fedtwin_client.training.engine import make_patient_gradients
from fedtwin_client.training.gradient import PlainStep, Step
from fedtwin_client.training.patient_gradients import MakeGradients
from fedtwin_client.training.private_step import PrivateStep
from fedtwin_client.training.sampling import draw_batch
from fedtwin_shared.models import Parameters, initialise
from fedtwin_shared.study import Participant, Study

LOGGER: Final = logging.getLogger("fedtwin.training")
MAKE_GRADIENTS: Final[MakeGradients] = make_patient_gradients  # the engine of private training


def train(
    study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
) -> Parameters:
    """Return the parameters after the study's local steps on `examples`, starting from `parameters`.

    Raises `VerificationError` when the parameters do not fit the study, and for no property of a patient.

    - exactly `training.local_steps` steps run, each of them `study.training_event(1)`
    - sampling rate, denominator, clip, noise and weights are the plan's, never the cohort's
    - nothing but the parameters comes back: no loss, no count
    - the optimiser starts afresh every round
    """
    torch.set_num_threads(1)  # sums in one order on every machine
    network = build_network(study, parameters)
    stream = randomness.stream("train")
    step = _make_step(study, participant, network, stream)
    everybody = as_batch(examples)
    for _ in range(study.training.local_steps):
        step(draw_batch(everybody, rate=study.privacy.sampling_rate, stream=stream))
    if isinstance(step, PrivateStep) and step.discarded:
        LOGGER.warning("%s: gradients that were not finite counted as zero", study.name)
    return extract_parameters(study, network)


def name_engine(study: Study) -> str:
    """Return the name of the engine that computes patients' gradients in this study's private steps."""
    return MAKE_GRADIENTS(build_network(study, initialise(study)), study.training.positive_weight).name


def _make_step(study: Study, participant: Participant, network: Network, stream: KeyStream) -> Step:
    training, privacy = study.training, study.privacy
    weights = list(network.parameters())
    start = [weight.detach().clone() for weight in weights]
    biases = [weight for name, weight in network.named_parameters() if name.endswith("bias")]
    others = [weight for name, weight in network.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.SGD(
        [{"params": others, "weight_decay": training.weight_decay}, {"params": biases, "weight_decay": 0.0}],
        lr=training.learning_rate,
        momentum=training.momentum,
    )

    def add_proximal() -> None:
        """FedProx: the gradient of proximal/2 · ‖w − w₀‖² (Li et al., MLSys 2020)."""
        if training.proximal > 0:
            for weight, origin in zip(weights, start, strict=True):
                assert weight.grad is not None
                weight.grad.add_(weight.detach() - origin, alpha=training.proximal)

    expected = privacy.sampling_rate * participant.patients
    if privacy.mode == "none":
        return PlainStep(
            network,
            optimizer,
            expected_batch=expected,
            positive_weight=training.positive_weight,
            before_descent=add_proximal,
        )
    return PrivateStep(
        network,
        optimizer,
        make_gradients=MAKE_GRADIENTS,
        clip=privacy.clip,
        noise_multiplier=privacy.noise_multiplier,
        expected_batch=expected,
        positive_weight=training.positive_weight,
        stream=stream,
        before_descent=add_proximal,
    )
