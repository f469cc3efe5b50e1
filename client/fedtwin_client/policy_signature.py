"""The policy in force: the table of `hospital.toml` that the hospital's own key signed, and no other.

Design note: whoever can change a line of `hospital.toml` must not thereby change what patients are protected by: the
limits and the coordinators that may ask at all are under a signature with the hospital's key. The signature is verified
before every task. A policy is fixed for the life of a process, because its digest is in the ledger from the start on: a
policy that was changed, and signed, while the node runs is in force from its next start, and until then nothing is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.gate import Gate
from fedtwin_client.policy import SitePolicy
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError, FedtwinError, VerificationError
from fedtwin_shared.round import RefusalCode
from fedtwin_shared.study import Study

LOGGER: Final = logging.getLogger("fedtwin.policy")


class PolicyInForce:
    """The signed policy of one process.

    - a signature that is missing, of another key or over another policy refuses every study (`policy-unverified`)
    - after `valid_until` every study is refused (`policy-expired`)
    - a coordinator that the policy does not name is refused, whatever else the configuration says
    """

    def __init__(
        self, policy: SitePolicy, *, server: str, gate: Gate, signature: Path, today: Callable[[], date]
    ) -> None:
        self._policy, self._server, self._gate = policy, server, gate
        self._signature, self._today = signature, today

    def refuses(self, study: Study) -> RefusalCode | None:
        """See `Policy.refuses`."""
        try:
            self.verify()
        except PolicyExpiredError as err:
            LOGGER.error("%s", err)
            return RefusalCode.POLICY_EXPIRED
        except FedtwinError as err:
            LOGGER.error("%s", err)
            return RefusalCode.POLICY_UNVERIFIED
        return self._policy.refuses(study)

    def verify(self) -> SitePolicy:
        """Return the policy.

        Raises `ConfigurationError`, `VerificationError` or `PolicyExpiredError` unless
          (1) the hospital's own key signed this very policy;
          (2) today is not after its last day;
          (3) it names the coordinator that this hospital listens to.
        """
        # (1)
        try:
            envelope = self._signature.read_bytes()
        except OSError as err:
            raise ConfigurationError(
                file=self._signature, expected="the signed policy: fedtwin client policy sign", found="none"
            ) from err
        try:
            self._gate.verify_policy(envelope, self._policy.statement(self._gate.site))
        except VerificationError as err:
            raise VerificationError(
                file=self._signature, field=err.field, expected=err.expected, found=err.found
            ) from err
        # (2)
        until = self._policy.valid_until
        if not self._today() <= until:
            raise PolicyExpiredError(
                file=self._signature, field="valid_until", expected="a day to come", found=until.isoformat()
            )
        # (3)
        if self._server not in self._policy.allowed_servers:
            raise VerificationError(
                file=self._signature, field="allowed_servers", expected="coordinator.public_key in it", found="not"
            )
        return self._policy


class PolicyExpiredError(FedtwinError):
    """The hospital's policy was signed for a time that is over."""


def open_policy(
    directory: HospitalDirectory, gate: Gate, *, today: Callable[[], date] = lambda: datetime.now(UTC).date()
) -> PolicyInForce:
    """Return the hospital's policy, which verifies itself whenever it is asked."""
    return PolicyInForce(
        directory.config.policy,
        server=directory.config.coordinator.public_key,
        gate=gate,
        signature=directory.policy_signature,
        today=today,
    )


def sign_policy(directory: HospitalDirectory, gate: Gate) -> str:
    """Put the policy of `hospital.toml` in force, durably; return its digest."""
    policy = directory.config.policy
    replace_file(directory.policy_signature, gate.sign_policy(policy.statement(gate.site)))
    return policy.digest(gate.site)
