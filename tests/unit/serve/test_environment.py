"""The environment of Ray and HAProxy, written once."""

from pathlib import Path

import pytest

from serve.environment import ALONE, IDLE, QUIET, find_launcher, ray_environment, serve_environment, token_path
from serve.ports import Ports, choose_ports
from serve.settings import Settings

FOLDER = Path("/run/steelyard-x")
LONGEST_SOCKET_PATH = 97
NODE_ID = "0" * 56


@pytest.fixture
def settings() -> Settings:
    """Return settings as a machine without any variable has them."""
    return Settings()


def test_requests_take_one_hop(settings: Settings) -> None:
    """HAProxy mode and throughput flags are on, through our launcher."""
    environment = serve_environment(settings, FOLDER, Ports())
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"]) == find_launcher()


def test_sockets_fit_into_the_kernels_limit(settings: Settings) -> None:
    """Ray puts a node id of 56 digits between folder and file; HAProxy takes 97 bytes."""
    environment = ray_environment(settings, Path("/twelve-char/steelyard-abcdefgh"), Ports())
    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
        path = Path(environment[name])
        assert len(str(path.parent / NODE_ID / path.name)) <= LONGEST_SOCKET_PATH


def test_two_services_share_no_port_and_no_path(settings: Settings) -> None:
    """Whatever names a port or a file differs between two services on one machine."""
    first = ray_environment(settings, Path("/run/steelyard-a"), Ports())
    second = ray_environment(settings, Path("/run/steelyard-b"), choose_ports())
    apart = [name for name in first if "/run/" in first[name] or (name.endswith("_PORT") and name != "STEELYARD_PORT")]
    assert len(apart) >= 10
    assert not [name for name in apart if first[name] == second[name]]


def test_a_cluster_of_our_own_demands_a_token_and_stays_on_loopback(settings: Settings) -> None:
    """Only what ``steelyard serve`` starts has a token file and loopback for its node's address."""
    environment = ray_environment(settings, FOLDER, Ports())
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(token_path(FOLDER))
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert (
        not {"RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
        & serve_environment(settings, FOLDER, Ports()).keys()
    )


def test_only_a_ray_of_one_node_keeps_its_resources_to_itself(settings: Settings) -> None:
    """On a cluster of several nodes the others' schedulers wait for the reports; resting is for all."""
    pod, alone = (make(settings, FOLDER, Ports()) for make in (serve_environment, ray_environment))
    assert pod.items() >= IDLE.items()
    assert alone.items() >= IDLE.items() | ALONE.items()
    assert not pod.keys() & ALONE.keys()


def test_what_answers_gives_way_to_nobody(settings: Settings) -> None:
    """Ray would put its workers behind everything else on the machine, and before the loads that give way to them."""
    for make in (serve_environment, ray_environment):
        assert make(settings, FOLDER, Ports())["RAY_worker_niceness"] == "0"


def test_libraries_neither_install_nor_report(settings: Settings) -> None:
    """Every process of the service, in a pod or not, is told to stay off the network."""
    for make in (serve_environment, ray_environment):
        environment = make(settings, FOLDER, Ports())
        assert environment.items() >= QUIET.items()
    assert QUIET["YOLO_AUTOINSTALL"] == "false"
    assert QUIET["YOLO_OFFLINE"] == "true"


def test_haproxy_waits_longer_than_a_request_may_take() -> None:
    """The service's own deadline strikes first, with its own error."""
    environment = serve_environment(Settings(request_timeout_s=90.5), FOLDER, Ports())
    assert float(environment["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"]) > 90.5
    assert float(environment["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) > 90.5


def test_settings_reach_every_process() -> None:
    """A replica's environment gives it the admin key, which Ray's own records never hold."""
    environment = serve_environment(Settings(admin_key="k3y", host="0.0.0.0"), FOLDER, Ports())  # noqa: S104
    assert environment["STEELYARD_ADMIN_KEY"] == "k3y"
    assert environment["STEELYARD_HOST"] == "0.0.0.0"  # noqa: S104
