"""Sends everything of a session to one replica: the orders of a question share their prefix in its cache.

Ray Serve 2.60 has a consistent-hash router of its own, experimental, which loses a request where one caller has two
under way (it knows them by the id of the caller's own request, which they share).
"""

import random
from hashlib import blake2b
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

CHOICES = 2  # replicas of which the less busy one is taken where there is no session


class SessionRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """By rendezvous hashing: a replica that comes or goes moves only its own sessions. Requests without a session go to
    the less busy of two."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        session = pending_request.metadata.session_id if pending_request is not None else ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        if not session:
            return [random.sample(candidate_replicas, min(CHOICES, len(candidate_replicas)))]
        ranked = sorted(candidate_replicas, key=lambda replica: _weight(session, replica))
        return [[replica] for replica in ranked]  # the next one where one has no room


def _weight(session: str, replica: Any) -> bytes:
    return blake2b(f"{session}:{replica.replica_id.unique_id}".encode(), digest_size=8).digest()
