"""What this hospital permits, whatever a coordinator signs: fail-closed, asked before every task.

Design note: a study is admitted by a person (`fedtwin client approve`); the policy is what no approval can override.
Which studies were approved is not its business: one that was not is unknown.
"""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from fedtwin_shared.fields import Count, Positive
from fedtwin_shared.round import RefusalCode
from fedtwin_shared.study import Study


class Policy(Protocol):
    """Whether a hospital lends itself to a study."""

    def refuses(self, study: Study) -> RefusalCode | None:
        """Return why not, or None. Decides on the study's own constants, never on patients."""


class SitePolicy(BaseModel):
    """The policy of a real hospital.

    - refuses a study without privacy: comparisons exist in simulations only
    - refuses a split that a file names: whoever writes the file would choose who is tested
    - refuses a price above its own maximum
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    maximum_epsilon: Positive
    maximum_delta: float = Field(gt=0, lt=1)
    minimum_patients: Count

    def refuses(self, study: Study) -> RefusalCode | None:
        """See `Policy.refuses`."""
        return RefusalCode.POLICY if self.objections(study) else None

    def objections(self, study: Study) -> tuple[str, ...]:
        """Return, in words for the hospital's own people, everything that stands against the study."""
        privacy = study.privacy
        found = []
        if privacy.mode == "none":
            found.append('privacy.mode "none" gives patients no protection')
        if study.split.rule == "column":
            found.append('split.rule "column" exists in simulations only')
        if not privacy.epsilon <= self.maximum_epsilon:
            found.append(f"privacy.epsilon {privacy.epsilon:g} is above this hospital's {self.maximum_epsilon:g}")
        if not privacy.delta <= self.maximum_delta:
            found.append(f"privacy.delta {privacy.delta:g} is above this hospital's {self.maximum_delta:g}")
        return tuple(found)
