"""An artifact on Prefect's pages: made when there is something to show, and brought up to date in place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    ArtifactFilterTaskRunId,
)
from prefect.client.schemas.sorting import ArtifactSort

_CANDIDATES = 20
"""Among so many of the newest artifacts of a key and task run is one of which the answer was lost."""

Kind = Literal["progress", "markdown", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """To which runs an artifact belongs."""

    task_run_id: UUID
    flow_run_id: UUID | None
    """None: the step was called outside of a flow."""


@dataclass(frozen=True, slots=True)
class Content:
    """What an artifact shows."""

    data: str | float
    """As Prefect keeps it: per cent of a progress, Markdown of a link, JSON of a table."""
    description: str = ""
    """Markdown."""


@dataclass(kw_only=True)
class Artifact:
    """What is to be shown under one key, and what of it Prefect has already."""

    kind: Kind
    key: str
    owner: Owner
    wanted: Content | None = None
    """What is to be shown; None: nothing yet."""
    _shown: Content | None = None
    _id: UUID | None = None
    _asked: bool = False
    """Whether Prefect was asked to make it: then it may be there though no answer came."""
    _mark: str = field(default_factory=lambda: uuid4().hex)
    """Tells it from others with this key, such as that of an earlier attempt of the task run."""

    @property
    def is_due(self) -> bool:
        """Whether Prefect's pages do not show yet what is to be shown."""
        return self.wanted != self._shown

    def bring(self, client: SyncPrefectClient) -> None:
        """Make the pages show what is to be shown; however often that is tried, there is one artifact.

        Raises:
            httpx.HTTPError: the API refuses it, or cannot be reached; to be tried again. One that a
                person has removed is made anew then.
        """
        wanted = self.wanted
        assert wanted is not None
        if self._id is None and self._asked:
            self._id = self._made_before(client)
        if self._id is None:
            self._asked = True
            self._id = client.create_artifact(
                ArtifactCreate(
                    key=self.key,
                    type=self.kind,
                    data=wanted.data,
                    description=wanted.description,
                    metadata_={"mark": self._mark},
                    task_run_id=self.owner.task_run_id,
                    flow_run_id=self.owner.flow_run_id,
                )
            ).id
        else:
            self._update(client, self._id, wanted)
        self._shown = wanted

    def _update(self, client: SyncPrefectClient, artifact_id: UUID, wanted: Content) -> None:
        # Not by `update_artifact`: it emits an event each time, which would fill the feed.
        update = ArtifactUpdate(data=wanted.data, description=wanted.description)
        try:
            client.request(
                "PATCH",
                "/artifacts/{id}",
                json=update.model_dump(mode="json", exclude_unset=True),
                path_params={"id": artifact_id},
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                self._id = None
            raise

    def _made_before(self, client: SyncPrefectClient) -> UUID | None:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                key=ArtifactFilterKey(any_=[self.key]),
                task_run_id=ArtifactFilterTaskRunId(any_=[self.owner.task_run_id]),
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=_CANDIDATES,
        )
        mine = {"mark": self._mark}
        return next((one.id for one in found if one.metadata_ == mine), None)
