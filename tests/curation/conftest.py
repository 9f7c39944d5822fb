"""Fixtures of several tests of curation."""

import pytest
from drawn_faces import draw

from heatmap.curation.audit.residuals import AuditData


@pytest.fixture(scope="session")
def drawn() -> AuditData:
    """See `drawn_faces.draw`; read-only."""
    return draw()
