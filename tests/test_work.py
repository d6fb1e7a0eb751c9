"""That engines leave room for the stage actors, who do the work around them."""

import pytest

from pipelines.pool import cpu_share
from pipelines.stream import STAGE_CPUS


@pytest.mark.parametrize(("engines", "cpus"), [(1, 1), (1, 2), (4, 2), (8, 2), (3, 1), (2, 64)])
def test_engines_on_cpus_leave_room_for_a_stage_actor(engines, cpus):
    share = cpu_share(engines, cpus)
    assert 0 < share <= 0.5
    assert cpus - engines * share >= max(STAGE_CPUS, cpus / 2)
