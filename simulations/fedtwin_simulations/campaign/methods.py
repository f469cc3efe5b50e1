"""What a site does in a round beyond a study's own training: methods that simulations compare and no study may have.

Design note: each is the `train` of a hospital of the engine, so the rounds around it are the real ones. What a method
keeps at a site stays in this object; SCAFFOLD's control variates, which would really travel, do too, so they are
neither noised nor charged: simulations only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedtwin_client.cohort import Examples
from fedtwin_client.evaluation import score
from fedtwin_client.networks import Network, Perceptron, build_network, extract_parameters
from fedtwin_client.randomness import Randomness
from fedtwin_client.training import train
from fedtwin_client.training.batch import as_batch
from fedtwin_client.training.gradient import PlainStep
from fedtwin_client.training.sampling import draw_batch
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.models import Parameters, digest_parameters
from fedtwin_shared.study import Participant, Study

Scores = npt.NDArray[np.float32]


class SiteMethod(Protocol):
    """What a site trains with, and what it scores its patients with after the last round."""

    def __call__(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        """Return what the site sends."""
        ...

    def score(self, study: Study, site: str, released: Parameters, examples: Examples) -> Scores:
        """Return one risk for each patient."""
        ...


class Ordinary:
    """The study's own training; everybody uses the released model."""

    def __call__(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        """See `SiteMethod`."""
        return train(study, participant, parameters, examples, randomness)

    def score(self, study: Study, site: str, released: Parameters, examples: Examples) -> Scores:
        """See `SiteMethod.score`."""
        return score(study, released, examples)


class SharedNoise(Ordinary):
    """Every site adds its share of one noise: under secure aggregation only the sum is seen, and it has all of it.

    Exact where a round is one step and weights are proportional to patients: then the mean of updates is a step of
    centralised DP-SGD over everybody. Source: Kairouz, Liu, Steinke, ICML 2021 (distributed discrete Gaussian), with
    the continuous Gaussian's accounting; nobody drops out and nobody colludes.
    """

    def __call__(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        """See `SiteMethod`."""
        if study.training.local_steps != 1:
            raise ConfigurationError(
                field="training.local_steps", expected="1 where noise is shared", found=f"{study.training.local_steps}"
            )
        # A site's part of the sum is in the unit of its own mean: σ/√n on each of n equal sites is σ on the sum.
        share = study.privacy.noise_multiplier / np.sqrt(len(study.participants))
        noised = study.model_copy(
            update={"privacy": study.privacy.model_copy(update={"noise_multiplier": float(share)})}
        )
        return train(noised, participant, parameters, examples, randomness)


class Scaffold(Ordinary):
    """SCAFFOLD, option II (Karimireddy et al., ICML 2020, algorithm 1, global step size 1)."""

    def __init__(self) -> None:
        self._global: dict[str, Tensor] = {}
        self._own: dict[str, dict[str, Tensor]] = {}
        self._moved: dict[str, Tensor] = {}  # sum of the sites' changes in this round
        self._round = ""

    def __call__(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        """See `SiteMethod`."""
        network = build_network(study, parameters)
        weights = dict(network.named_parameters())
        start = {name: weight.detach().clone() for name, weight in weights.items()}
        nothing = {name: torch.zeros_like(weight) for name, weight in start.items()}
        self._begin_round(digest_parameters(parameters), nothing, sites=len(study.participants))
        own, everybody = self._own.get(participant.site, nothing), self._global

        def correct() -> None:
            for name, weight in weights.items():
                assert weight.grad is not None
                weight.grad += everybody[name] - own[name]

        descend(study, participant, network, examples, randomness, correct)
        scale = study.training.local_steps * study.training.learning_rate
        new = {
            name: own[name] - everybody[name] + (start[name] - weight.detach()) / scale
            for name, weight in weights.items()
        }
        self._moved = {name: self._moved[name] + new[name] - own[name] for name in new}
        self._own[participant.site] = new
        return extract_parameters(study, network)

    def _begin_round(self, model: str, nothing: Mapping[str, Tensor], *, sites: int) -> None:
        """The first site of a round sees another model than before: the variates of the last one are summed up."""
        if model == self._round:
            return
        self._round = model
        moved = self._moved or nothing
        self._global = {name: self._global.get(name, nothing[name]) + moved[name] / sites for name in nothing}
        self._moved = dict(nothing)


class Ditto(Ordinary):
    """Ditto (Li et al., ICML 2021): beside the shared model, one of each site's own, drawn to the shared one by λ."""

    def __init__(self, strength: float = 0.1) -> None:
        self._strength = strength
        self._personal: dict[str, Parameters] = {}

    def __call__(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        """See `SiteMethod`."""
        network = build_network(study, self._personal.get(participant.site, parameters))
        weights = dict(network.named_parameters())
        shared = {name: one.detach() for name, one in build_network(study, parameters).named_parameters()}

        def draw_near() -> None:
            for name, weight in weights.items():
                assert weight.grad is not None
                weight.grad += self._strength * (weight.detach() - shared[name])

        descend(study, participant, network, examples, randomness, draw_near)
        self._personal[participant.site] = extract_parameters(study, network)
        return train(study, participant, parameters, examples, randomness)

    def score(self, study: Study, site: str, released: Parameters, examples: Examples) -> Scores:
        """See `SiteMethod.score`: with the site's own model."""
        return score(study, self._personal.get(site, released), examples)


class LocalNormalisation(Ordinary):
    """FedBN (Li et al., ICLR 2021): batch normalisation before each activation, never shared. For `mlp` only."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Tensor]] = {}

    def __call__(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        """See `SiteMethod`."""
        network = self._build(study, participant.site, parameters)
        network.train()
        descend(study, participant, network, examples, randomness, lambda: None)
        with torch.no_grad():
            network(*_tensors(examples))  # the statistics of the last step's weights
        self._kept[participant.site] = {name: one.clone() for name, one in network.norms.state_dict().items()}
        return extract_parameters(study, network)

    def score(self, study: Study, site: str, released: Parameters, examples: Examples) -> Scores:
        """See `SiteMethod.score`: with the site's own normalisation."""
        network = self._build(study, site, released).eval()
        with torch.no_grad():
            found: Scores = torch.sigmoid(network(*_tensors(examples))).numpy()
        return found

    def _build(self, study: Study, site: str, parameters: Parameters) -> _NormalisedPerceptron:
        if study.model.name != "mlp":
            raise ConfigurationError(field="model.name", expected="mlp with fedbn", found=study.model.name)
        network = _NormalisedPerceptron(study, parameters)
        if site in self._kept:
            network.norms.load_state_dict(self._kept[site])
        return network


class _NormalisedPerceptron(Perceptron):
    """A perceptron with a batch normalisation of one site's patients before each activation."""

    def __init__(self, study: Study, parameters: Parameters) -> None:
        super().__init__(study, parameters)
        # momentum 1: the statistics are those of the last batch, which is everybody.
        self.norms = nn.ModuleList(nn.BatchNorm1d(study.model.hidden, momentum=1.0) for _ in range(study.model.layers))

    def score_windows(self, x: Tensor) -> Tensor:
        """Return logit[patients, windows]."""
        x = x.flatten(2)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            driven = layer(x)
            x = torch.tanh(norm(driven.flatten(0, 1)).view_as(driven))
        logit: Tensor = self.head(x)
        return logit.squeeze(2)


def descend(
    study: Study,
    participant: Participant,
    network: Network,
    examples: Examples,
    randomness: Randomness,
    before_descent: Callable[[], None],
) -> None:
    """Run the study's local steps without privacy, as `fedtwin_client.training` does, changing `network`."""
    torch.set_num_threads(1)
    training = study.training
    step = PlainStep(
        network,
        torch.optim.SGD(network.parameters(), lr=training.learning_rate, momentum=training.momentum),
        expected_batch=study.privacy.sampling_rate * participant.patients,
        positive_weight=training.positive_weight,
        before_descent=before_descent,
    )
    everybody, stream = as_batch(examples), randomness.stream("train")
    for _ in range(training.local_steps):
        step(draw_batch(everybody, rate=study.privacy.sampling_rate, stream=stream))


def _tensors(examples: Examples) -> tuple[Tensor, Tensor]:
    batch = as_batch(examples)
    return batch.x, batch.mask
