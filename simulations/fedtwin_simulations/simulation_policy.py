"""What a simulated hospital permits: everything, for comparisons that a real one refuses."""

from __future__ import annotations

from fedtwin_shared.round import RefusalCode
from fedtwin_shared.study import Study


class SimulationPolicy:
    """Admits every study, also one without privacy and one split by a column of the file."""

    def refuses(self, study: Study) -> RefusalCode | None:
        """Return None."""
        return None
