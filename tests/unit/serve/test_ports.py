"""Ports of one service on this machine."""

import socket
from dataclasses import astuple

import pytest

from models.errors import SettingsError
from serve.ports import Ports, check_address, choose_ports, free_ports


def test_chosen_ports_differ_and_can_be_bound() -> None:
    """A service gets ports that are its own."""
    ports = astuple(choose_ports())
    assert len(set(ports)) == len(ports) == len(astuple(Ports()))
    for port in ports:
        check_address("127.0.0.1", port)


def test_a_port_in_use_is_refused_in_one_line() -> None:
    """The line says which port and what to set."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"^port {port} on 127.0.0.1 is in use: .*STEELYARD_PORT"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    """Neither a foreign address nor a name that does not resolve can be listened on."""
    with pytest.raises(SettingsError, match=rf"^{host} is no address of this machine: set STEELYARD_HOST"):
        check_address(host, free_ports(1)[0])
