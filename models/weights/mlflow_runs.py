"""One MLflow run a finished rollout, beside the runs of registrations: for people who compare and search in MLflow.

The audit file stays the record of truth; a run that is missing is missing here only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from models.weights import mlflow_entities as entities

if TYPE_CHECKING:
    from datetime import datetime

    from models.weights.rollout_runs import RolloutRun

EXPERIMENT: Final = "steelyard-rollouts"
IDENT_TAG: Final = "steelyard.rollout"
"""Names the rollout, so that a write that is repeated completes the run which the first one began."""
_NOTE_TAG: Final = "mlflow.note.content"
"""Tag that MLflow's pages show as the run's description."""
_LONGEST: Final = 500
"""Characters of a parameter or tag: what every release of MLflow takes."""
_STATUS: Final = {"committed": "FINISHED", "rejected": "FAILED"}
"""MLflow's word for a result; whatever ended for another reason than the version's own was killed."""


def write(client: Any, experiment: str, run: RolloutRun) -> None:
    """Write ``run`` with an MLflow client into the experiment of that id; once, however often it is called."""
    found = client.search_runs([experiment], filter_string=f"tags.`{IDENT_TAG}` = '{run.ident}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        name = f"{run.model} {run.from_version or 'nothing'} to {run.version}: {run.result}"
        begun = client.create_run(experiment, start_time=_milliseconds(run.begun), run_name=name, tags=tags(run))
        run_id = begun.info.run_id
    from mlflow.entities import Metric, Param  # noqa: PLC0415 - takes two seconds, and reads the environment

    at = _milliseconds(run.ended)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, at, 0) for name, value in metrics(run).items()],
        params=[Param(name, value) for name, value in parameters(run).items()],
    )
    client.set_terminated(run_id, status=_STATUS.get(run.result, "KILLED"), end_time=at)


def tags(run: RolloutRun) -> dict[str, str]:
    """Return the tags of the run: its identity, who runs the service, and its reason as MLflow's description."""
    return entities.audit("rollout") | {IDENT_TAG: run.ident, _NOTE_TAG: (run.reason or run.result)[:_LONGEST]}


def parameters(run: RolloutRun) -> dict[str, str]:
    """Return what MLflow never lets anybody change: the model, from, to, the result and who asked why."""
    values = {
        "model": run.model,
        "from_version": run.from_version,
        "from_digest": run.from_digest,
        "version": run.version,
        "digest": run.digest,
        "result": run.result,
        "reason": run.reason,
        "who": run.who,
        "asked": run.asked,
        "generation": str(run.generation),
        "tries": str(run.tries),
    }
    return {name: value[:_LONGEST] for name, value in values.items() if value}


def metrics(run: RolloutRun) -> dict[str, float]:
    """Return seconds a step and in all, and the finite figures that gates and trials measured."""
    found = {f"{name}_s": seconds for name, seconds in run.steps.items()}
    found["total_s"] = (run.ended - run.begun).total_seconds()
    found |= run.measured
    return {entities.metric_name(name): float(value) for name, value in found.items() if math.isfinite(value)}


def _milliseconds(moment: datetime) -> int:
    return round(1e3 * moment.timestamp())
