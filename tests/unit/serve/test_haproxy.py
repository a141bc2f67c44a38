"""The launcher that hardens HAProxy's generated configuration."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.connection import STALL_S
from serve.haproxy import CLIENT_TIMEOUT_S, config_paths, exposed, find_binary, harden, harden_file

GENERATED = """global
    log 127.0.0.1:514 local0 info
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    stats timeout 30s
    maxconn 4096
    nbthread 1
    hard-stop-after 120s
defaults
    mode http
    option log-health-checks
    timeout connect 5s
    timeout client 60s
    timeout server 40s
    timeout http-keep-alive 90s

    log global
    option httplog
    retry-on conn-failure
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
    balance leastconn
frontend prometheus
    bind :9101
    mode http
    http-request use-service prometheus-exporter if {{ path /metrics }}
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    log global
    acl healthcheck path -i /-/healthz
    http-request return status 200 content-type text/plain string "success" if healthcheck
    use_backend http-steelyard
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
backend http-steelyard
    log global
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 250ms downinter 250ms fall 2 rise 2 inter 5s check
    server replica 127.0.0.1:30000 check observe layer4 error-limit 3 on-error mark-down
listen stats
  bind *:8404
  stats enable
  stats uri /stats
"""
"""What Ray Serve 2.60 writes, with its comments left out."""

LINES = st.sampled_from(
    [*GENERATED.splitlines(), "    bind :80", "  bind [::]:81 v6only", "    bind *:82 proto h2", ""]
)


def binds(config: str) -> list[str]:
    """Return the words after ``bind`` of every listener."""
    return [line.split(maxsplit=1)[1] for line in config.splitlines() if line.split()[:1] == ["bind"]]


def test_only_the_http_frontend_leaves_loopback() -> None:
    """A service for the network opens its HTTP port there and nothing else."""
    assert binds(harden(GENERATED, host="0.0.0.0")) == ["127.0.0.1:9101", "*:8000", "127.0.0.1:8404"]  # noqa: S104


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        ("localhost", "127.0.0.1:8000"),
        ("::1", "ipv6@::1:8000"),
        ("::", "ipv6@:::8000"),
    ],
)
def test_the_frontend_listens_where_the_settings_say(host: str, written: str) -> None:
    """Each way to name a host becomes HAProxy's own."""
    assert binds(harden(GENERATED, host=host))[1] == written


def test_slow_headers_end_after_ten_seconds() -> None:
    """A client that trickles its headers does not hold a connection for the client timeout."""
    assert "    timeout http-request 10s" in harden(GENERATED, host="127.0.0.1").splitlines()


def test_the_admin_socket_is_the_owners_alone() -> None:
    """Who may write to the socket commands HAProxy: no other user may."""
    hardened = harden(GENERATED, host="127.0.0.1")
    assert "admin.sock mode 600 level admin expose-fd listeners" in hardened
    assert "666" not in hardened


def test_errors_of_haproxy_itself_are_problem_json() -> None:
    """A client sees one error format, whoever could not answer it, and learns when to come back."""
    lines = [line for line in harden(GENERATED, host="127.0.0.1").splitlines() if "http-error" in line]
    assert "errorfile" not in harden(GENERATED, host="127.0.0.1")
    assert [line.split()[2] for line in lines] == ["500", "502", "503", "504"]
    for line in lines:
        body = json.loads(line.split("'")[1])
        assert body["status"] == int(line.split()[2])
        assert body["type"] == f"urn:steelyard:error:{body['code']}"
    assert lines[2].endswith(" hdr Retry-After 1")


def test_a_made_up_method_is_refused_and_not_logged() -> None:
    """Ray makes its metrics of HAProxy's log, with the method as a label: made-up ones would fill the memory."""
    lines = [line.strip() for line in harden(GENERATED, host="127.0.0.1").splitlines()]
    first = lines.index("frontend http_frontend") + 1
    unlogged, refused = lines[first : first + 2]
    known = "unless { method GET HEAD POST PUT PATCH DELETE OPTIONS }"
    assert unlogged == f"http-request set-log-level silent {known}"
    assert refused.startswith("http-request return status 405 content-type application/problem+json string ")
    assert refused.endswith(known)
    assert json.loads(refused.split("'")[1])["code"] == "method_not_allowed"


def test_a_silent_client_ends_after_fifteen_seconds() -> None:
    """After the replica has given it up, not after Ray's minute or hour."""
    hardened = harden(GENERATED, host="127.0.0.1")
    assert [line.split() for line in hardened.splitlines() if line.startswith("    timeout client ")] == [
        ["timeout", "client", "15s"]
    ]
    assert CLIENT_TIMEOUT_S > STALL_S


def test_answers_name_their_request_once_and_no_server() -> None:
    """Ray's server adds a second X-Request-Id and its own name; neither reaches a client."""
    hardened = harden(GENERATED, host="127.0.0.1")
    assert "http-response set-header X-Request-Id %[res.hdr(x-request-id,1)]" in hardened
    assert "http-response del-header Server" in hardened


def test_requests_are_not_logged_to_a_syslog_nobody_runs() -> None:
    """The access log's datagrams cost time and go nowhere; notices go where Ray keeps HAProxy's output."""
    hardened = harden(GENERATED, host="127.0.0.1")
    assert ":514" not in hardened
    assert "log stderr format raw local0 notice" in hardened


@given(st.lists(LINES, max_size=60).map("\n".join), st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "::"]))  # noqa: S104
def test_hardening_twice_changes_nothing(config: str, host: str) -> None:
    """Ray may reload without writing the file anew."""
    once = harden(config, host=host)
    assert harden(once, host=host) == once


@given(st.lists(LINES, max_size=60).map("\n".join), st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "::"]))  # noqa: S104
def test_nothing_stays_exposed_that_has_a_port(config: str, host: str) -> None:
    """Whatever sections a newer Ray adds, their listeners come to loopback."""
    assert exposed(harden(config, host=host), host=host) == []


def test_a_listener_that_cannot_be_rewritten_is_found() -> None:
    """A form of bind that the launcher does not know is reported, not passed."""
    assert exposed("frontend new\n    bind abns@somewhere\n", host="127.0.0.1") == ["bind abns@somewhere"]


def test_a_file_that_would_stay_open_is_left_alone(tmp_path: Path) -> None:
    """HAProxy is not started with a listener of unknown form, and the file stays for the reader."""
    path = tmp_path / "haproxy.cfg"
    path.write_text("frontend new\n    bind fd@7\n")
    with pytest.raises(ValueError, match="open to the network: bind fd@7"):
        harden_file(path, host="127.0.0.1")
    assert path.read_text() == "frontend new\n    bind fd@7\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_line_names_the_configuration() -> None:
    """Ray's own argument list, for a first start and for a reload."""
    assert config_paths(["-db", "-f", "/a/haproxy.cfg", "-dR", "-sf", "12", "-x", "/a/admin.sock"]) == [
        Path("/a/haproxy.cfg")
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104
def test_haproxy_itself_accepts_the_result(tmp_path: Path, host: str) -> None:
    """The real binary checks the hardened file, whatever the host."""
    path = tmp_path / "haproxy.cfg"
    path.write_text(GENERATED.format(folder=tmp_path).replace("{{", "{").replace("}}", "}"))
    (tmp_path / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\n\r\n")
    harden_file(path, host=host)
    checked = subprocess.run([find_binary(), "-c", "-f", path], capture_output=True, text=True, check=False, timeout=30)
    assert checked.returncode == 0, checked.stderr
