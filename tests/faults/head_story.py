"""Run as a program: the head's GCS is killed and started again under two replicas that serve version 2.

``python head_story.py FOLDER kept|lost``: whether the new GCS finds the old one's store. Prints one JSON object a line;
monotonic seconds. Where the store is lost, Ray may end this process with everything else of the cluster.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

OUTAGE_S = 4.0
AFTERMATH_S = 30.0


def say(what: str, **more: object) -> None:
    """Print one line at once."""
    print(json.dumps({"what": what, "at": time.monotonic()} | more), flush=True)  # noqa: T201 - this program's answer


def main() -> None:
    """Tell the story."""
    folder, store = Path(sys.argv[1]), sys.argv[2]
    if store == "kept":
        (folder / "gcs").mkdir()
        os.environ |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
    # What Ray reads from the environment must stand there before it is imported.
    from diaries import start_witness  # noqa: PLC0415 - likewise
    from ray_fleet import MODEL, all_on, call, fleet_settings, stocked_registry, until  # noqa: PLC0415 - likewise
    from ray_nodes import Nodes  # noqa: PLC0415 - likewise

    settings = fleet_settings(folder / "home")
    nodes = Nodes(folder / "n")
    nodes.add("second")
    stocked_registry(settings, folder)
    replicas = [start_witness(settings, name, resources={name: 1}) for name in ("head", "second")]
    until(settings, all_on("1", 2), within_s=60.0)
    call(settings, lambda fleet: fleet.promote(MODEL, "2"))
    say("committed", generation=until(settings, all_on("2", 2), within_s=60.0)["generation"])
    head = nodes.cluster.head_node
    head.kill_gcs_server(check_alive=False)
    say("killed")
    time.sleep(OUTAGE_S)
    head.start_gcs_server()
    say("started")
    if store == "lost":
        time.sleep(AFTERMATH_S)
    else:
        until(settings, all_on("2", 2), within_s=60.0)
        say("known again")
        call(settings, lambda fleet: fleet.promote(MODEL, "1"))
        say("committed", generation=until(settings, all_on("1", 2), within_s=60.0)["generation"])
    say("end", replicas=len(replicas))
    nodes.close()


if __name__ == "__main__":
    main()
