"""The Registry on MLflow: a SQLite file inside the home folder by default, an MLflow server by URI, one code.

A version is a run with the release's files as artifacts under ``weights`` and a model version that points at them: the
one way that the direct store and every server accept. Audit fields are tags of the run.

The order of a promotion. Its two writes cannot be one: first the alias moves, then the model's promotion tag is
written, and the tag names the version that it is about. A reader that comes between sees the new version with a tag
about another one, takes ``alias:<version>`` as the promotion id and goes after the new version, as it should. Tag first
would show the old version under a new id, which lifts its rejection or pin: a rolled-back version could come back. An
alias moved by hand in MLflow's own pages counts as a promotion for the same reason.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import UnknownModelError, UnknownVersionError
from models.rollout.order import PLAIN, to_document
from models.weights import mlflow_entities as entities
from models.weights import mlflow_runs
from models.weights.mlflow_connection import MlflowConnection, log_cause
from models.weights.mlflow_lookup import all_pages, create_model, model_version, registered_model
from models.weights.registry import (
    DIGEST_TAG,
    EVALUATION_TAG,
    PRODUCTION,
    PROMOTION_TAG,
    READY,
    SERVING_TAG,
    SIGNATURE_TAG,
    STATE_TAG,
    Desired,
)
from models.weights.retention import aliased

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from models.rollout.order import Order
    from models.weights.registry import Evaluation, VersionInfo
    from models.weights.rollout_runs import RolloutRun

EXPERIMENT = "steelyard"
ARTIFACTS = "weights"


def open_registry(tracking_uri: str, *, artifact_root: Path | None = None) -> MlflowRegistry:
    """Return the registry at ``tracking_uri``, reachable and ready for use. Raises RegistryError."""
    registry = MlflowRegistry(tracking_uri, artifact_root=artifact_root)
    registry.models()
    return registry


class MlflowRegistry:
    """See the module's docstring. Thread-safe; connects at the first call, which takes seconds."""

    def __init__(self, tracking_uri: str, *, artifact_root: Path | None = None) -> None:
        """Keep the address; nothing is opened yet.

        Args:
            tracking_uri: ``sqlite:///<path>`` or the URL of an MLflow server.
            artifact_root: folder of the stored files; for SQLite it defaults to ``artifacts`` beside the database, a
                server decides by itself where it is not given.

        """
        self._connection = MlflowConnection(tracking_uri)
        if artifact_root is None and self._connection.database is not None:
            artifact_root = self._connection.database.parent / "artifacts"
        self._artifact_root = artifact_root
        self._experiments: dict[str, str] = {}

    def models(self) -> list[str]:
        """Return the names of all registered models, sorted. Raises RegistryError."""
        with self._connection.reaching() as client:
            return sorted(model.name for model in all_pages(client.search_registered_models))

    def versions(self, model: str) -> list[VersionInfo]:
        """Return all versions, oldest first. Raises UnknownModelError or RegistryError."""
        with self._connection.reaching() as client:
            aliases = entities.aliases_of(registered_model(client, model))
            # The model exists, and register refuses names with a quote.
            found = all_pages(client.search_model_versions, filter_string=f"name='{model}'")
            return [entities.info(entry, aliases) for entry in sorted(found, key=lambda entry: int(entry.version))]

    def version(self, model: str, version: str) -> VersionInfo:
        """Return one version. Raises UnknownModelError, UnknownVersionError or RegistryError."""
        with self._connection.reaching() as client:
            aliases = entities.aliases_of(registered_model(client, model))
            return entities.info(model_version(client, model, version), aliases)

    def desired(self, model: str) -> Desired | None:
        """Return what the production alias names, or None where nothing was ever promoted. Raises RegistryError."""
        with self._connection.reaching() as client:
            try:
                registered = registered_model(client, model)
                version = entities.alias_target(registered)
                if version is None:
                    return None
                entry = model_version(client, model, version)
            except (UnknownModelError, UnknownVersionError):
                # Deleted, perhaps between the two reads: an alias without a version names nothing.
                return None
            tag = entities.latest_promotion(registered.tags.get(PROMOTION_TAG), entry.tags.get(PROMOTION_TAG))
            return Desired(
                model=model,
                version=version,
                digest=entry.tags.get(DIGEST_TAG, ""),
                state=entry.tags.get(STATE_TAG, ""),
                promotion=entities.promotion_id(tag, version),
                order=entities.promotion_order(tag, version),
                signature=entry.tags.get(SIGNATURE_TAG, ""),
            )

    def create_version(
        self,
        model: str,
        folder: Path,
        *,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        sign: Callable[[str], str] | None = None,
    ) -> VersionInfo:
        """Store ``folder`` as a new version; the ready tag is set last. Raises RegistryError.

        sign: see the port; its number is known only once the version exists.
        """
        with self._connection.reaching() as client:
            run = client.create_run(
                self._experiment_id(client, EXPERIMENT), run_name=model, tags=entities.audit("register") | dict(tags)
            )
            client.log_artifacts(run.info.run_id, str(folder), artifact_path=ARTIFACTS)
            for name, value in metrics.items():
                client.log_metric(run.info.run_id, entities.metric_name(name), value)
            client.set_terminated(run.info.run_id)
            try:
                registered_model(client, model)
            except UnknownModelError:
                create_model(client, model)
            return self._add(client, model, run, dict(tags) | {entities.METRIC_TAG: _as_json(metrics)}, sign)

    def sign_version(self, model: str, version: str, signature: str) -> None:
        """Put ``signature`` in place of an earlier one, in one write. Raises UnknownVersionError or RegistryError."""
        with self._connection.reaching() as client:
            registered_model(client, model)
            model_version(client, model, version)
            client.set_model_version_tag(model, version, SIGNATURE_TAG, signature)

    def fetch(self, model: str, version: str, destination: Path) -> None:
        """Download the version's files into ``destination``, an existing, empty folder. Unverified.

        Raises UnknownModelError, UnknownVersionError or RegistryError.
        """
        with self._connection.reaching() as client:
            registered_model(client, model)
            source = str(model_version(client, model, version).source)
            from mlflow import artifacts  # noqa: PLC0415 - takes seconds

            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=destination) as folder:
                found = artifacts.download_artifacts(
                    artifact_uri=source, dst_path=folder, tracking_uri=self._connection.uri
                )
                for path in list(Path(found).iterdir()):
                    shutil.move(path, destination / path.name)

    def promote(self, model: str, version: str, *, promotion: str, reason: str, order: Order = PLAIN) -> Desired:
        """Point the production alias at ``version``, with id and order. Raises UnknownVersionError."""
        with self._connection.reaching() as client:
            registered_model(client, model)
            entry = model_version(client, model, version)
            note = {
                "id": promotion,
                "version": version,
                "reason": reason,
                "order": to_document(order),
                "by": entities.user(),
                "at": entities.now(),
            }
            text = json.dumps(note, sort_keys=True)
            # Before the alias, so that whoever reads in between knows the order: a webhook fires on the alias. On the
            # version only: the model's note is about the version that serves until the alias moves.
            client.set_model_version_tag(model, version, PROMOTION_TAG, text)
            client.set_registered_model_alias(model, PRODUCTION, version)
            client.set_registered_model_tag(model, PROMOTION_TAG, text)
            return Desired(
                model=model,
                version=version,
                digest=entry.tags.get(DIGEST_TAG, ""),
                state=entry.tags.get(STATE_TAG, ""),
                promotion=promotion,
                order=order,
                signature=entry.tags.get(SIGNATURE_TAG, ""),
            )

    def record_evaluation(self, model: str, version: str, evaluation: Evaluation) -> None:
        """Keep an evaluation as a tag of the version, one a data set. Raises UnknownVersionError or RegistryError."""
        with self._connection.reaching() as client:
            registered_model(client, model)
            model_version(client, model, version)
            tag = f"{EVALUATION_TAG}{evaluation.data}"
            client.set_model_version_tag(model, version, tag, entities.encode_evaluation(evaluation))

    def evaluations(self, model: str, version: str) -> tuple[Evaluation, ...]:
        """Return the evaluations of ``version``, oldest first. Raises UnknownVersionError or RegistryError."""
        with self._connection.reaching() as client:
            registered_model(client, model)
            return entities.evaluations_of(model_version(client, model, version))

    def delete_version(self, model: str, version: str) -> None:
        """Delete a version, its files and its run.

        Raises UnknownModelError, UnknownVersionError, RegistryError, or ReleaseRejectedError where an alias names it.
        """
        with self._connection.reaching() as client:
            aliases = entities.aliases_of(registered_model(client, model))
            entry = model_version(client, model, version)
            info = entities.info(entry, aliases)
            if info.aliases:
                raise aliased(info)
            source, run_id = str(entry.source), str(entry.run_id or "")
            # The version first: from then on nobody finds the files, and a crash leaves some that nobody misses.
            client.delete_model_version(model, version)
            self._delete_files(client, source, run_id)

    def recorded_serving(self, model: str) -> str | None:
        """Return the version that ``record_serving`` wrote last. Raises UnknownModelError or RegistryError."""
        with self._connection.reaching() as client:
            return entities.served_version(registered_model(client, model).tags.get(SERVING_TAG))

    def record_serving(self, model: str, *, generation: int, version: str, digest: str) -> None:
        """Write what the fleet has committed. Raises UnknownModelError or RegistryError."""
        note = {"generation": generation, "version": version, "digest": digest, "at": entities.now()}
        with self._connection.reaching() as client:
            registered_model(client, model)
            client.set_registered_model_tag(model, SERVING_TAG, json.dumps(note, sort_keys=True))

    def record_rollout(self, run: RolloutRun) -> None:
        """Keep a finished rollout as a run of its own experiment, once. Raises RegistryError."""
        with self._connection.reaching() as client:
            mlflow_runs.write(client, self._experiment_id(client, mlflow_runs.EXPERIMENT), run)

    @staticmethod
    def _add(
        client: Any,
        model: str,
        run: Any,
        tags: Mapping[str, str],
        sign: Callable[[str], str] | None,
    ) -> VersionInfo:
        entry = client.create_model_version(
            model,
            source=f"{run.info.artifact_uri}/{ARTIFACTS}",
            run_id=run.info.run_id,
            tags=dict(tags),
        )
        if sign is not None:
            client.set_model_version_tag(model, str(entry.version), SIGNATURE_TAG, sign(str(entry.version)))
        client.set_model_version_tag(model, str(entry.version), STATE_TAG, READY)
        return entities.info(model_version(client, model, str(entry.version)), {})

    def _delete_files(self, client: Any, source: str, run_id: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import (  # noqa: PLC0415 - takes seconds
            get_artifact_repository,
        )

        try:
            run = client.get_run(run_id)
            # Only what create_version stored: a version made by hand may point at anything, another's files included.
            ours = source == f"{run.info.artifact_uri}/{ARTIFACTS}" and entities.registered_here(run)
            if not ours or all_pages(client.search_model_versions, filter_string=f"run_id='{run_id}'"):
                return
            get_artifact_repository(source, tracking_uri=self._connection.uri).delete_artifacts()
            client.delete_run(run_id)
        except Exception as error:  # noqa: BLE001 - the version is gone, and some stores delete no files
            log_cause(error)

    def _experiment_id(self, client: Any, name: str) -> str:
        if name not in self._experiments:
            location = None
            if self._artifact_root is not None:
                self._artifact_root.mkdir(parents=True, exist_ok=True)
                location = self._artifact_root.absolute().as_uri()
            found = client.get_experiment_by_name(name)
            if found is None:
                try:
                    self._experiments[name] = str(client.create_experiment(name, artifact_location=location))
                except Exception:  # another process created it just now, or the next line says what is wrong
                    found = client.get_experiment_by_name(name)
                    if found is None:
                        raise
            if found is not None:
                self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]


def _as_json(metrics: Mapping[str, float]) -> str:
    return json.dumps(dict(metrics), sort_keys=True)
