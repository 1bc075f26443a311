"""gemmascope lab -- ARGUMENTS: nothing passes that opens the server, takes its token away or reads another configuration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gemmascope.__main__ import main
from gemmascope.cli.serving import lab_command, require_user
from gemmascope.errors import ServingError

OPENING = [
    "config=x.py", "config=", "f=x", "ip=0.0.0.0", "ip=*", "certfile=x", "keyfile=x", "notebook-dir=/", "preferred-dir=/",
    "ServerApp.config_file=x.py", "JupyterApp.config_file=x.py", "LabApp.config_file=x", "Application.config_file=x",
    "ServerApp.config_file_name=x", "LabServerApp.config_file=x", "ServerApp.ip=*", "ServerApp.local_hostnames=['x']",
    "ServerApp.tornado_settings={'headers':{}}", "ServerApp.cookie_options={}", "ServerApp.allow_origin=*",
    "ServerApp.allow_origin_pat=.*", "ServerApp.allow_remote_access=True", "ServerApp.disable_check_xsrf=True",
    "ServerApp.identity_provider_class=x.Y", "ServerApp.authorizer_class=x.Y", "ServerApp.password=", "ServerApp.token=",
    "ServerApp.allow_unauthenticated_access=True", "ServerApp.login_handler_class=x", "ServerApp.jpserver_extensions={}",
    "ServerApp.extra_services=[]", "ServerApp.root_dir=/", "ServerApp.sock=/tmp/x", "ServerApp.custom_display_url=http://x",
    "ServerApp.allow_credentials=True", "ServerApp.trust_xheaders=True", "ServerApp.base_url=/",
    "ServerApp.get_secure_cookie_kwargs={}", "IdentityProvider.token=", "PasswordIdentityProvider.hashed_password=",
    "PasswordIdentityProvider.password_required=False",
    "LabApp.app_dir=/tmp", "LabApp.user_settings_dir=/tmp", "LabApp.schemas_dir=/tmp", "LabApp.expose_app_in_browser=True",
    "ExtensionApp.config_file=x", "gateway-url=http://x", "GatewayClient.url=http://x", "pylab=inline", "allow-origin=*",
    "ServerApp.ssl_options={}", "ServerApp.x.y=1", "NotebookApp.token=", "KernelSpecManager.kernel_dirs=['/tmp']",
    "Session.key=b''", "serverapp.port.ip=1", "ServerApp.port.ip=*", "MappingKernelManager.kernel_cmd=x",
]  # fmt: skip
ABBREVIATED = [
    "--conf=x",
    "--con=x",
    "--ServerApp.tok=",
    "--ServerApp.allow_or=*",
    "--i=*",
    "--serverapp.ip=*",
    "-f",
    "--",
    "",
]


@pytest.mark.parametrize("given", [*(f"--{one}" for one in OPENING), *ABBREVIATED, "list", "other.ipynb", "workspaces"])
def test_what_opens_it_is_not_passed_on(given: str, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="is not passed on"):
        lab_command(tmp_path, None, ["--debug", given])


@pytest.mark.parametrize("given", OPENING)
def test_nor_with_its_value_apart_or_behind_another(given: str, tmp_path: Path) -> None:
    name, _, value = given.partition("=")
    with pytest.raises(ServingError, match="is not passed on"):
        lab_command(tmp_path, None, [f"--{name}", value])
    with pytest.raises(ServingError, match="is not passed on"):
        lab_command(tmp_path, None, ["--ServerApp.port", "9000", f"--{given}"])


@pytest.mark.parametrize("flag", ["--ServerApp.port", "--port"])
def test_no_argument_is_taken_for_the_value_of_another(flag: str, tmp_path: Path) -> None:
    for more in ([flag], [flag, "--debug"], [flag, "--ServerApp.ip=*"]):
        with pytest.raises(ServingError, match="needs a value"):
            lab_command(tmp_path, None, more)


@pytest.mark.parametrize(
    "more",
    [
        ["--debug"], ["--no-browser"], ["--allow-root"], ["--port=9000"], ["--port", "9000"],
        ["--ServerApp.iopub_data_rate_limit=1e9"], ["--ServerApp.iopub_data_rate_limit", "1e9", "--debug"],
        ["--MappingKernelManager.cull_idle_timeout=600"], ["--ZMQChannelsWebsocketConnection.limit_rate=False"],
    ],
)  # fmt: skip
def test_what_opens_nothing_is(more: list[str], tmp_path: Path) -> None:
    assert lab_command(tmp_path, None, more)[-len(more) :] == more


def test_root_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr("gemmascope.cli.serving.serve", lambda command: pytest.fail("it was started"))
    assert main(["lab", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "as root" in said
    assert "gemmascope lab -- --allow-root" in said
    monkeypatch.setattr("gemmascope.cli.serving.serve", lambda command: 0)
    assert main(["lab", str(tmp_path), "--", "--allow-root"]) == 0


def test_others_are_not_asked_about_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    require_user([])
    monkeypatch.delattr(os, "geteuid")  # as on Windows
    require_user([])
