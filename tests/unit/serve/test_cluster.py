"""Starting and ending a Ray of our own: what can be shown without one."""

from pathlib import Path

import pytest

from serve.cluster import main, make_folder, reason_of


def test_folders_are_private_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep the temporary folder lies, unix sockets fit below the one that is made."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = make_folder()
    try:
        assert len(str(folder)) <= 31
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.rmdir()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "Failed 3 times.\nRuntimeError: Traceback:\nmodels.errors.ReleaseRejectedError: it finds no box\n",
            "it finds no box",
        ),
        ("Deployment is waiting for 2 CPUs\n", "Deployment is waiting for 2 CPUs"),
        ("", "no reason was given"),
    ],
)
def test_the_reason_is_told_without_its_traceback(message: str, reason: str) -> None:
    """Ray Serve wraps an error's words into two tracebacks; people read the words."""
    assert reason_of(message) == reason


def test_the_environment_of_pods_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed may be put into a manifest."""
    monkeypatch.setenv("STEELYARD_ADMIN_KEY", "s3cret")
    monkeypatch.setenv("STEELYARD_WEBHOOK_SECRET", "s3cret")
    monkeypatch.setenv("STEELYARD_HOST", "0.0.0.0")  # noqa: S104
    monkeypatch.setattr("sys.argv", ["cluster", "--print-env"])
    main()
    printed = capsys.readouterr().out
    assert "s3cret" not in printed
    assert "RAY_SERVE_ENABLE_HA_PROXY=1\n" in printed
    assert "STEELYARD_HOST=0.0.0.0\n" in printed
